"""The tracks of a ``.stem.mp4``, as MUSDB18 has mixture and stems in one file."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import AudioReadError
from .read import open_audio

__all__ = ["read_stem_mp4"]

FULL_SCALE = 32768


def read_stem_mp4(path: str | os.PathLike[str], tracks: Iterable[int]) -> tuple[list[Tensor], int, list[str]]:
    """Decode audio tracks of one file.

    As in musdb the samples are 16-bit integers over 32768: what AAC decodes beyond full scale is clipped.

    Args:
        tracks: their numbers, from 1; track 1 is the mixture.

    Returns:
        signals (channels, n), float32; their sample rate in hertz; and warnings.

    Raises:
        AudioReadError: if the file has no such tracks, if they differ in rate, or if one cannot be decoded.
    """
    signals, rates, warnings = [], set(), []
    for track in tracks:
        with open_audio(path, track=track) as stream:
            samples = torch.cat(list(stream), 1)
            rates.add(stream.sample_rate)
            warnings += [f"track {track}: {warning}" for warning in stream.warnings]
        signals.append((samples * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE)
    if len(rates) != 1:
        raise AudioReadError(f"The tracks of {path} have different sample rates; it is no MUSDB18 track.")
    return signals, rates.pop(), warnings
