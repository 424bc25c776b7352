"""1x1 convolution of latent frames, with an interpolated share and a ReLU in its epilogue.

The filter bank and overlap-add use the arithmetic and checks at the end of this module, too. Activations are (n, frames,
channels), signals (n, samples). Operands are rounded to the dtype of the activation; sums are taken in the dtype of
:func:`wide`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from .operator import check_parameter, differentiable, kernels, operator, products, unit_stride, wide

__all__ = ["Rectified", "bottleneck", "check_frames", "gated", "interpolation", "rectified_bottleneck", "rounded"]


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

    s is ``share``, interpolated linearly to x's frames with aligned corners; if there is only one row or one frame, s is row 0.
    The operation is differentiable once.

    Args:
        x: (n, frames, K), float32, bfloat16, float16; on a CPU also float64.
        weight: (N, K), any floating dtype. It is rounded to the dtype of ``x``; products are summed in float32.
        bias: (N,), any floating dtype; None for no bias.
        share: (n, rows, N), float32 (float64 if ``x`` is).
        relu: whether act is a ReLU; else act is the identity.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        y, (n, frames, N), in the dtype of ``x``.

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
    """Return the result of :func:`bottleneck` with a ReLU. The operations that read the result compute the ReLU's gradient."""
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
    """Return y of :func:`bottleneck` in the dtype of ``x``, computed in plain PyTorch."""
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
    """Return dx, dW, dbias and dshare (n, rows, N). A gradient that is not needed is a tensor without elements."""
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


class Rectified(NamedTuple):
    """The result ``value`` of a ReLU whose gradient is computed by the operations that read the result.

    Such an operation returns a gradient that is zero where ``value`` is zero. This saves a separate pass over the gradient. The
    result is not a tensor, so that no other operation can read it.
    """

    value: Tensor


def interpolation(rows: int, frames: int, like: Tensor) -> Tensor:
    """Return the weights (frames, rows) of linear interpolation with aligned corners.

    If there is only one row or one frame, row 0 alone has weight.
    """
    place = torch.arange(frames, device=like.device)[:, None] * (rows - 1)
    row = torch.arange(rows, device=like.device)[None] * max(frames - 1, 1)
    return (1 - (place - row).abs().to(like.dtype) / max(frames - 1, 1)).clamp(min=0)


def rounded(p: Tensor, like: Tensor) -> Tensor:
    """Return a parameter, rounded to the dtype of ``like`` as in the kernels' products, in the dtype of :func:`wide`."""
    return p.to(like.dtype).to(wide(like.dtype))


def gated(dy: Tensor, y: Tensor | None) -> Tensor:
    """Return the gradient before a ReLU with the result ``y``, in the dtype of :func:`wide`. Without a ReLU, ``y`` is None."""
    dy = dy.to(wide(dy.dtype))
    return dy if y is None else torch.where(y > 0, dy, 0)


def check_frames(name: str, x: Tensor) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (n, frames, channels), floating point, and not empty in the last two."""
    if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] == 0 or not x.is_floating_point():
        raise ShapeError(
            f"{name} must be floating point (n, frames, channels) with at least one frame, "
            f"got {x.dtype} {tuple(x.shape)}."
        )
