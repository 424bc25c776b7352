"""PReLU, group norm, dilated depthwise convolution, PReLU, and the statistics of the result, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from .operator import (
    check_activation,
    check_norm,
    check_parameter,
    differentiable,
    kernels,
    operator,
    unit_stride,
    wide,
)
from .statistics import (
    GroupNorm,
    activation,
    activation_backward,
    affine_by_kernel,
    affine_of,
    normalise,
    normalise_backward,
    tile_statistics,
)

__all__ = ["depthwise"]


def depthwise(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, norm: GroupNorm, next_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Return y = PReLU( sum_k weight[i, c, k] m[n, i, t + (k - 1) dilation, c], next_slope ), with m = norm(PReLU(x, slope)).

    m is zero outside the signal: the normalised signal is padded. The operation is differentiable once, in all inputs except
    the statistics. Of the activations, backward needs only ``x``; it computes the intermediate values again.

    Args:
        x: (n, I, frames, C) for I instruments, float32, bfloat16, float16; on a CPU also float64.
        weight: (I, C, 3), any floating dtype.
        dilation: number of frames from one tap to the next, at least 1; it may exceed the number of frames.
        slope: (1,), slope of the PReLU on ``x``.
        norm: group norm of PReLU(x), with the statistics of PReLU(x).
        next_slope: (1,), slope of the PReLU on the result.

    Returns:
        y (n, I, frames, C) in the dtype of ``x``, and the statistics of y.

    Raises:
        ShapeError: if a shape, dtype, device or the dilation does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    if dilation < 1:
        raise ShapeError(f"dilation must be at least 1, got {dilation}.")
    check_parameter("weight", weight, (x.shape[1], x.shape[3], 3), x)
    check_parameter("slope", slope, (1,), x)
    check_parameter("next_slope", next_slope, (1,), x)
    check_norm(norm, x)
    y, statistics, _ = _depthwise(x, weight, dilation, slope, *norm, next_slope)
    return y, statistics


def _shift(v: Tensor, frames: int) -> Tensor:
    """Return ``v`` (n, I, T, C), shifted in time: at t stands the value of t + ``frames``, or zero outside the signal."""
    length = v.shape[2]
    shifted = torch.zeros_like(v)
    if abs(frames) < length:
        shifted[:, :, max(0, -frames) : length - max(0, frames)] = v[:, :, max(0, frames) : length - max(0, -frames)]
    return shifted


def _convolved(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return z = PReLU(x), m = norm(z), and the convolution of m with the taps."""
    z = activation(x, slope)
    m = normalise(z, affine, beta)
    taps = weight.to(z.dtype)[:, None]
    a = sum((taps[..., k] * _shift(m, (k - 1) * dilation) for k in range(3)), torch.zeros_like(m))
    return z, m, a


def forward(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, beta: Tensor, next_slope: Tensor
) -> Tensor:
    """Return y of :func:`depthwise` in the dtype of ``x``. ``affine`` is that of the norm."""
    a = _convolved(x, weight, dilation, slope, affine, beta)[2]
    return torch.where(a > 0, a, next_slope.to(a.dtype) * a).to(x.dtype)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dx, dw (I, C, 3), dslope, dgamma, dbeta, dnext_slope."""
    dy = dy.to(wide(x.dtype))
    z, m, a = _convolved(x, weight, dilation, slope, affine, beta)
    dnext_slope = torch.where(a > 0, 0, dy * a).sum().reshape(1)
    da = torch.where(a > 0, dy, next_slope.to(dy.dtype) * dy)
    dw = torch.stack([(da * _shift(m, (k - 1) * dilation)).sum((0, 2)) for k in range(3)], dim=2)
    taps = weight.to(dy.dtype)[:, None]
    dm = sum((_shift(taps[..., k] * da, -(k - 1) * dilation) for k in range(3)), torch.zeros_like(m))
    dz, dgamma, dbeta = normalise_backward(dm, z, affine, gamma)
    dx, dslope = activation_backward(dz, x, slope)
    return dx, dw, dslope, dgamma, dbeta, dnext_slope


def _kernel(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    affine = affine_by_kernel(statistics, gamma, beta, x.shape[2])
    next_statistics = kernels("statistics", x.dtype).new_statistics(x, x.shape[3])
    y = kernels("depthwise", x.dtype).depthwise_forward(
        unit_stride(x), weight.contiguous(), dilation, slope, affine, beta.contiguous(), next_slope,
        statistics=next_statistics,
    )  # fmt: skip
    return y, next_statistics, affine


@operator("depthwise", _kernel)
def _depthwise(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    affine = affine_of(statistics, gamma, beta, x.shape[2])
    y = forward(x, weight, dilation, slope, affine, beta, next_slope)
    return y, tile_statistics(y.to(wide(y.dtype))), affine


def _backward_kernel(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    found: tuple[Tensor, ...] = kernels("depthwise_backward", x.dtype).depthwise_backward(
        unit_stride(dy), unit_stride(x), weight.contiguous(), dilation, slope, affine, beta.contiguous(), next_slope
    )
    return tuple(value.contiguous() for value in found)


@operator("depthwise_backward", _backward_kernel)
def _depthwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return backward(dy, x, weight, dilation, slope, affine, gamma, beta, next_slope)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, ctx.dilation, slope, _, gamma, beta, next_slope = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, slope, output[2], gamma, beta, next_slope)


def _differentiate(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, weight, slope, affine, gamma, beta, next_slope = ctx.saved_tensors
    dx, dw, dslope, dgamma, dbeta, dnext_slope = _depthwise_backward(
        dy, x, weight, ctx.dilation, slope, affine, gamma, beta, next_slope
    )
    return (
        dx, dw.to(weight.dtype), None, dslope.to(slope.dtype), None, dgamma.to(gamma.dtype), dbeta.to(beta.dtype),
        dnext_slope.to(next_slope.dtype),
    )  # fmt: skip


differentiable(_depthwise, _differentiate, _save, _depthwise_backward)
