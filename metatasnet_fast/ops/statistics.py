"""Statistics of an activation, and the scale and shift of a group norm from them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..config import GROUPS
from ..errors import ShapeError
from ..reference import statistics as plain
from .library import check_activation, check_parameter, kernels, register, tile, unit_stride

__all__ = ["GroupNorm", "group_affine", "group_statistics"]


class GroupNorm(NamedTuple):
    """A group norm, 8 groups an instrument, eps 1e-8, biased variance, of an activation whose statistics are known.

    ``statistics`` (n, 4, tiles, 2, C) from the operation that made the activation; ``gamma``, ``beta`` (4, C).
    """

    statistics: Tensor
    gamma: Tensor
    beta: Tensor


def group_statistics(x: Tensor, slope: Tensor | None = None) -> Tensor:
    """Mean and sum of squared deviations of PReLU(x), per channel and 128 frames.

    Only for an activation that no operation of this package made: the others return theirs. Carries no gradient: the
    operation that applies the norm returns all of it.

    Args:
        x: (n, 4, frames, C), float32, bfloat16, float16; on a CPU also float64.
        slope: (1,), of the PReLU; None for none.

    Returns:
        (n, 4, tiles, 2, C), float32.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
    """
    check_activation("x", x)
    check_parameter("slope", slope, (1,), x)
    found: Tensor = _group_statistics(x.detach(), None if slope is None else slope.detach())
    return found


def group_affine(norm: GroupNorm, frames: int) -> Tensor:
    """Rows (scale, shift, mean, rstd) for each item, instrument and channel: norm(z) = scale z + shift.

    scale = gamma rstd, shift = beta - scale mean, rstd = (variance + 1e-8)^(-1/2). Carries no gradient.

    Args:
        norm: statistics and parameters.
        frames: of the activation, which the statistics do not hold.

    Returns:
        (n, 4, 4, C), float32.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
    """
    statistics = norm.statistics
    if statistics.dim() != 5 or statistics.shape[1] != 4 or statistics.shape[3] != 2 or statistics.shape[4] % GROUPS:
        raise ShapeError(f"statistics must be (n, 4, tiles, 2, a multiple of {GROUPS}), got {tuple(statistics.shape)}.")
    if frames < 1 or statistics.shape[2] != -(-frames // tile()):
        raise ShapeError(f"{frames} frames do not have {statistics.shape[2]} tiles of {tile()}.")
    check_parameter("gamma", norm.gamma, (4, statistics.shape[4]), statistics)
    check_parameter("beta", norm.beta, (4, statistics.shape[4]), statistics)
    found: Tensor = _group_affine(statistics.detach(), norm.gamma.detach(), norm.beta.detach(), frames)
    return found


def _statistics_kernel(x: Tensor, slope: Tensor | None) -> Tensor:
    found: Tensor = kernels("statistics", x.dtype).group_statistics(unit_stride(x), slope)
    return found


def _statistics_reference(x: Tensor, slope: Tensor | None) -> Tensor:
    return plain.tile_statistics(plain.activation(x, slope), tile())


def _statistics_fake(x: Tensor, slope: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], 4, -(-x.shape[2] // tile()), 2, x.shape[3], dtype=plain.wide(x.dtype))


def _affine_kernel(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int) -> Tensor:
    launcher = kernels("statistics", statistics.dtype).group_affine
    found: Tensor = launcher(statistics.contiguous(), gamma.contiguous(), beta.contiguous(), frames)
    return found


def _affine_reference(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int) -> Tensor:
    return plain.group_affine(statistics, gamma, beta, frames, tile())


def _affine_fake(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int) -> Tensor:
    return statistics.new_empty(statistics.shape[0], 4, 4, statistics.shape[4])


_group_statistics = register(
    "group_statistics(Tensor x, Tensor? slope) -> Tensor", _statistics_kernel, _statistics_reference, _statistics_fake
)
_group_affine = register(
    "group_affine(Tensor statistics, Tensor gamma, Tensor beta, SymInt frames) -> Tensor",
    _affine_kernel,
    _affine_reference,
    _affine_fake,
)
