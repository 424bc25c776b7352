"""Reading a batch's crops from the cache into host memory, as they are stored.

Plain reads, straight into the batch: they copy once, without the page faults of memory-mapped access, without keeping a file
open for each track, and without the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import TrainingDataError
from .cache import Track
from .crops import Plan

__all__ = ["CropReader", "HostBatch"]


@dataclass(frozen=True)
class HostBatch:
    """A batch before scaling, in host memory."""

    raw: list[Tensor]
    """(items, S, channels, T_stage) for each stage, of S instruments, as stored; one channel if one was chosen."""
    weights: list[Tensor]
    """(items, S, channels), float32, for each stage: the factors of the stored samples."""
    counts: Tensor
    """(items, S) bool."""
    number: int


@dataclass(frozen=True)
class _File:
    """The samples of one track at one rate."""

    track: Track
    rate: int
    offset: int
    dtype: np.dtype[np.generic]
    samples: int
    scale: NDArray[np.float64]
    """(S,): from stored units to units of the track's deviation."""

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
    """Reads the crops of plans; several threads may use it at once."""

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
