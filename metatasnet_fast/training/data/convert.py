"""Prepare one track: skip it if it is there already, else decode each of its stems once, resample and store the stems.

Tracks that the authors' program prepared are read as they are (source: the authors' ``utility/data_generator.py``):

    IN/train_8/0000.npz, train_16, train_32, validation_8, ...   key arr_0, float32 (3, 6, samples)

First axis: left, right and mono (the mean of both). Second axis: mixture, drums, bass, other, vocals and accompaniment
(drums + bass + other).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..._io import sha256_file
from ...audio import AudioFile, resample
from ...audio.read import read_stems
from ...config import INSTRUMENTS
from ...errors import MetaTasNetError, TrainingDataError
from .sources import TrackSource, all_parts, read_unknown, stem_files
from .store import DEFAULT, SPLITS, Stems, read_entry, rewrite_entry, write_track

__all__ = ["Outcome", "Settings", "content_hash", "inputs", "prepare_track"]


def counted(track: TrackSource, stems: Stems) -> tuple[bool, ...]:
    """Return for each instrument whether the loss may use it: not if the track's ``track.json`` names one of the
    instrument's stems as unknown."""
    unknown = read_unknown(track.path) if track.kind == "stems" else ()
    return tuple(not set(parts) & set(unknown) for parts in stems.values())


def content_hash(files: dict[str, Path]) -> str:
    """Return the hexadecimal SHA-256 over the names and contents of input files.

    Raises:
        TrainingDataError: if a file cannot be read.
    """
    total = hashlib.sha256()
    for name, path in files.items():
        try:
            total.update(f"{name} {sha256_file(path)}\n".encode())
        except OSError as error:
            raise TrainingDataError(f"{path} cannot be read ({error.strerror or error}); check it.") from error
    return total.hexdigest()


def decode(files: Mapping[str, Path]) -> tuple[dict[str, AudioFile], tuple[str, ...]]:
    """Decode stems by name.

    Returns:
        the decoded stems by name, each with one or two channels, and warnings.

    Raises:
        TrainingDataError: if a stem has more than two channels, or holds nothing but zeros and NaN or infinite samples.
        AudioReadError: if a file cannot be decoded.
    """
    found, warnings = read_stems(files), []
    for name, audio in found.items():
        if len(audio.samples) > 2:
            raise TrainingDataError(f"{files[name]} has {len(audio.samples)} channels; mix it down to stereo or mono.")
        if not audio.samples.any() and any("NaN or infinite" in warning for warning in audio.warnings):
            raise TrainingDataError(f"{files[name]} holds nothing that is finite but zeros; export it again.")
        warnings += [f"{files[name].name}: {warning}" for warning in audio.warnings]
    return found, (*warnings, *_differing_lengths(found))


def _differing_lengths(found: Mapping[str, AudioFile]) -> Iterator[str]:
    seconds = {name: audio.samples.shape[-1] / audio.sample_rate for name, audio in found.items()}
    longest = max(seconds.values())
    for name, value in seconds.items():
        # Codecs and rounding may change the length by half a millisecond.
        if value < longest - 5e-4:
            yield f"{name} ends {longest - value:.3f} s before the longest stem; silence was added"


FOLDERS = {"train": "train", "valid": "validation"}
"""The authors' folder names of the splits; their program prepares only these two splits."""

KEY = "arr_0"

SOURCES = slice(1, 5)


