"""PReLU, group norm, dilated depthwise convolution, PReLU, and the result's statistics, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..reference import depthwise as plain
from ..reference.statistics import tile_statistics, wide
from .library import (
    LIBRARY,
    NAMESPACE,
    check_activation,
    check_norm,
    check_parameter,
    kernels,
    register,
    register_once_differentiable,
    tile,
    unit_stride,
)
from .statistics import GroupNorm, _affine_reference

__all__ = ["depthwise"]


def depthwise(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, norm: GroupNorm, next_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """y = PReLU( sum_k weight[i, c, k] m[n, i, t + (k - 1) dilation, c], next_slope ) with m = norm(PReLU(x, slope)).

    m is zero outside the signal: the padding is that of the normalised signal. Differentiable once, in everything but
    the statistics. Backward needs ``x`` alone; what lies between is computed again.

    Args:
        x: (n, 4, frames, C), float32, bfloat16, float16; on a CPU also float64.
        weight: (4, C, 3).
        dilation: frames between taps, at least 1; may exceed the number of frames.
        slope: (1,), of the PReLU on ``x``.
        norm: group norm of PReLU(x), with the statistics of PReLU(x).
        next_slope: (1,), of the PReLU on the result.

    Returns:
        y (n, 4, frames, C) in the dtype of ``x``, and the statistics of y.

    Raises:
        ShapeError: if a shape, dtype, device or the dilation does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    if dilation < 1:
        raise ShapeError(f"dilation must be at least 1, got {dilation}.")
    check_parameter("weight", weight, (4, x.shape[3], 3), x)
    check_parameter("slope", slope, (1,), x)
    check_parameter("next_slope", next_slope, (1,), x)
    check_norm(norm, x)
    y, statistics, _ = _depthwise(x, weight, dilation, slope, *norm, next_slope)
    return y, statistics


def _forward_kernel(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    module = kernels("depthwise", x.dtype)
    beta = beta.contiguous()
    launcher = kernels("statistics", x.dtype)
    affine = launcher.group_affine(statistics.contiguous(), gamma.contiguous(), beta, x.shape[2])
    next_statistics = launcher.new_statistics(x, x.shape[3])
    y = module.depthwise_forward(
        unit_stride(x), weight.contiguous(), dilation, slope, affine, beta, next_slope, statistics=next_statistics
    )
    return y, next_statistics, affine


def _forward_reference(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    affine = _affine_reference(statistics, gamma, beta, x.shape[2])
    y = plain.forward(x, weight, dilation, slope, affine, beta, next_slope).contiguous()
    return y, tile_statistics(y.to(wide(y.dtype)), tile()), affine


def _forward_fake(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, _, _, channels = x.shape
    return x.new_empty(x.shape), statistics.new_empty(statistics.shape), statistics.new_empty(n, 4, 4, channels)


def _backward_kernel(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    module = kernels("depthwise_backward", x.dtype)
    found: tuple[Tensor, ...] = module.depthwise_backward(
        unit_stride(dy), unit_stride(x), weight.contiguous(), dilation, slope, affine, beta.contiguous(), next_slope
    )
    return tuple(value.contiguous() for value in found)


def _backward_reference(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    found = plain.backward(dy, x, weight, dilation, slope, affine, gamma, beta, next_slope)
    return tuple(value.contiguous() for value in found)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor,
    next_slope: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    channels, one = affine.new_empty(4, x.shape[3]), affine.new_empty(1)
    return (
        x.new_empty(x.shape), affine.new_empty(weight.shape), one, channels, torch.empty_like(channels),
        torch.empty_like(one),
    )  # fmt: skip


_depthwise = register(
    "depthwise(Tensor x, Tensor weight, int dilation, Tensor slope, Tensor statistics, Tensor gamma, Tensor beta, "
    "Tensor next_slope) -> (Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_depthwise_backward = register(
    "depthwise_backward(Tensor dy, Tensor x, Tensor weight, int dilation, Tensor slope, Tensor affine, Tensor gamma, "
    "Tensor beta, Tensor next_slope) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, dilation, slope, _, gamma, beta, next_slope = inputs
    _, next_statistics, affine = output
    ctx.mark_non_differentiable(next_statistics, affine)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, slope, affine, gamma, beta, next_slope)
    ctx.dilation = dilation


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


torch.library.register_autograd(f"{NAMESPACE}::depthwise", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("depthwise_backward")
