"""Group norm: the statistics of an activation, the affine (scale and shift) that follows from them, and the norm itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import GROUPS
from ..errors import ShapeError
from .operator import (
    check_activation,
    check_norm,
    check_parameter,
    differentiable,
    kernels,
    operator,
    tile,
    unit_stride,
    wide,
)

__all__ = ["GroupNorm", "group_affine", "group_norm", "group_statistics"]

EPSILON = 1e-8
"""The number that is added to the biased variance of every group."""


class GroupNorm(NamedTuple):
    """A group norm of an activation whose statistics are known: 8 groups per instrument, eps 1e-8, biased variance.

    ``statistics`` (n, I, tiles, 2, C) come from the operation that made the activation. ``gamma`` and ``beta`` are (I, C).
    """

    statistics: Tensor
    gamma: Tensor
    beta: Tensor


def group_statistics(x: Tensor, slope: Tensor | None = None) -> Tensor:
    """Return mean and sum of squared deviations of PReLU(x), for each channel and each tile of 128 frames.

    This is needed only if no operation of this package made the activation: operations return the statistics of their results.
    The statistics carry no gradient: the operation that applies the norm returns the whole gradient.

    Args:
        x: (n, I, frames, C) for I instruments, float32, bfloat16, float16; on a CPU also float64.
        slope: (1,), slope of the PReLU; None to leave the PReLU out.

    Returns:
        (n, I, tiles, 2, C), float32 (float64 if ``x`` is).

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
    """
    check_activation("x", x)
    check_parameter("slope", slope, (1,), x)
    found: Tensor = _group_statistics(x.detach(), None if slope is None else slope.detach())
    return found


def group_affine(norm: GroupNorm, frames: int) -> Tensor:
    """Return the rows (scale, shift, mean, rstd) for each item, instrument and channel: norm(z) = scale z + shift.

    scale = gamma rstd, shift = beta - scale mean, rstd = (variance + 1e-8)^(-1/2). The rows carry no gradient.

    Args:
        norm: the statistics and the parameters of the norm.
        frames: the number of frames of the activation, which the statistics do not contain.

    Returns:
        (n, I, 4, C), of the dtype of the statistics.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
    """
    statistics = norm.statistics
    if statistics.dim() != 5 or statistics.shape[3] != 2 or statistics.shape[4] % GROUPS:
        raise ShapeError(f"statistics must be (n, I, tiles, 2, a multiple of {GROUPS}), got {tuple(statistics.shape)}.")
    if frames < 1 or statistics.shape[2] != -(-frames // tile()):
        raise ShapeError(f"{frames} frames do not have {statistics.shape[2]} tiles of {tile()}.")
    shape = (statistics.shape[1], statistics.shape[4])
    check_parameter("gamma", norm.gamma, shape, statistics)
    check_parameter("beta", norm.beta, shape, statistics)
    found: Tensor = _group_affine(statistics.detach(), norm.gamma.detach(), norm.beta.detach(), frames)
    return found


def group_norm(x: Tensor, slope: Tensor, norm: GroupNorm) -> Tensor:
    """Return y = gamma (PReLU(x, slope) - mean) / sqrt(variance + 1e-8) + beta, with 8 groups per instrument.

    This operation is for the start of the residual stream, where the norm cannot be folded into a product. It is differentiable
    once, in all inputs except the statistics.

    Args:
        x: (n, I, frames, C), float32, bfloat16, float16; on a CPU also float64.
        slope: (1,), slope of the PReLU on ``x``.
        norm: group norm of PReLU(x), with the statistics of PReLU(x).

    Returns:
        (n, I, frames, C) in the dtype of ``x``.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    check_parameter("slope", slope, (1,), x)
    check_norm(norm, x)
    y: Tensor = _group_norm(x, slope, *norm)[0]
    return y


# Several operations share the arithmetic below. Sums are taken in the dtype of `wide`.


def activation(x: Tensor, slope: Tensor | None) -> Tensor:
    """Return PReLU of ``x``, rounded to the dtype of ``x``, in the dtype of :func:`wide`."""
    z = x.to(wide(x.dtype))
    return z if slope is None else torch.where(z > 0, z, slope.to(z.dtype) * z).to(x.dtype).to(z.dtype)


