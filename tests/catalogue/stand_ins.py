"""Devices whose behaviour is plain to see, in the network's place."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metatasnet_fast.config import MetaTasNetConfig
from tests.support import TINY

__all__ = ["SleepingDevice", "SmallDevice"]


def tenths(mix: Tensor) -> Tensor:
    """Stem i is (i + 1) / 10 of the mixture: (b, 1, n) to (b, 4, 1, n)."""
    return torch.tensor([0.1, 0.2, 0.3, 0.4])[None, :, None, None] * mix[:, None]


@dataclass
class SleepingDevice:
    """Takes ``seconds`` for a window, computes nothing, and notes the batches that it gets."""

    seconds: float = 0.0
    config: MetaTasNetConfig = TINY
    batches: list[tuple[int, int]] = field(default_factory=list)
    """(windows, samples) of each."""

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        (last,) = wanted
        self.batches.append((mixes[last].shape[0], mixes[last].shape[-1]))
        time.sleep(self.seconds * mixes[last].shape[0])
        return {last: tenths(mixes[last])}


@dataclass
class SmallDevice(SleepingDevice):
    """Has memory for ``fits`` windows."""

    fits: int = 3

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        if mixes[0].shape[0] > self.fits:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {mixes[0].shape[0]} windows")
        return super().separate(mixes, wanted)


@dataclass
class GatedDevice(SleepingDevice):
    """Waits at its first window until ``gate`` opens."""

    gate: threading.Event = field(default_factory=threading.Event)

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        assert self.gate.wait(30)
        return super().separate(mixes, wanted)
