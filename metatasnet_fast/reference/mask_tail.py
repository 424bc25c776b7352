"""Group norm of PReLU(m), softmax over the instruments, product with the latent, on (n, 4, frames, channels)."""

from __future__ import annotations

import torch
from torch import Tensor

from .statistics import activation, group_norm_backward, wide

__all__ = ["backward", "forward"]


def _masks(m: Tensor, slope: Tensor, affine: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    z = activation(m, slope)
    u = (z - affine[:, :, None, 2]) * affine[:, :, None, 0] + beta.to(z.dtype)[:, None]
    return z, u.softmax(1)


def forward(m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, beta: Tensor) -> Tensor:
    """y = softmax(norm(PReLU(m))) latent, rounded to the dtype of ``m``; ``latent`` (n, 1, frames, channels)."""
    return (_masks(m, slope, affine, beta)[1] * latent).to(m.dtype)


def backward(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dm, dlatent, dslope, dgamma, dbeta."""
    dy = dy.to(wide(m.dtype))
    z, p = _masks(m, slope, affine, beta)
    dlatent = (dy * p).sum(1, keepdim=True)
    g = dy * latent
    du = p * (g - (g * p).sum(1, keepdim=True))
    dz, dgamma, dbeta = group_norm_backward(du, z, affine, gamma)
    wide_m = m.to(dz.dtype)
    dslope = torch.where(wide_m > 0, 0, dz * wide_m).sum().reshape(1)
    dm = torch.where(wide_m > 0, dz, slope.to(dz.dtype) * dz)
    return dm.to(m.dtype), dlatent.to(latent.dtype), dslope, dgamma, dbeta
