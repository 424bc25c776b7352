"""PReLU, group norm and 1x1 convolution of two operands side by side: the start of the masking network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import GROUPS
from ..errors import ShapeError
from ..reference import in_conv as plain
from ..reference.statistics import activation, tile_statistics, wide
from .library import (
    LIBRARY,
    NAMESPACE,
    check_activation,
    check_parameter,
    kernels,
    register,
    register_once_differentiable,
    tile,
    unit_stride,
)
from .statistics import _affine_reference

__all__ = ["in_conv"]


def in_conv(
    x: Tensor,
    v: Tensor | None,
    weight: Tensor,
    slope: Tensor,
    gamma: Tensor,
    beta: Tensor,
    next_slope: Tensor,
    *,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """y = weight norm(PReLU((x, v), slope)), where x and v lie side by side but are never concatenated.

    The statistics of the inputs are taken here, since no operation of this package made them. Differentiable once, in
    everything but the result's statistics.

    Args:
        x: (n, 4, frames, K1), or (n, 1, frames, K1) if the four instruments share it: float32, bfloat16, float16; on a CPU
            also float64.
        v: (n, 4, frames, K2), of the dtype of ``x``; None for none. K1 + K2 is a multiple of 8.
        weight: (4, N, K1 + K2), any floating dtype.
        slope: (1,), of the PReLU on the inputs.
        gamma, beta: (4, K1 + K2), of the group norm.
        next_slope: (1,), of the PReLU that will be applied to y.
        tf32: products of float32 in TF32 on the tensor cores, three decimal digits.

    Returns:
        y (n, 4, frames, N) in the dtype of ``x``, and the statistics of PReLU(y, next_slope).

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x.expand(-1, 4, -1, -1) if x.dim() == 4 and x.shape[1] == 1 else x)
    inputs = x.shape[3]
    if v is not None:
        check_activation("v", v, (x.shape[0], 4, x.shape[2], v.shape[-1]), x)
        inputs += v.shape[3]
    if inputs % GROUPS:
        raise ShapeError(f"Group norm needs a multiple of {GROUPS} channels, got {inputs}.")
    if weight.dim() != 3 or weight.shape[1] == 0:
        raise ShapeError(f"weight must be (4, out, {inputs}), got {tuple(weight.shape)}.")
    check_parameter("weight", weight, (4, weight.shape[1], inputs), x)
    check_parameter("slope", slope, (1,), x)
    check_parameter("gamma", gamma, (4, inputs), x)
    check_parameter("beta", beta, (4, inputs), x)
    check_parameter("next_slope", next_slope, (1,), x)
    y, statistics, _ = _in_conv(x, v, weight, slope, gamma, beta, next_slope, tf32)
    return y, statistics


def _unit(v: Tensor | None) -> Tensor | None:
    return None if v is None else unit_stride(v)


def _forward_kernel(
    x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, gamma: Tensor, beta: Tensor, next_slope: Tensor,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    module = kernels("in_conv", x.dtype)
    x, v, beta = unit_stride(x), _unit(v), beta.contiguous()
    statistics = module.input_statistics(x, v, slope)
    affine = kernels("statistics", x.dtype).group_affine(statistics, gamma.contiguous(), beta, x.shape[2])
    fold = kernels("pointwise", x.dtype).fold_weights
    folded, bias = fold(weight.contiguous(), None, affine, beta, x.dtype)
    y, next_statistics = module.in_conv_forward(x, v, folded, bias, slope, next_slope, tf32)
    return y, next_statistics, affine


def _forward_reference(
    x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, gamma: Tensor, beta: Tensor, next_slope: Tensor,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    statistics = tile_statistics(activation(plain.concatenated(x, v), slope), tile())
    affine = _affine_reference(statistics, gamma, beta, x.shape[2])
    y = plain.forward(x, v, weight, slope, affine, beta).contiguous()
    return y, tile_statistics(activation(y, next_slope), tile()), affine


def _forward_fake(
    x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, gamma: Tensor, beta: Tensor, next_slope: Tensor,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, _, frames, _ = x.shape
    columns, dtype = weight.shape[1], wide(x.dtype)
    return (
        x.new_empty(n, 4, frames, columns),
        x.new_empty(n, 4, -(-frames // tile()), 2, columns, dtype=dtype),
        x.new_empty(n, 4, 4, weight.shape[2], dtype=dtype),
    )


def _backward_kernel(
    dy: Tensor, x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor,
    beta: Tensor, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx, dv, *others = kernels("in_conv_backward", x.dtype).in_conv_backward(
        unit_stride(dy), unit_stride(x), _unit(v), weight.contiguous(), slope, affine, beta.contiguous(), tf32
    )
    return dx, x.new_empty(0) if dv is None else dv, *others


def _backward_reference(
    dy: Tensor, x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor,
    beta: Tensor, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx, dv, *others = plain.backward(dy, x, v, weight, slope, affine, gamma, beta)
    return tuple(value.contiguous() for value in (dx, x.new_empty(0) if dv is None else dv, *others))


def _backward_fake(
    dy: Tensor, x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor,
    beta: Tensor, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    channels = affine.new_empty(4, weight.shape[2])
    return (
        x.new_empty(x.shape), x.new_empty(0 if v is None else v.shape), affine.new_empty(weight.shape),
        affine.new_empty(1), channels, torch.empty_like(channels),
    )  # fmt: skip


_in_conv = register(
    "in_conv(Tensor x, Tensor? v, Tensor weight, Tensor slope, Tensor gamma, Tensor beta, Tensor next_slope, bool tf32) -> "
    "(Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_in_conv_backward = register(
    "in_conv_backward(Tensor dy, Tensor x, Tensor? v, Tensor weight, Tensor slope, Tensor affine, Tensor gamma, "
    "Tensor beta, bool tf32) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, v, weight, slope, gamma, beta, _, tf32 = inputs
    _, next_statistics, affine = output
    ctx.mark_non_differentiable(next_statistics, affine)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, v, weight, slope, affine, gamma, beta)
    ctx.tf32 = tf32


def _differentiate(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, v, weight, slope, affine, gamma, beta = ctx.saved_tensors
    dx, dv, dw, dslope, dgamma, dbeta = _in_conv_backward(dy, x, v, weight, slope, affine, gamma, beta, ctx.tf32)
    return (
        dx, None if v is None else dv, dw.to(weight.dtype), dslope.to(slope.dtype), dgamma.to(gamma.dtype),
        dbeta.to(beta.dtype), None, None,
    )  # fmt: skip


torch.library.register_autograd(f"{NAMESPACE}::in_conv", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("in_conv_backward")
