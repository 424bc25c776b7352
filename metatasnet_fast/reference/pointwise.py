"""PReLU, group norm and 1x1 convolution per instrument, forward and backward, on (n, 4, frames, channels)."""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import activation, group_norm_backward, wide

__all__ = ["backward", "forward"]


def _normalised(x: Tensor, slope: Tensor | None, affine: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    z = activation(x, slope)
    if affine is None or beta is None:
        return z, z
    return z, (z - affine[:, :, None, 2]) * affine[:, :, None, 0] + beta.to(z.dtype)[:, None]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: Tensor | None,
    affine: Tensor | None,
    beta: Tensor | None,
) -> Tensor:
    """y = W norm(PReLU(x)) + bias + residual, rounded to the dtype of ``x``."""
    m = _normalised(x, slope, affine, beta)[1]
    y = torch.einsum("nitc,ioc->nito", m, weight.to(m.dtype))
    y = y if bias is None else y + bias.to(y.dtype)[:, None]
    return (y if residual is None else y + residual).to(x.dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    affine: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dW, dbias, dslope, dgamma, dbeta."""
    dy = dy.to(wide(x.dtype))
    z, m = _normalised(x, slope, affine, beta)
    dw = torch.einsum("nito,nitc->ioc", dy, m)
    dz = torch.einsum("nito,ioc->nitc", dy, weight.to(dy.dtype))
    dgamma, dbeta = None, None
    if affine is not None and gamma is not None:
        dz, dgamma, dbeta = group_norm_backward(dz, z, affine, gamma)
    wide_x = x.to(dz.dtype)
    dslope = None if slope is None else torch.where(wide_x > 0, 0, dz * wide_x).sum().reshape(1)
    dx = dz if slope is None else torch.where(wide_x > 0, dz, slope.to(dz.dtype) * dz)
    return dx.to(x.dtype), dw, dy.sum((0, 2)), dslope, dgamma, dbeta
