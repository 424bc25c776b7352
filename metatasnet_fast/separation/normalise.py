"""The standard deviation of a signal that arrives in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SILENCE", "RunningDeviation", "usable_deviation"]

SILENCE = 1e-30
"""A peak or a standard deviation up to this counts as none: dividing by it would overflow float32."""


class RunningDeviation:
    """``x.std(dim=-1)`` (unbiased) of all (channels, n) blocks together.

    Count, mean and sum of squared deviations are merged block by block in float64, so that a large constant part costs no
    accuracy. Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, block: Tensor) -> None:
        count = block.shape[-1]
        if count == 0:
            return
        wide = (block.cpu() if block.device.type == "mps" else block).double()
        variance, mean = (x.cpu() for x in torch.var_mean(wide, dim=-1, correction=0))
        total = self._count + count
        delta = mean - self._mean
        self._mean += delta * (count / total)
        self._squares += variance * count + delta.square() * (self._count * count / total)
        self._count = total

    def deviation(self) -> Tensor:
        """(channels,), float64; 0 for fewer than two samples."""
        return (self._squares / max(1, self._count - 1)).sqrt()


def usable_deviation(deviation: Tensor) -> Tensor:
    """A divisor: the deviation, or 1 where there is none (silence, a constant, a single sample)."""
    return torch.where(deviation > SILENCE, deviation, torch.ones_like(deviation))