def activation_backward(dz: Tensor, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return dx in x's dtype and dslope (1,), given ``dz``, the gradient of PReLU(x)."""
    wide_x = x.to(dz.dtype)
    dslope = torch.where(wide_x > 0, 0, dz * wide_x).sum().reshape(1)
    return torch.where(wide_x > 0, dz, slope.to(dz.dtype) * dz).to(x.dtype), dslope


def tile_statistics(z: Tensor) -> Tensor:
    """Return mean and sum of squared deviations of ``z``, for each channel and tile of frames: (n, I, tiles, 2, C)."""
    frames, width = z.shape[2], tile()
    tiles = -(-frames // width)
    parts = F.pad(z, (0, 0, 0, tiles * width - frames)).unflatten(2, (tiles, width))
    counts = _frames_of_tiles(frames, tiles, z)
    means = parts.sum(3) / counts
    inside = torch.arange(width, device=z.device)[:, None] < counts[:, None]
    squares = torch.where(inside, parts - means[:, :, :, None], 0).square().sum(3)
    return torch.stack([means, squares], dim=3)


def _frames_of_tiles(frames: int, tiles: int, like: Tensor) -> Tensor:
    """Return the number of frames of each tile, (tiles, 1); the last tile may have fewer."""
    found = (frames - tile() * torch.arange(tiles, device=like.device)).clamp(max=tile()).to(like.dtype)
    return found[:, None]


def affine_of(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int) -> Tensor:
    """Return the rows of :func:`group_affine`, (n, I, 4, C), from the statistics of the tiles."""
    tiles, channels = statistics.shape[2], statistics.shape[4]
    means, squares = statistics.unflatten(4, (GROUPS, channels // GROUPS)).unbind(3)
    elements = frames * (channels // GROUPS)
    count = _frames_of_tiles(frames, tiles, statistics)[:, None]
    mean = (count * means).sum((2, 4), keepdim=True) / elements
    variance = (squares + count * (means - mean).square()).sum((2, 4)) / elements
    rstd = (variance + EPSILON).rsqrt().repeat_interleave(channels // GROUPS, dim=2)
    mean = mean.flatten(2).repeat_interleave(channels // GROUPS, dim=2)
    scale = gamma.to(rstd.dtype) * rstd
    return torch.stack([scale, beta.to(rstd.dtype) - scale * mean, mean, rstd], dim=2)


def normalise(z: Tensor, affine: Tensor, beta: Tensor) -> Tensor:
    """Return the norm of ``z`` (n, I, frames, C). The mean is subtracted before scaling, so that an offset costs no digits."""
    return (z - affine[:, :, None, 2]) * affine[:, :, None, 0] + beta.to(z.dtype)[:, None]


def normalise_backward(dm: Tensor, z: Tensor, affine: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of z (n, I, frames, C), gamma and beta (I, C each), given ``dm``, the gradient of
    m = gamma (z - mean) rstd + beta."""
    mean, rstd = affine[:, :, None, 2], affine[:, :, None, 3]
    normal = (z - mean) * rstd
    dnormal = dm * gamma.to(dm.dtype)[:, None]

    def group_mean(v: Tensor) -> Tensor:
        means: Tensor = v.unflatten(3, (GROUPS, -1)).mean((2, 4))
        return means.repeat_interleave(v.shape[3] // GROUPS, dim=2)[:, :, None]

    dz = rstd * (dnormal - group_mean(dnormal) - normal * group_mean(dnormal * normal))
    return dz, (dm * normal).sum((0, 2)), dm.sum((0, 2))


def affine_by_kernel(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int) -> Tensor:
    """Return what :func:`affine_of` returns, computed by the Triton kernel."""
    launcher = kernels("statistics", statistics.dtype).group_affine
    found: Tensor = launcher(statistics.contiguous(), gamma.contiguous(), beta.contiguous(), frames)
    return found


def _statistics_kernel(x: Tensor, slope: Tensor | None) -> Tensor:
    found: Tensor = kernels("statistics", x.dtype).group_statistics(unit_stride(x), slope)
    return found


@operator("group_statistics", _statistics_kernel)
def _group_statistics(x: Tensor, slope: Tensor | None) -> Tensor:
    return tile_statistics(activation(x, slope))


@operator("group_affine", affine_by_kernel)
def _group_affine(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int) -> Tensor:
    return affine_of(statistics, gamma, beta, frames)


def _norm_kernel(x: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    affine = affine_by_kernel(statistics, gamma, beta, x.shape[2])
    launcher = kernels("group_norm", x.dtype).group_norm_forward
    return launcher(unit_stride(x), slope, affine, beta.contiguous()), affine


@operator("group_norm", _norm_kernel)
def _group_norm(x: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    affine = affine_of(statistics, gamma, beta, x.shape[2])
    return normalise(activation(x, slope), affine, beta).to(x.dtype), affine


def _norm_backward_kernel(
    dy: Tensor, x: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    launcher = kernels("group_norm", x.dtype).group_norm_backward
    found: tuple[Tensor, Tensor, Tensor, Tensor] = launcher(unit_stride(dy), unit_stride(x), slope, affine)
    return found


@operator("group_norm_backward", _norm_backward_kernel)
def _group_norm_backward(
    dy: Tensor, x: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dz, dgamma, dbeta = normalise_backward(dy.to(wide(x.dtype)), activation(x, slope), affine, gamma)
    dx, dslope = activation_backward(dz, x, slope)
    return dx, dslope, dgamma, dbeta


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, slope, _, gamma, beta = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, slope, output[1], gamma, beta)


def _differentiate(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, slope, affine, gamma, beta = ctx.saved_tensors
    dx, dslope, dgamma, dbeta = _group_norm_backward(dy, x, slope, affine, gamma)
    return dx, dslope.to(slope.dtype), None, dgamma.to(gamma.dtype), dbeta.to(beta.dtype)


differentiable(_group_norm, _differentiate, _save, _group_norm_backward)
