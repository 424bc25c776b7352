"""The gains with which the stems' sum comes closest to the recording, and what is left of it.

Per channel, over the whole recording, the four gains g minimise ``sum_t (mix_t - sum_i g_i stem_it)^2``. They solve the normal
equations ``G g = c`` with ``G_ij = sum_t stem_it stem_jt`` and ``c_i = sum_t stem_it mix_t``, which are sums over blocks.

Source: the authors' ``evaluate.py``, which calls ``numpy.linalg.lstsq``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MetaTasNetError

__all__ = ["NormalEquations", "residual_shares"]

RANK_TOLERANCE = 1e-12
"""Directions of the stems' correlation matrix below this share of the largest count as linearly dependent; well above the
rounding of float64 sums, far below any correlation of real stems."""


class NormalEquations:
    """``G`` (channels, 4, 4) and ``c`` (channels, 4), accumulated in float64."""

    def __init__(self, channels: int, stems: int = 4) -> None:
        self.gram = torch.zeros(channels, stems, stems, dtype=torch.float64)
        self.cross = torch.zeros(channels, stems, dtype=torch.float64)

    def add(self, stems: Tensor, mixture: Tensor) -> None:
        """Take (channels, 4, n) samples of the stems and (channels, n) of the mixture."""
        if stems.device.type == "mps":
            stems, mixture = stems.cpu(), mixture.cpu()
        wide = stems.double()
        self.gram += (wide @ wide.transpose(1, 2)).cpu()
        self.cross += (wide @ mixture.to(wide).unsqueeze(-1)).squeeze(-1).cpu()

    def solve(self) -> Tensor:
        """The gains, (channels, 4), float64.

        The equations are scaled to a unit diagonal first, as the stems' levels are arbitrary. Of linearly dependent stems
        the solution of least norm (in that scale) is taken; a silent stem gets 0, and so do all of a silent channel.

        Raises:
            MetaTasNetError: if a stem is not finite.
        """
        if not (self.gram.isfinite().all() and self.cross.isfinite().all()):
            raise MetaTasNetError(
                "The network's output is not finite: separate with dtype='float32', or check the weights."
            )
        level = self.gram.diagonal(dim1=1, dim2=2).sqrt()
        inverse = torch.where(level > 0, 1 / level, 0.0)
        values, vectors = torch.linalg.eigh(self.gram * inverse[:, :, None] * inverse[:, None, :])
        keep = values > RANK_TOLERANCE * values.amax(-1, keepdim=True)
        reciprocal = torch.where(keep, 1 / values, 0.0)
        projected = (vectors.transpose(1, 2) @ (self.cross * inverse).unsqueeze(-1)).squeeze(-1)
        gains: Tensor = (vectors @ (projected * reciprocal).unsqueeze(-1)).squeeze(-1) * inverse
        return gains

    def energies(self, gains: Tensor) -> Tensor:
        """Energy of every stem after its gain, (channels, 4)."""
        return self.gram.diagonal(dim1=1, dim2=2) * gains.square()


def residual_shares(energies: Tensor) -> Tensor:
    """Share of the residual ``mix - sum_i g_i stem_i`` that each stem gets: its share of the energy, (channels, 4).

    So a stem that does not sound stays silent. If none sounds, all get the same.
    """
    total = energies.sum(-1, keepdim=True)
    equal = torch.full_like(energies, 1 / energies.shape[-1])
    return torch.where(total > 0, energies / total, equal)
