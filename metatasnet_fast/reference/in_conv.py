"""The masking network's first 1x1 convolution: two operands side by side, the first perhaps shared by the instruments."""

from __future__ import annotations

import torch
from torch import Tensor

from . import pointwise

__all__ = ["backward", "concatenated", "forward"]


def concatenated(x: Tensor, v: Tensor | None) -> Tensor:
    """(n, 4, frames, K1 + K2) from ``x`` (n, 1 or 4, frames, K1) and ``v`` (n, 4, frames, K2)."""
    x = x.expand(-1, 4, -1, -1)
    return x if v is None else torch.cat([x, v], dim=3)


def forward(x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, beta: Tensor) -> Tensor:
    """y = W norm(PReLU((x, v))), rounded to the dtype of ``x``."""
    return pointwise.forward(concatenated(x, v), weight, None, None, slope, affine, beta)


def backward(
    dy: Tensor, x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """dx, dv, dW, dslope, dgamma, dbeta."""
    du, dw, _, dslope, dgamma, dbeta = pointwise.backward(dy, concatenated(x, v), weight, slope, affine, gamma, beta)
    assert dslope is not None and dgamma is not None and dbeta is not None
    dx = du[..., : x.shape[3]]
    dx = dx.sum(1, keepdim=True) if x.shape[1] == 1 else dx
    return dx, None if v is None else du[..., x.shape[3] :], dw, dslope, dgamma, dbeta
