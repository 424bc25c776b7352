"""PReLU, group norm, dilated depthwise convolution, PReLU; forward and backward, on (n, 4, frames, channels)."""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import activation, group_norm_backward, wide

__all__ = ["backward", "forward"]


def _shift(v: Tensor, frames: int) -> Tensor:
    """``v[t + frames]``, zero where that is outside the signal."""
    length = v.shape[2]
    shifted = torch.zeros_like(v)
    if abs(frames) < length:
        shifted[:, :, max(0, -frames) : length - max(0, frames)] = v[:, :, max(0, frames) : length - max(0, -frames)]
    return shifted


def _convolved(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    z = activation(x, slope)
    m = (z - affine[:, :, None, 2]) * affine[:, :, None, 0] + beta.to(z.dtype)[:, None]
    taps = weight.to(z.dtype)[:, None]
    a = sum((taps[..., k] * _shift(m, (k - 1) * dilation) for k in range(3)), torch.zeros_like(m))
    return z, m, a


def forward(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, beta: Tensor, next_slope: Tensor
) -> Tensor:
    """y = PReLU(conv(norm(PReLU(x)))), rounded to the dtype of ``x``."""
    a = _convolved(x, weight, dilation, slope, affine, beta)[2]
    return torch.where(a > 0, a, next_slope.to(a.dtype) * a).to(x.dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    dilation: int,
    slope: Tensor,
    affine: Tensor,
    gamma: Tensor,
    beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dw (4, C, 3), dslope, dgamma, dbeta, dnext_slope."""
    dy = dy.to(wide(x.dtype))
    z, m, a = _convolved(x, weight, dilation, slope, affine, beta)
    dnext_slope = torch.where(a > 0, 0, dy * a).sum().reshape(1)
    da = torch.where(a > 0, dy, next_slope.to(dy.dtype) * dy)
    dw = torch.stack([(da * _shift(m, (k - 1) * dilation)).sum((0, 2)) for k in range(3)], dim=2)
    taps = weight.to(dy.dtype)[:, None]
    dm = sum((_shift(taps[..., k] * da, -(k - 1) * dilation) for k in range(3)), torch.zeros_like(m))
    dz, dgamma, dbeta = group_norm_backward(dm, z, affine, gamma)
    wide_x = x.to(dz.dtype)
    dslope = torch.where(wide_x > 0, 0, dz * wide_x).sum().reshape(1)
    dx = torch.where(wide_x > 0, dz, slope.to(dz.dtype) * dz)
    return dx.to(x.dtype), dw, dslope, dgamma, dbeta, dnext_slope
