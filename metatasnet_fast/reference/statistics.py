"""Group-norm statistics as the fused operations pass them on, and the backward of the norm they describe.

Activations are (n, 4, frames, channels) here, as the fused operations hold them. Sums are taken in :func:`wide`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import GROUPS
from .masking import EPSILON

__all__ = ["activation", "group_affine", "group_norm_backward", "tile_statistics", "wide"]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over values of ``dtype``: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def activation(x: Tensor, slope: Tensor | None) -> Tensor:
    """PReLU of ``x``, rounded to its dtype, in :func:`wide`."""
    z = x.to(wide(x.dtype))
    return z if slope is None else torch.where(z > 0, z, slope.to(z.dtype) * z).to(x.dtype).to(z.dtype)


def tile_statistics(z: Tensor, tile: int) -> Tensor:
    """Mean and sum of squared deviations per channel over every ``tile`` frames: (n, 4, tiles, 2, C)."""
    parts = z.split(tile, dim=2)
    means = torch.stack([part.mean(2) for part in parts], dim=2)
    squares = [(part - part.mean(2, keepdim=True)).square().sum(2) for part in parts]
    return torch.stack([means, torch.stack(squares, dim=2)], dim=3)


def group_affine(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int, tile: int) -> Tensor:
    """Scale, shift, mean and 1 / standard deviation of each channel's group: (n, 4, 4, C), from tile statistics."""
    n, _, tiles, _, channels = statistics.shape
    count = (frames - tile * torch.arange(tiles, device=statistics.device)).clamp(max=tile).to(statistics.dtype)
    means, squares = statistics.view(n, 4, tiles, 2, GROUPS, channels // GROUPS).unbind(3)
    elements = frames * (channels // GROUPS)
    count = count[:, None, None]
    mean = (count * means).sum((2, 4), keepdim=True) / elements
    variance = (squares + count * (means - mean).square()).sum((2, 4)) / elements
    rstd = (variance + EPSILON).rsqrt().repeat_interleave(channels // GROUPS, dim=2)
    mean = mean.flatten(2).repeat_interleave(channels // GROUPS, dim=2)
    scale = gamma.to(rstd.dtype) * rstd
    return torch.stack([scale, beta.to(rstd.dtype) - scale * mean, mean, rstd], dim=2)


def group_norm_backward(dm: Tensor, z: Tensor, affine: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of z, gamma and beta, given the gradient of m = gamma (z - mean) rstd + beta; (n, 4, frames, C)."""
    mean, rstd = affine[:, :, None, 2], affine[:, :, None, 3]
    normal = (z - mean) * rstd
    dnormal = dm * gamma.to(dm.dtype)[:, None]

    def group_mean(v: Tensor) -> Tensor:
        means = v.view(*v.shape[:3], GROUPS, -1).mean((2, 4))
        return means.repeat_interleave(v.shape[3] // GROUPS, dim=2)[:, :, None]

    dz = rstd * (dnormal - group_mean(dnormal) - normal * group_mean(dnormal * normal))
    return dz, (dm * normal).sum((0, 2)), dm.sum((0, 2))
