"""Stems before their gains, and the second pass that applies them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import INSTRUMENTS
from .gains import NormalEquations, residual_shares
from .result import Recipe
from .spool import Spool

__all__ = ["Unscaled"]


@dataclass
class Unscaled:
    """The network's stems at the recording's rate, with all that the second pass needs.

    ``stems`` has ``len(sounding) * 4`` rows, channel by channel in the order of ``sounding``; channels that are not in it are
    silent.
    """

    stems: Spool
    mixture: Spool
    sounding: list[int]
    gains: Tensor
    """(channels, 4), float64."""
    energies: Tensor
    """Of the stems after their gains, (channels, 4), float64."""

    @classmethod
    def solve(cls, stems: Spool, mixture: Spool, sounding: list[int], equations: NormalEquations) -> Unscaled:
        """With the least-squares gains; raises :class:`MetaTasNetError` if the network's output is not finite."""
        gains = torch.zeros(mixture.channels, len(INSTRUMENTS), dtype=torch.float64)
        energies = torch.zeros_like(gains)
        if sounding:
            solution = equations.solve()
            gains[sounding], energies[sounding] = solution, equations.energies(solution)
        return cls(stems, mixture, sounding, gains, energies)

    def outputs(self, recipe: Recipe, consistent: bool) -> Iterator[dict[str, Tensor]]:
        """The outputs of the recipe in consecutive blocks (channels, n), float32; once, as the stems are freed on the way."""
        start, length = 0, self.mixture.length
        blocks = self.stems.drain() if self.sounding else _no_rows(length)
        for block in blocks:
            stop = start + block.shape[1]
            device = block.device
            gains = self.gains[self.sounding].to(device, torch.float32)
            stems = block.view(len(self.sounding), len(INSTRUMENTS), stop - start) * gains[:, :, None]
            if consistent:
                mixture = self.mixture.read(start, stop)[self.sounding].to(device)
                shares = residual_shares(self.energies[self.sounding]).to(device, torch.float32)
                stems = stems + shares[:, :, None] * (mixture - stems.sum(1))[:, None]
            result = {}
            for name, parts in recipe.items():
                rows = [INSTRUMENTS.index(part) for part in parts]
                output = block.new_zeros(self.mixture.channels, stop - start)
                output[self.sounding] = stems[:, rows].sum(1) if len(rows) > 1 else stems[:, rows[0]]
                result[name] = output
            yield result
            start = stop
        assert start == length


def _no_rows(length: int) -> Iterator[Tensor]:
    for start in range(0, length, 2**20):
        yield torch.zeros(0, min(2**20, length - start), dtype=torch.float32)
