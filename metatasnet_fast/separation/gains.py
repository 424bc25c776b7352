"""The gains of the stems of a whole recording, measured block by block.

The gains bring the sum of the stems closest to the recording: per channel, over the whole recording, they minimise
``sum_t (mix_t - sum_i g_i stem_it)^2``. They solve the normal equations ``G g = c`` with ``G_ij = sum_t stem_it stem_jt`` and
``c_i = sum_t stem_it mix_t``, which are sums over blocks.

Instruments that were added to a trained network are also in its older stems, so the sum of all stems has no meaning.
Each added stem gets the gain that brings it alone closest to the recording, and the older stems get the same gains as
without the added ones.

Source: the authors' ``evaluate.py``, which calls ``numpy.linalg.lstsq``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MetaTasNetError

__all__ = ["SILENCE", "NormalEquations", "residual_shares", "safe_std"]

SILENCE = 1e-30
"""A peak or a standard deviation up to this counts as zero: dividing by it would overflow float32."""

RANK_TOLERANCE = 1e-12
"""Directions of the stems' correlation matrix below this share of the largest count as linearly dependent. It is well
above the rounding of float64 sums, and far below any correlation of real stems."""


class NormalEquations:
    """Normal equations of the gains of I stems, in float64: matrices ``G`` (channels, I, I) and right sides ``c``
    (channels, I).

    Args:
        channels: of the recording.
        stems: I.
        added: how many of the last stems are of added instruments.
    """

    def __init__(self, channels: int, stems: int, added: int = 0) -> None:
        self.competing = stems - added
        self.gram = torch.zeros(channels, stems, stems, dtype=torch.float64)
        self.cross = torch.zeros(channels, stems, dtype=torch.float64)

    def add(self, stems: Tensor, mixture: Tensor) -> None:
        """Take (channels, I, n) samples of the stems and (channels, n) of the mixture."""
        if stems.device.type == "mps":
            stems, mixture = stems.cpu(), mixture.cpu()
        wide = stems.double()
        self.gram += (wide @ wide.transpose(1, 2)).cpu()
        self.cross += (wide @ mixture.to(wide).unsqueeze(-1)).squeeze(-1).cpu()

    def solve(self) -> Tensor:
        """Solve for the gains, (channels, I), float64.

        The equations are scaled to a unit diagonal first, because the stems' levels are arbitrary. If stems are linearly
        dependent, the solution of least norm (in that scale) is taken. Silent stems and all stems of a silent channel get 0.

        Raises:
            MetaTasNetError: if a stem is not finite.
        """
        if not (self.gram.isfinite().all() and self.cross.isfinite().all()):
            raise MetaTasNetError(
                "The network's output is not finite: separate with dtype='float32', or check the weights."
            )
        first = slice(0, self.competing)
        together = _least_squares(self.gram[:, first, first], self.cross[:, first])
        energy, cross = self.gram.diagonal(dim1=1, dim2=2)[:, self.competing :], self.cross[:, self.competing :]
        return torch.cat([together, torch.where(energy > 0, cross / energy, 0.0)], dim=1)

    def energies(self, gains: Tensor) -> Tensor:
        """Return the energy of every stem after its gain, (channels, I); 0 for added instruments, which get no residual."""
        energies = self.gram.diagonal(dim1=1, dim2=2) * gains.square()
        energies[:, self.competing :] = 0
        return energies


def _least_squares(gram: Tensor, cross: Tensor) -> Tensor:
    level = gram.diagonal(dim1=1, dim2=2).sqrt()
    inverse = torch.where(level > 0, 1 / level, 0.0)
    values, vectors = torch.linalg.eigh(gram * inverse[:, :, None] * inverse[:, None, :])
    keep = values > RANK_TOLERANCE * values.amax(-1, keepdim=True)
    reciprocal = torch.where(keep, 1 / values, 0.0)
    projected = (vectors.transpose(1, 2) @ (cross * inverse).unsqueeze(-1)).squeeze(-1)
    gains: Tensor = (vectors @ (projected * reciprocal).unsqueeze(-1)).squeeze(-1) * inverse
    return gains


def residual_shares(energies: Tensor) -> Tensor:
    """Return each stem's share of the residual ``mix - sum_i g_i stem_i``: its share of the energy, (channels, I).

    So a stem that is silent stays silent. If all are silent, all get equal shares.
    """
    total = energies.sum(-1, keepdim=True)
    equal = torch.full_like(energies, 1 / energies.shape[-1])
    return torch.where(total > 0, energies / total, equal)


def safe_std(deviation: Tensor) -> Tensor:
    """Return a deviation to divide by; 1 where there is none (silence, a constant, a single sample)."""
    return torch.where(deviation > SILENCE, deviation, torch.ones_like(deviation))
