"""The start of the masking network: PReLU, group norm and 1x1 convolution of two operands side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import GROUPS
from ..errors import ShapeError
from .operator import check_activation, check_parameter, differentiable, kernels, operator, unit_stride
from .pointwise import backward as pointwise_backward
from .pointwise import forward as pointwise_forward
from .statistics import activation, affine_of, tile_statistics

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
    """Return y = weight norm(PReLU((x, v), slope)). The channels of x and v are taken side by side, but never concatenated.

    This operation takes the statistics of its inputs itself, since no operation of this package made the inputs. It is
    differentiable once, in all inputs. The statistics of the result carry no gradient.

    Args:
        x: (n, I, frames, K1), or (n, 1, frames, K1) if the I instruments share x: float32, bfloat16, float16; on a CPU also
            float64.
        v: (n, I, frames, K2), of the dtype of ``x``, or None (K2 = 0). K1 + K2 is a multiple of 8.
        weight: (I, N, K1 + K2), any floating dtype.
        slope: (1,), slope of the PReLU on the inputs.
        gamma, beta: (I, K1 + K2), parameters of the group norm.
        next_slope: (1,), slope of the PReLU that will be applied to y.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        y (n, I, frames, N) in the dtype of ``x``, and the statistics of PReLU(y, next_slope).

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    inputs = x.shape[3]
    if weight.dim() != 3 or weight.shape[1] == 0 or x.shape[1] not in (1, len(weight)):
        raise ShapeError(
            f"weight must be (instruments, out, {inputs}) and x (n, instruments or 1, ...), "
            f"got {tuple(weight.shape)} and {tuple(x.shape)}."
        )
    instruments = len(weight)
    if v is not None:
        check_activation("v", v, (x.shape[0], instruments, x.shape[2], v.shape[-1]), x)
        inputs += v.shape[3]
    if inputs % GROUPS:
        raise ShapeError(f"Group norm needs a multiple of {GROUPS} channels, got {inputs}.")
    check_parameter("weight", weight, (instruments, weight.shape[1], inputs), x)
    check_parameter("slope", slope, (1,), x)
    check_parameter("gamma", gamma, (instruments, inputs), x)
    check_parameter("beta", beta, (instruments, inputs), x)
    check_parameter("next_slope", next_slope, (1,), x)
    y, statistics, _ = _in_conv(x, v, weight, slope, gamma, beta, next_slope, tf32)
    return y, statistics


def _concatenated(x: Tensor, v: Tensor | None, instruments: int) -> Tensor:
    x = x.expand(-1, instruments, -1, -1)
    return x if v is None else torch.cat([x, v], dim=3)


def _unit(v: Tensor | None) -> Tensor | None:
    return None if v is None else unit_stride(v)


def _kernel(
    x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, gamma: Tensor, beta: Tensor, next_slope: Tensor,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    module = kernels("in_conv", x.dtype)
    x, v = unit_stride(x), _unit(v)
    statistics = module.input_statistics(x, v, slope, len(weight))
    norm = (statistics, gamma.contiguous(), beta.contiguous())
    folded, bias, affine = kernels("pointwise", x.dtype).fold_weights(
        weight.contiguous(), None, *norm, x.shape[2], x.dtype
    )
    y, next_statistics = module.in_conv_forward(x, v, folded, bias, slope, next_slope, tf32)
    return y, next_statistics, affine


@operator("in_conv", _kernel)
def _in_conv(
    x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, gamma: Tensor, beta: Tensor, next_slope: Tensor,
    tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = _concatenated(x, v, len(weight))
    affine = affine_of(tile_statistics(activation(inputs, slope)), gamma, beta, x.shape[2])
    y = pointwise_forward(inputs, weight, None, None, slope, affine, beta)
    return y, tile_statistics(activation(y, next_slope)), affine


def _backward_kernel(
    dy: Tensor, x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor,
    beta: Tensor, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    dx, dv, *others = kernels("in_conv", x.dtype).in_conv_backward(
        unit_stride(dy), unit_stride(x), _unit(v), weight.contiguous(), slope, affine, beta.contiguous(), tf32
    )
    return dx, x.new_empty(0) if dv is None else dv, *others


@operator("in_conv_backward", _backward_kernel)
def _in_conv_backward(
    dy: Tensor, x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor,
    beta: Tensor, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = _concatenated(x, v, len(weight))
    du, dw, _, dslope, dgamma, dbeta = pointwise_backward(dy, inputs, weight, slope, affine, gamma, beta)
    assert dslope is not None and dgamma is not None and dbeta is not None
    dx, dv = du[..., : x.shape[3]], du[..., x.shape[3] :]
    dx = dx.sum(1, keepdim=True) if x.shape[1] == 1 else dx
    return dx, x.new_empty(0) if v is None else dv, dw, dslope, dgamma, dbeta


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, v, weight, slope, gamma, beta, _, ctx.tf32 = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, v, weight, slope, output[2], gamma, beta)


def _differentiate(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, v, weight, slope, affine, gamma, beta = ctx.saved_tensors
    dx, dv, dw, dslope, dgamma, dbeta = _in_conv_backward(dy, x, v, weight, slope, affine, gamma, beta, ctx.tf32)
    return (
        dx, None if v is None else dv, dw.to(weight.dtype), dslope.to(slope.dtype), dgamma.to(gamma.dtype),
        dbeta.to(beta.dtype), None, None,
    )  # fmt: skip


differentiable(_in_conv, _differentiate, _save, _in_conv_backward)
