"""Read a cache: the memory-mapped samples of its tracks, which are aligned between the rates, and the crops of batches.

    CACHE/manifest.json                rates, instruments, and the entries of all tracks
    CACHE/<split>/<track>/<rate>.npy   (instruments, channels, samples), int16 or float32
    CACHE/<split>/<track>/entry.json   instruments, lengths, scales, hash

The samples in ``CACHE/train/A/16000.npy``, times the scale of each instrument, are the audio at 16 kHz, full scale 1.
Sample ``n`` at one rate and sample ``2 n`` at twice that rate are the same instant, and the lengths have the same
ratio.

A crop is read from its file straight into the batch. So its samples are copied once, without the page faults of
memory-mapped access; no file stays open for a track; and the interpreter's lock is not held while a file is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...config import INSTRUMENTS
from ...errors import TrainingDataError
from .crops import Plan
from .store import FORMAT, SPLITS, TrackEntry, refuse_shared_tracks

__all__ = ["Cache", "CropReader", "HostBatch", "StemArray", "Track"]


@dataclass(frozen=True)
class StemArray:
    """Instruments (I, channels, samples) of a track at one rate: float32, full scale 1, read from disk when indexed."""

    raw: NDArray[Any]
    """(I, channels, samples), memory-mapped, as stored: int16 or float32."""
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
        """Return the standard deviation of the mono mixture at this rate, by which the authors divide the track."""
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
    """A cache: the tracks that ``metatasnet-fast prepare`` made."""

    path: Path
    rates: tuple[int, ...]
    """Sampling rates in ascending order, hertz."""
    entries: tuple[TrackEntry, ...]
    instruments: tuple[str, ...] = INSTRUMENTS
    """Instruments that every track has, in the order of its samples."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Cache:
        """Read the manifest, and check that every file is there and long enough; samples are not read.

        Raises:
            TrainingDataError: if there is no finished cache at ``path``, or the cache is of another version, has a
                track in two splits, or lacks a file.
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
        """Raise :class:`TrainingDataError` if a file is missing or cut off. Otherwise this would show only when the
        file is read, perhaps at the first validation."""
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
        """Return the index of each of a network's instruments among the instruments of the cache.

        Raises:
            TrainingDataError: if the cache lacks an instrument.
        """
        missing = [name for name in instruments if name not in self.instruments]
        if missing:
            raise TrainingDataError(
                f"The cache at {self.path} holds {', '.join(self.instruments)}, not {', '.join(missing)}: choose among them "
                "with --instruments, or prepare a cache with all."
            )
        return [self.instruments.index(name) for name in instruments]

    def tracks(self, split: str) -> list[Track]:
        """Return the tracks of ``train``, ``valid`` or ``test``, sorted by name; an empty list for an empty split."""
        if split not in SPLITS:
            raise TrainingDataError(f"There is no split {split!r}; choose {', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")
        found = [Track(self.path / split / entry.name, entry) for entry in self.entries if entry.split == split]
        return sorted(found, key=lambda track: track.name)


@dataclass(frozen=True)
class HostBatch:
    """A batch before scaling, in host memory."""

    raw: list[Tensor]
    """Samples as they are stored, (items, S, channels, T_stage) for each stage, of the cache's S instruments. There is
    one channel if the plan chose one, else two."""
    weights: list[Tensor]
    """(items, S, channels), float32, for each stage: factors by which to multiply the stored samples."""
    counts: Tensor
    """(items, S) bool: False for an instrument that the loss must leave out."""
    number: int
    """Number of the batch."""


@dataclass(frozen=True)
class _File:
    """The file with the samples of one track at one rate."""

    track: Track
    rate: int
    offset: int
    dtype: np.dtype[np.generic]
    samples: int
    scale: NDArray[np.float64]
    """(S,): factors from stored units to units of the track's deviation."""

    @classmethod
    def open(cls, track: Track, rate: int) -> _File:
        raw = track.stems(rate).raw
        entry = track.entry.rates[rate]
        offset = int(getattr(raw, "offset", 0))
        return cls(track, rate, offset, raw.dtype, entry.samples, np.array(entry.scale) / entry.deviation)

    def read(self, stem: int, channel: int, start: int, into: NDArray[np.generic]) -> None:
        first = (stem * self.track.channels + channel) * self.samples + start
        path = self.track.file(self.rate)
        wanted = into.view(np.uint8).data
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(self.offset + first * self.dtype.itemsize)
                got = 0
                while got < len(wanted):
                    count = file.readinto(wanted[got:])
                    if not count:
                        raise TrainingDataError(f"{path} is cut off; delete its folder and prepare again.")
                    got += count
        except OSError as error:
            raise TrainingDataError(f"{path} cannot be read ({error.strerror or error}); prepare again.") from error
        if self.dtype.kind == "f" and not np.isfinite(into).all():
            raise TrainingDataError(f"{path} holds NaN or infinity; delete its folder and prepare again.")


class CropReader:
    """Reader of the crops of a plan; several threads may use one reader at once."""

    def __init__(self, tracks: Sequence[Track], rates: Sequence[int], crop: int, *, pinned: bool) -> None:
        self.rates, self.crop, self.pinned = tuple(rates), crop, pinned
        self._files = [[_File.open(track, rate) for track in tracks] for rate in rates]
        self._channels = [track.channels for track in tracks]
        dtypes = {file.dtype for files in self._files for file in files}
        if len(dtypes) > 1:
            raise TrainingDataError("The cache holds int16 and float32 tracks; prepare all of them alike.")
        self._dtype = torch.int16 if dtypes == {np.dtype(np.int16)} else torch.float32

    def read(self, plan: Plan, counts: NDArray[np.bool_], number: int) -> HostBatch:
        items, stems = plan.tracks.shape
        raw, weights = [], []
        # If no channel was chosen, average two channels; a mono track is read twice.
        width = 1 if plan.channels is not None else 2
        for stage, (files, rate) in enumerate(zip(self._files, self.rates, strict=True)):
            ratio = rate // self.rates[0]
            stored = torch.empty(items, stems, width, self.crop * ratio, dtype=self._dtype, pin_memory=self.pinned)
            weight = np.empty((items, stems, width))
            view = stored.numpy()
            for item in range(items):
                for stem in range(stems):
                    track = int(plan.tracks[item, stem])
                    start = int(plan.starts[item, stem]) * ratio
                    weight[item, stem] = plan.gains[stage, item, stem] * files[track].scale[stem] / width
                    for place in range(width):
                        if plan.channels is not None:
                            channel = int(plan.channels[stage, item, stem])
                        else:
                            channel = place % self._channels[track]
                        files[track].read(stem, channel, start, view[item, stem, place])
            raw.append(stored)
            weights.append(self._small(weight.astype(np.float32)))
        return HostBatch(raw, weights, self._small(counts.copy()), number)

    def _small(self, values: NDArray[Any]) -> Tensor:
        found = torch.from_numpy(values)
        return found.pin_memory() if self.pinned else found
