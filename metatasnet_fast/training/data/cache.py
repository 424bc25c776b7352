"""Reading a cache of tracks: memory-mapped samples of every rate, cut so that all rates are aligned.

    CACHE/manifest.json                what there is, and from what it was made
    CACHE/<split>/<track>/<rate>.npy   (instruments, channels, samples), int16 or float32
    CACHE/<split>/<track>/entry.json   instruments, lengths, scales, hash

``CACHE/train/A/16000.npy`` times its stems' scales is the audio at 16 kHz, full scale 1. Sample ``n`` at one rate and sample
``2 n`` at twice that rate are the same instant, and their lengths have the same ratio.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import INSTRUMENTS
from ...errors import TrainingDataError
from .entry import FORMAT, SPLITS, TrackEntry, refuse_shared_tracks

__all__ = ["Cache", "StemArray", "Track"]


@dataclass(frozen=True)
class StemArray:
    """Instruments (I, channels, samples) of a track at one rate: float32, full scale 1, read from disk when indexed."""

    raw: NDArray[Any]
    """Memory-mapped, as stored."""
    scale: NDArray[np.float32]
    """(I, 1, 1): full-scale value of one stored unit."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Index like an array. The first index must select whole instruments, as integers and slices do, so that each
        scale is known."""
        stems = key[0] if isinstance(key, tuple) else key
        scale = self.scale[stems]
        part = np.asarray(self.raw[key], dtype=np.float32)
        return np.asarray(part * scale.reshape(scale.shape[: scale.ndim - 2] + (1,) * (part.ndim - scale.ndim + 2)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = self[:]
        return found if dtype is None else found.astype(dtype)


@dataclass(frozen=True)
class Track:
    """One cached track."""

    folder: Path
    entry: TrackEntry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def seconds(self) -> float:
        return self.entry.seconds

    @property
    def channels(self) -> int:
        return self.entry.channels

    @property
    def counts(self) -> tuple[bool, ...]:
        """Return for each instrument whether the loss may use it."""
        return self.entry.counts

    def samples(self, rate: int) -> int:
        return self.entry.rates[rate].samples

    def deviation(self, rate: int) -> float:
        """Return the number by which the authors divide the track at this rate: the standard deviation of its mono mixture."""
        return self.entry.rates[rate].deviation

    def file(self, rate: int) -> Path:
        return self.folder / f"{rate}.npy"

    def stems(self, rate: int) -> StemArray:
        """Return the instruments at ``rate``, in the cache's order.

        Raises:
            TrainingDataError: if the cache does not have that rate, or its file is damaged.
        """
        if rate not in self.entry.rates:
            raise TrainingDataError(
                f"{self.name} is cached at {', '.join(map(str, self.entry.rates))} Hz, not at {rate}; prepare it again."
            )
        expected = (len(self.counts), self.channels, self.samples(rate))
        try:
            raw = np.load(self.file(rate), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise TrainingDataError(
                f"{self.file(rate)} cannot be read ({error}); delete the folder and prepare again."
            ) from error
        if raw.shape != expected or raw.dtype != np.dtype(self.entry.dtype):
            raise TrainingDataError(
                f"{self.file(rate)} holds {raw.dtype} {raw.shape} instead of {self.entry.dtype} {expected}; "
                "delete the folder and prepare again."
            )
        scale = np.array(self.entry.rates[rate].scale, np.float32).reshape(-1, 1, 1)
        return StemArray(raw, scale)


@dataclass(frozen=True)
class Cache:
    """The tracks that ``metatasnet-fast prepare`` made."""

    path: Path
    rates: tuple[int, ...]
    """Sampling rates in ascending order, hertz."""
    entries: tuple[TrackEntry, ...]
    instruments: tuple[str, ...] = INSTRUMENTS
    """Instruments that every track has, in the order of its samples."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Cache:
        """Read the manifest, and see that every file is there; samples are not touched.

        Raises:
            TrainingDataError: if there is no finished cache at ``path``, one of another version, one with a track in two
                splits, or one that lacks a file.
        """
        file = Path(path) / "manifest.json"
        try:
            manifest = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingDataError(
                f"There is no finished cache at {path}; make one with metatasnet-fast prepare."
            ) from error
        try:
            if manifest.get("layout") == "original":
                raise TrainingDataError(
                    f"{path} is in the authors' layout; make a cache of it with metatasnet-fast prepare --original {path}."
                )
            if manifest["format"] != FORMAT:
                raise TrainingDataError(f"The cache at {path} was written by another version; prepare it again.")
            rates = tuple(int(rate) for rate in manifest["rates"])
            entries = tuple(TrackEntry.from_dict(values) for values in manifest["tracks"])
            instruments = tuple(manifest["stems"])
            if any(entry.instruments != instruments for entry in entries):
                raise TrainingDataError(f"{path} holds tracks of several sets of instruments; prepare it again.")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, TrainingDataError):
                raise
            raise TrainingDataError(f"{file} is no manifest of a cache; prepare it again.") from error
        refuse_shared_tracks(Path(path), entries)
        cache = cls(Path(path), rates, entries, instruments)
        cache._refuse_missing_files()
        return cache

    def _refuse_missing_files(self) -> None:
        """Raise for missing files now, instead of at the first validation."""
        lacking = []
        for track in (track for split in SPLITS for track in self.tracks(split)):
            for rate, values in track.entry.rates.items():
                wanted = len(track.counts) * track.channels * values.samples * np.dtype(track.entry.dtype).itemsize
                try:
                    whole = track.file(rate).stat().st_size >= wanted
                except OSError:
                    whole = False
                if not whole:
                    lacking.append(track.file(rate))
        if lacking:
            others = f" and {len(lacking) - 1} other files are" if len(lacking) > 1 else " is"
            raise TrainingDataError(f"{lacking[0]}{others} missing or cut off; delete the folder and prepare again.")

    def places_of(self, instruments: Sequence[str]) -> list[int]:
        """Return the places of a network's instruments among the cache's.

        Raises:
            TrainingDataError: if the cache lacks one.
        """
        missing = [name for name in instruments if name not in self.instruments]
        if missing:
            raise TrainingDataError(
                f"The cache at {self.path} holds {', '.join(self.instruments)}, not {', '.join(missing)}: choose among them "
                "with --instruments, or prepare a cache with all."
            )
        return [self.instruments.index(name) for name in instruments]

    def tracks(self, split: str) -> list[Track]:
        """Return the tracks of ``train``, ``valid`` or ``test`` by name; none if the split is empty."""
        if split not in SPLITS:
            raise TrainingDataError(f"There is no split {split!r}; choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")
        found = [Track(self.path / split / entry.name, entry) for entry in self.entries if entry.split == split]
        return sorted(found, key=lambda track: track.name)