def read_original(files: dict[int, Path]) -> dict[int, NDArray[np.float32]]:
    """Return the stems of one track from its file for each rate: (4, 2, samples), float32, full scale 1, by rate.

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


@dataclass(frozen=True)
class Settings:
    """The settings of a cache: folder, sampling rates in hertz, sample type and instruments."""

    out: Path
    rates: tuple[int, ...]
    dtype: str
    stems: Stems = field(default_factory=lambda: DEFAULT)
    """The instruments, each with the stems that are added up in it."""


@dataclass(frozen=True)
class Outcome:
    """The result of preparing one track."""

    name: str
    split: str
    status: str
    """``done``, ``kept`` (was done already) or ``failed``."""
    audio_seconds: float = 0.0
    seconds: float = 0.0
    error: str | None = None
    warnings: tuple[str, ...] = ()


def prepare_track(track: TrackSource, settings: Settings) -> Outcome:
    """Prepare one track; report its errors in the outcome."""
    began = time.monotonic()
    try:
        outcome = _prepare(track, settings)
    except MetaTasNetError as error:
        outcome = Outcome(track.name, track.split, "failed", error=str(error))
    except MemoryError:
        reason = f"{track.name} does not fit into memory; prepare with fewer --workers."
        outcome = Outcome(track.name, track.split, "failed", error=reason)
    return dataclasses.replace(outcome, seconds=time.monotonic() - began)


def _prepare(track: TrackSource, settings: Settings) -> Outcome:
    files, stems = inputs(track, settings), settings.stems
    counts = counted(track, stems)
    digest, origin = content_hash(files), os.path.abspath(track.path)
    _refuse_second_split(track, digest, origin, settings.out)
    place = settings.out / track.split / track.name
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
    else:
        decoded, warnings = decode(dict.fromkeys(all_parts(stems), track.path) if track.kind == "musdb" else files)
        audio = {rate: _resampled(decoded, rate, stems) for rate in settings.rates}
    entry = write_track(
        settings.out, track.split, track.name, audio,
        dtype=settings.dtype, stems=stems, counts=counts, sha256=digest, origin=origin, warnings=warnings,
    )  # fmt: skip
    return Outcome(track.name, track.split, "done", entry.seconds, warnings=entry.warnings)


def _refuse_second_split(track: TrackSource, digest: str, origin: str, cache: Path) -> None:
    for split in SPLITS:
        place = cache / split / track.name
        other = read_entry(place) if split != track.split else None
        if other is not None and not other.is_other_song(digest, origin):
            raise TrainingDataError(
                f"{place} holds a track of this name already, from {other.origin or 'an unknown place'}, and none may be in "
                "two splits; rename one of them, or delete that folder."
            )


def inputs(track: TrackSource, settings: Settings) -> dict[str, Path]:
    """Return the files that a track is made from, by stem. The authors' files are by rate; a ``.stem.mp4`` is under the
    name ``stems``.

    Raises:
        TrainingDataError: if a stem has several files; if a stem that is not unknown has none; if no stem has a file;
            or if MUSDB18 lacks a stem.
    """
    if track.kind == "original":
        split, root = FOLDERS[track.split], track.path.parent.parent
        return {str(rate): root / f"{split}_{rate // 1000}" / track.path.name for rate in settings.rates}
    wanted = all_parts(settings.stems)
    if track.kind == "musdb":
        if lacking := [stem for stem in wanted if stem not in INSTRUMENTS]:
            raise TrainingDataError(f"MUSDB18 has the stems {', '.join(INSTRUMENTS)}, not {', '.join(lacking)}.")
        return {"stems": track.path}
    found, unknown = stem_files(track.path), read_unknown(track.path)
    for stem in wanted:
        if stem not in unknown and stem not in found:
            raise TrainingDataError(
                f"{track.path} has no {stem}; add {stem}.wav (silence, if the track has none), or a track.json with "
                f'{{"unknown": ["{stem}"]}}.'
            )
    files = {stem: _only(found[stem]) for stem in wanted if stem in found}
    if not files:
        raise TrainingDataError(f"{track.path} holds none of {', '.join(wanted)}; add them, or remove the folder.")
    return files


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise TrainingDataError(f"{paths[0].parent} has both {names}; keep one of them.")
    return paths[0]


def _resampled(decoded: Mapping[str, AudioFile], rate: int, stems: Stems) -> NDArray[np.float32]:
    """Return the instruments at ``rate`` hertz, (I, channels, samples), float32, each the sum of its stems.

    Shorter stems are padded with silence. A mono stem goes to all channels.
    """
    signals = {name: resample(x.samples, x.sample_rate, rate) for name, x in decoded.items()}
    channels, longest = (max(x.shape[axis] for x in signals.values()) for axis in (0, 1))
    found = np.zeros((len(stems), channels, longest), np.float32)
    for place, parts in zip(found, stems.values(), strict=True):
        for part in parts:
            if part in signals:
                place[:, : signals[part].shape[-1]] += signals[part].numpy()
    return found
