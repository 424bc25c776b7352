"""Group norm of PReLU(x), forward and backward, on (n, 4, frames, channels)."""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import activation, group_norm_backward, wide

__all__ = ["backward", "forward"]


def forward(x: Tensor, slope: Tensor, affine: Tensor, beta: Tensor) -> Tensor:
    """y = norm(PReLU(x)), rounded to the dtype of ``x``."""
    z = activation(x, slope)
    return ((z - affine[:, :, None, 2]) * affine[:, :, None, 0] + beta.to(z.dtype)[:, None]).to(x.dtype)


def backward(
    dy: Tensor, x: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dslope, dgamma, dbeta."""
    dz, dgamma, dbeta = group_norm_backward(dy.to(wide(x.dtype)), activation(x, slope), affine, gamma)
    wide_x = x.to(dz.dtype)
    dslope = torch.where(wide_x > 0, 0, dz * wide_x).sum().reshape(1)
    return torch.where(wide_x > 0, dz, slope.to(dz.dtype) * dz).to(x.dtype), dslope, dgamma, dbeta
