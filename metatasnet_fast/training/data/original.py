"""The authors' own layout of prepared tracks: their program trains from it, and what theirs prepared can be read.

    OUT/train_8/0000.npz, train_16, train_32, validation_8, ...   key arr_0, float32 (3, 6, samples)
    OUT/prepared/train/0000.json                                  which track that is, and of what it was made

Left, right and mono (their mean); mixture, drums, bass, other, vocals, accompaniment (the first three). Each rate has
``ceil(n rate / original rate)`` samples, as the authors' resampler leaves them.

Source: the authors' ``utility/data_generator.py``.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import __version__
from ..._io import describe_os_error, sync
from ...audio import fit_length, resample
from ...errors import TrainingDataError
from .decode import Recording
from .store import PARTIAL, replace_text

__all__ = [
    "FOLDERS",
    "RECORDS",
    "original_files",
    "pack_original",
    "read_original",
    "read_record",
    "remove_moved",
    "write_original",
    "write_original_manifest",
]

FOLDERS = {"train": "train", "valid": "validation"}
"""The authors' names of the splits; they prepare no others."""

KEY = "arr_0"

SOURCES = slice(1, 5)

RECORDS = "prepared"
"""Folder of the records of what is done."""


def original_files(root: Path, split: str, stem: str, rates: Sequence[int]) -> dict[int, Path]:
    """The file of a track at each rate."""
    return {rate: root / f"{FOLDERS[split]}_{rate // 1000}" / f"{stem}.npz" for rate in rates}


def pack_original(recording: Recording, rate: int) -> NDArray[np.float32]:
    """(3, 6, samples) at one rate; mono tracks count as stereo with equal channels. Without a mixture it is the stems' sum."""
    stems = torch.stack(
        _common([_resampled(x, sr, rate) for x, sr in zip(recording.stems, recording.rates, strict=True)])
    )
    mixture = stems.sum(0) if recording.mixture is None else _resampled(*recording.mixture, rate)
    mixture, *signals = _common([mixture, *stems, stems[:3].sum(0)])
    together = torch.stack([mixture, *signals]).expand(-1, 2, -1)
    left, right = together.unbind(1)
    return torch.stack([left, right, together.mean(1)]).numpy()


def read_original(files: dict[int, Path]) -> dict[int, NDArray[np.float32]]:
    """For each rate the stems (4, 2, samples), full scale 1, of one track.

    Raises:
        TrainingDataError: for a file that is missing, damaged, or of another layout.
    """
    found = {}
    for rate, path in files.items():
        try:
            with np.load(path, allow_pickle=False) as file:
                values = file[KEY]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise TrainingDataError(f"{path} cannot be read ({error}); prepare it again.") from error
        if values.ndim != 3 or values.shape[:2] != (3, 6) or not np.isfinite(values).all():
            raise TrainingDataError(
                f"{path} holds {values.shape} instead of (3, 6, samples) finite numbers; prepare it again."
            )
        found[rate] = np.ascontiguousarray(values[:2, SOURCES].transpose(1, 0, 2), dtype=np.float32)
    return found


def write_original(
    root: Path, folder: str, stem: str, arrays: Mapping[Path, NDArray[np.float32]], record: Mapping[str, Any]
) -> None:
    """Write a track's file at every rate, each at once, and its record last.

    Raises:
        TrainingDataError: if a file cannot be written.
    """
    note = root / RECORDS / folder / f"{stem}.json"
    try:
        # The files are about to change, so the record of what they were must go first.
        note.unlink(missing_ok=True)
        partial = root / PARTIAL
        partial.mkdir(exist_ok=True)
        for path, array in arrays.items():
            part = partial / f"{path.parent.name}-{path.name}"
            np.savez_compressed(part, array)
            sync(part)
            path.parent.mkdir(exist_ok=True)
            part.replace(path)
        note.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingDataError(
            f"{root} cannot be written ({describe_os_error(error)}); make room or choose another folder."
        ) from error
    replace_text(note, json.dumps(record, indent=1) + "\n")


def read_record(root: Path, folder: str, stem: str) -> dict[str, Any] | None:
    """The record of a track, if it is finished."""
    try:
        record = json.loads((root / RECORDS / folder / f"{stem}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"sha256", "seconds", "rates"} <= set(record) else None


def remove_moved(root: Path, places: Mapping[str, tuple[str, str]]) -> None:
    """Remove the files of tracks that have another place now, since the authors' program takes every file for a track.

    Args:
        root: where the layout is.
        places: for the origin of each track its folder and number, such as ``("train", "0000")``.

    Raises:
        TrainingDataError: if a file cannot be removed.
    """
    for folder in FOLDERS.values():
        for note in sorted((root / RECORDS / folder).glob("*.json")):
            record = read_record(root, folder, note.stem)
            place = None if record is None else places.get(str(record.get("origin")))
            if record is None or place is None or place == (folder, note.stem):
                continue
            try:
                # The record last: a kill leaves what the next run still knows to remove.
                for rate in record["rates"]:
                    (root / f"{folder}_{rate // 1000}" / f"{note.stem}.npz").unlink(missing_ok=True)
                note.unlink()
            except OSError as error:
                raise TrainingDataError(
                    f"{note.stem}.npz of {folder} in {root} cannot be removed ({error.strerror or error}); remove it, and "
                    "prepare again."
                ) from error


def write_original_manifest(root: Path, rates: Sequence[int], failed: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Write ``manifest.json``, with the records of all finished tracks, and return it."""
    tracks, seconds = [], {}
    for split, folder in FOLDERS.items():
        stems = sorted(path.stem for path in (root / RECORDS / folder).glob("*.json"))
        records = {stem: record for stem in stems if (record := read_record(root, folder, stem)) is not None}
        tracks += [{"file": stem, **record} for stem, record in records.items()]
        seconds[split] = round(math.fsum(record["seconds"] for record in records.values()), 3)
    manifest = {
        "layout": "original",
        "tool": f"metatasnet-fast {__version__}",
        "rates": list(rates),
        "seconds": seconds,
        "tracks": tracks,
        "failed": list(failed),
    }
    text = json.dumps(manifest, indent=1) + "\n"
    replace_text(root / "manifest.json", text)
    written: dict[str, Any] = json.loads(text)
    return written


def _resampled(x: Tensor, sr: int, rate: int) -> Tensor:
    return resample(x, sr, rate, length=-(-x.shape[-1] * rate // sr))


def _common(signals: Sequence[Tensor]) -> list[Tensor]:
    """Signals continued with silence to the longest."""
    longest = max(x.shape[-1] for x in signals)
    return [fit_length(x, longest) for x in signals]
