"""Spectrograms of a few songs' stems, for the report."""

from __future__ import annotations

import torch
from torch import Tensor

from ..audio import open_audio
from ..errors import MetaTasNetError
from ..page.png import encode_png
from ..page.spectrogram import levels
from .outcome import Outcome
from .report_page import Pictures
from .result import Listed, Result
from .storage import Storage

__all__ = ["picture_song"]

SECONDS = 60
"""Of a song that are shown, from its beginning."""

ROWS, COLUMNS = 110, 420


def picture_song(row: Outcome, storage: Storage) -> Pictures | None:
    """The stems of a song that is done, on one scale; None if they are not to be had any more."""
    try:
        folder = row.folder or ""
        result = Result.from_json(storage.read(f"{folder}/{Listed.of(storage.sizes(folder)).name}") or b"")
        if result is None:
            return None
        signals: dict[str, Tensor] = {}
        for stem, file in result.files.items():
            with storage.local(f"{row.folder}/{file.path}") as path:
                signals[stem], rate = _beginning(str(path))
    except (OSError, MetaTasNetError):
        return None
    images = {stem: encode_png(picture) for stem, picture in levels(signals, rate, ROWS, COLUMNS).items()}
    shown = f", its first {SECONDS} s" if row.duration > SECONDS else ""
    return Pictures(row.id, f"{row.duration:.1f} s{shown}", images)


def _beginning(path: str) -> tuple[Tensor, int]:
    """(channels, samples) of the first ``SECONDS``, and the sample rate."""
    with open_audio(path) as stream:
        limit = SECONDS * stream.sample_rate
        blocks: list[Tensor] = []
        length = 0
        for block in stream:
            blocks.append(block)
            length += block.shape[1]
            if length >= limit:
                break
        return torch.cat(blocks, 1)[:, :limit], stream.sample_rate
