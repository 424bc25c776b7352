"""Preparing one track: skipped if it is there already, else decoded, resampled, measured and stored."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...audio import resample
from ...config import INSTRUMENTS
from ...errors import MetaTasNetError, TrainingDataError
from .decode import Recording, content_hash, decode, input_files
from .entry import SPLITS
from .loudness import levels
from .original import FOLDERS, original_files, pack_original, read_original, read_record, write_original
from .sources import TrackSource, read_counts
from .store import place_of, read_entry, rewrite_entry, write_track

__all__ = ["Job", "Outcome", "Settings", "inputs", "prepare_track"]


@dataclass(frozen=True)
class Settings:
    """How tracks are stored."""

    out: Path
    rates: tuple[int, ...]
    dtype: str
    layout: str
    """``cache`` or ``original``."""


@dataclass(frozen=True)
class Job:
    """A track, and its number in the authors' layout."""

    track: TrackSource
    number: int


@dataclass(frozen=True)
class Outcome:
    """What became of one track."""

    name: str
    split: str
    status: str
    """``done``, ``kept`` (was done already) or ``failed``."""
    audio_seconds: float = 0.0
    seconds: float = 0.0
    error: str | None = None
    warnings: tuple[str, ...] = ()


def prepare_track(job: Job, settings: Settings) -> Outcome:
    """Prepare one track; its errors are part of the outcome."""
    began = time.monotonic()
    convert = _to_original if settings.layout == "original" else _to_cache
    try:
        outcome = convert(job, settings)
    except MetaTasNetError as error:
        outcome = Outcome(job.track.name, job.track.split, "failed", error=str(error))
    except MemoryError:
        outcome = Outcome(
            job.track.name,
            job.track.split,
            "failed",
            error=f"{job.track.name} does not fit into memory; prepare with fewer --workers.",
        )
    return dataclasses.replace(outcome, seconds=time.monotonic() - began)


def _to_cache(job: Job, settings: Settings) -> Outcome:
    track = job.track
    files = inputs(track, settings)
    counts = read_counts(track.path) if track.kind == "stems" else (True,) * 4
    digest, origin = content_hash(files), os.path.abspath(track.path)
    _refuse_second_split(track, digest, origin, settings.out)
    place = place_of(settings.out, track.split, track.name)
    entry = read_entry(place)
    if entry is not None and entry.sha256 == digest and all((place / f"{rate}.npy").exists() for rate in entry.rates):
        if entry.counts != counts or entry.split != track.split:
            rewrite_entry(place, dataclasses.replace(entry, counts=counts, split=track.split))
        return Outcome(track.name, track.split, "kept", entry.seconds)
    if entry is not None and entry.sha256 != digest and entry.origin != origin:
        raise TrainingDataError(
            f"{place} holds another track of this name, from {entry.origin}; rename one of them, or delete that folder."
        )
    if track.kind == "original":
        audio = read_original({rate: files[str(rate)] for rate in settings.rates})
        warnings: tuple[str, ...] = ()
        top = max(audio)
        loudness = _loudness(list(torch.from_numpy(audio[top])), top)
    else:
        recording = decode(track)
        audio = {rate: _resampled(recording, rate) for rate in settings.rates}
        warnings = recording.warnings
        loudness = _loudness(_at_one_rate(recording), max(recording.rates))
    entry = write_track(
        settings.out,
        track.split,
        track.name,
        audio,
        dtype=settings.dtype,
        counts=counts,
        sha256=digest,
        origin=origin,
        loudness=loudness,
        warnings=warnings,
    )
    return Outcome(track.name, track.split, "done", entry.seconds, warnings=entry.warnings)


def _refuse_second_split(track: TrackSource, digest: str, origin: str, cache: Path) -> None:
    for split in SPLITS:
        place = place_of(cache, split, track.name)
        other = read_entry(place) if split != track.split else None
        if other is not None and not other.is_other_song(digest, origin):
            raise TrainingDataError(
                f"{place} holds a track of this name already, from {other.origin or 'an unknown place'}, and none may be in "
                "two splits; rename one of them, or delete that folder."
            )


def _to_original(job: Job, settings: Settings) -> Outcome:
    track, stem = job.track, f"{job.number:04d}"
    files = original_files(settings.out, track.split, stem, settings.rates)
    digest = content_hash(inputs(track, settings))
    record = read_record(settings.out, FOLDERS[track.split], stem)
    if record is not None and record["sha256"] == digest and all(path.exists() for path in files.values()):
        return Outcome(track.name, track.split, "kept", record["seconds"])
    recording = decode(track, mixture=True)
    arrays = {files[rate]: pack_original(recording, rate) for rate in settings.rates}
    seconds = max(x.shape[-1] / sr for x, sr in zip(recording.stems, recording.rates, strict=True))
    write_original(
        settings.out,
        FOLDERS[track.split],
        stem,
        arrays,
        {
            "name": track.name,
            "split": track.split,
            "sha256": digest,
            "origin": os.path.abspath(track.path),
            "rates": list(settings.rates),
            "seconds": round(seconds, 6),
            "loudness": _loudness(_at_one_rate(recording), max(recording.rates)),
            "warnings": list(recording.warnings),
        },
    )
    return Outcome(track.name, track.split, "done", seconds, warnings=recording.warnings)


def inputs(track: TrackSource, settings: Settings) -> dict[str, Path]:
    """The files that a track is made from; raises :class:`TrainingDataError` if they do not make one."""
    if track.kind != "original":
        return input_files(track, mixture=settings.layout == "original")  # only this layout stores it
    split = FOLDERS[track.split]
    root = track.path.parent.parent
    return {str(rate): root / f"{split}_{rate // 1000}" / track.path.name for rate in settings.rates}


def _resampled(recording: Recording, rate: int) -> NDArray[np.float32]:
    """(4, channels, samples), the shorter stems continued with silence."""
    stems = [resample(x, sr, rate) for x, sr in zip(recording.stems, recording.rates, strict=True)]
    longest = max(x.shape[-1] for x in stems)
    found = np.zeros((len(stems), recording.channels, longest), np.float32)
    for place, x in zip(found, stems, strict=True):
        place[:, : x.shape[-1]] = x.numpy()
    return found


def _at_one_rate(recording: Recording) -> list[Tensor]:
    rate = max(recording.rates)
    return [resample(x, sr, rate) if sr != rate else x for x, sr in zip(recording.stems, recording.rates, strict=True)]


def _loudness(stems: Sequence[Tensor], rate: int) -> dict[str, dict[str, float | None]]:
    """Of the mixture and the stems."""
    mixture = torch.zeros(stems[0].shape[0], max(x.shape[-1] for x in stems))
    for x in stems:
        mixture[:, : x.shape[-1]] += x
    named = {"mixture": mixture, **dict(zip(INSTRUMENTS, stems, strict=True))}
    return {name: levels(x, rate) for name, x in named.items()}
