"""Stems before their gains, and the second pass that applies them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import MetaTasNetConfig
from .gains import NormalEquations, residual_shares
from .result import Recipe
from .spool import Spool

__all__ = ["Unscaled"]


@dataclass
class Unscaled:
    """The network's stems at the recording's rate, with all that the second pass needs.

    ``stems`` has ``len(sounding) * I`` rows for I instruments, channel by channel in the order of ``sounding``; channels that
    are not in it are silent.
    """

    stems: Spool
    mixture: Spool
    sounding: list[int]
    gains: Tensor
    """(channels, I), float64."""
    energies: Tensor
    """Energies of the stems after their gains, (channels, I), float64."""
    config: MetaTasNetConfig
    """Settings of the network, for its instruments."""

    @classmethod
    def solve(
        cls, stems: Spool, mixture: Spool, sounding: list[int], equations: NormalEquations, config: MetaTasNetConfig
    ) -> Unscaled:
        """With the least-squares gains; raises :class:`MetaTasNetError` if the network's output is not finite."""
        gains = torch.zeros(mixture.channels, len(config.instruments), dtype=torch.float64)
        energies = torch.zeros_like(gains)
        if sounding:
            solution = equations.solve()
            gains[sounding], energies[sounding] = solution, equations.energies(solution)
        return cls(stems, mixture, sounding, gains, energies, config)

    def gains_by_name(self) -> dict[str, list[float]]:
        """For every instrument the gain of each channel."""
        return {name: self.gains[:, index].tolist() for index, name in enumerate(self.config.instruments)}

    def outputs(self, recipe: Recipe, consistent: bool) -> Iterator[dict[str, Tensor]]:
        """The outputs of the recipe in consecutive blocks (channels, n), float32; once, as the stems are freed on the way."""
        start, length = 0, self.mixture.length
        instruments, competing = self.config.instruments, len(self.config.instruments) - self.config.added_instruments
        blocks = self.stems.drain() if self.sounding else _no_rows(length)
        for block in blocks:
            stop = start + block.shape[1]
            device = block.device
            gains = self.gains[self.sounding].to(device, torch.float32)
            stems = block.view(len(self.sounding), len(instruments), stop - start) * gains[:, :, None]
            if consistent:
                mixture = self.mixture.read(start, stop)[self.sounding].to(device)
                shares = residual_shares(self.energies[self.sounding, :competing]).to(device, torch.float32)
                residual = (mixture - stems[:, :competing].sum(1))[:, None]
                stems = torch.cat([stems[:, :competing] + shares[:, :, None] * residual, stems[:, competing:]], dim=1)
            result = {}
            for name, parts in recipe.items():
                rows = [instruments.index(part) for part in parts]
                output = block.new_zeros(self.mixture.channels, stop - start)
                output[self.sounding] = stems[:, rows].sum(1) if len(rows) > 1 else stems[:, rows[0]]
                result[name] = output
            yield result
            start = stop
        assert start == length


def _no_rows(length: int) -> Iterator[Tensor]:
    for start in range(0, length, 2**20):
        yield torch.zeros(0, min(2**20, length - start), dtype=torch.float32)
