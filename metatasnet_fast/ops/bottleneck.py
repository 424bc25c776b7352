"""1x1 convolution of latent frames, with an interpolated share and a ReLU in its epilogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from .frames import Rectified, check_frames, gated, interpolation, rounded
from .operator import check_parameter, differentiable, kernels, operator, products, unit_stride, wide

__all__ = ["bottleneck", "rectified_bottleneck"]


def bottleneck(
    x: Tensor | Rectified,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    share: Tensor | None = None,
    relu: bool = False,
    tf32: bool = False,
) -> Tensor:
    """Return y[n, t, o] = act( sum_k weight[o, k] x[n, t, k] + bias[o] + s[n, t, o] ).

    s is ``share``, interpolated linearly to x's frames with aligned corners (for one row or one frame: row 0).
    Differentiable once.

    Args:
        x: (n, frames, K), float32, bfloat16, float16; on a CPU also float64.
        weight: (N, K), any floating dtype; products are taken in the dtype of ``x`` and summed in float32.
        bias: (N,).
        share: (n, rows, N), float32 (float64 if ``x`` is).
        relu: whether act is a ReLU, else the identity.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        (n, frames, N) in the dtype of ``x``.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    return _checked(x, weight, bias, share, relu, False, tf32)


def rectified_bottleneck(
    x: Tensor | Rectified,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    share: Tensor | None = None,
    tf32: bool = False,
) -> Rectified:
    """Return :func:`bottleneck` with a ReLU, whose gradient is left to the operations that read the result."""
    return Rectified(_checked(x, weight, bias, share, True, True, tf32))


def _checked(
    x: Tensor | Rectified,
    weight: Tensor,
    bias: Tensor | None,
    share: Tensor | None,
    relu: bool,
    deferred: bool,
    tf32: bool,
) -> Tensor:
    x, rectified = (x.value, True) if isinstance(x, Rectified) else (x, False)
    check_frames("x", x)
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ShapeError(f"weight must be (out, {x.shape[2]}), got {tuple(weight.shape)}.")
    check_parameter("weight", weight, (weight.shape[0], x.shape[2]), x)
    check_parameter("bias", bias, (weight.shape[0],), x)
    if share is not None:
        rows = share.shape[1] if share.dim() == 3 else 1
        check_parameter("share", share, (x.shape[0], max(rows, 1), weight.shape[0]), x)
        if share.dtype != wide(x.dtype):
            raise ShapeError(f"share must be {wide(x.dtype)} for {x.dtype}, got {share.dtype}.")
    y: Tensor = _bottleneck(x, weight, bias, share, relu, deferred, rectified, tf32)
    return y


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor | None, relu: bool) -> Tensor:
    """Return y in the dtype of ``x``."""
    y = x.to(wide(x.dtype)) @ rounded(weight, x).T
    y = y if bias is None else y + bias.to(y.dtype)
    if share is not None:
        y = y + torch.einsum("tf,nfo->nto", interpolation(share.shape[1], x.shape[1], y), share.to(y.dtype))
    return (y.relu() if relu else y).to(x.dtype)


def _kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor | None, relu: bool, deferred: bool, rectified: bool,
    tf32: bool,
) -> Tensor:  # fmt: skip
    module = kernels("bottleneck", x.dtype)
    found: Tensor = module.product(
        unit_stride(x), weight.to(x.dtype), products(tf32, x), bias=None if bias is None else bias.contiguous(),
        share=None if share is None else share.contiguous(), relu=relu,
    )  # fmt: skip
    return found


@operator("bottleneck", _kernel)
def _bottleneck(
    x: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor | None, relu: bool, deferred: bool, rectified: bool,
    tf32: bool,
) -> Tensor:  # fmt: skip
    return forward(x, weight, bias, share, relu)


def _backward_kernel(
    dy: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, rows: int, need_x: bool, need_bias: bool, rectified: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    module = kernels("bottleneck", x.dtype)
    dy = unit_stride(dy if y is None else torch.where(y > 0, dy, 0))
    x, precision = unit_stride(x), products(tf32, x)
    dx, gate = x.new_empty(0), x.contiguous() if rectified else None
    if need_x:
        dx = module.product(dy, weight.to(x.dtype).T, precision, gate=gate)
    dw, dbias = module.weight_gradient(dy, x, x.shape[2], precision, bias=need_bias)
    dshare = module.interpolation_backward(dy, rows) if rows else dw.new_empty(0)
    return dx, dw.contiguous(), dbias.contiguous(), dshare


@operator("bottleneck_backward", _backward_kernel)
def _bottleneck_backward(
    dy: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, rows: int, need_x: bool, need_bias: bool, rectified: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dx, dW, dbias and dshare (``rows`` rows); a gradient that is not needed is a tensor without elements."""
    g = gated(dy, y)
    dshare = torch.einsum("tf,nto->nfo", interpolation(rows, x.shape[1], g), g) if rows else g.new_empty(0)
    dx = gated(g @ rounded(weight, x), x if rectified else None).to(x.dtype) if need_x else x.new_empty(0)
    dbias = g.sum((0, 1)) if need_bias else g.new_empty(0)
    return dx, torch.einsum("nto,ntk->ok", g, x.to(g.dtype)), dbias, dshare


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, share, relu, deferred, ctx.rectified, tf32 = inputs
    ctx.save_for_backward(x, weight, output if relu and not deferred else None)
    ctx.bias = None if bias is None else bias.dtype
    ctx.rows, ctx.tf32 = 0 if share is None else share.shape[1], tf32


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    need_x, _, need_bias, need_share = ctx.needs_input_grad[:4]
    rows = ctx.rows if need_share else 0
    dx, dw, dbias, dshare = _bottleneck_backward(dy, x, weight, y, rows, need_x, need_bias, ctx.rectified, ctx.tf32)
    return (
        dx if need_x else None, dw.to(weight.dtype), dbias.to(ctx.bias) if need_bias else None,
        dshare if rows else None, None, None, None, None,
    )  # fmt: skip


differentiable(_bottleneck, _differentiate, _save, _bottleneck_backward)
