"""PReLU, group norm, 1x1 convolution per instrument, bias, residual, and the result's statistics, in one product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..reference import pointwise as plain
from ..reference.statistics import activation, tile_statistics, wide
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

__all__ = ["pointwise"]


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    norm: GroupNorm | None = None,
    slope: Tensor | None = None,
    next_slope: Tensor | None = None,
    tf32: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """y[n, i, t, o] = sum_c weight[i, o, c] norm(PReLU(x))[n, i, t, c] + bias[i, o] + residual[n, i, t, o].

    Differentiable once, in everything but the statistics.

    Args:
        x: (n, 4, frames, K), float32, bfloat16, float16; on a CPU also float64. May be one latent expanded to four.
        weight: (4, N, K), any floating dtype; products are taken in the dtype of ``x`` and summed in float32.
        bias: (4, N).
        residual: (n, 4, frames, N), of the dtype of ``x``.
        norm: group norm of PReLU(x), with the statistics of PReLU(x); None for none.
        slope: (1,), of the PReLU on ``x``; None for none.
        next_slope: (1,), of the PReLU that will be applied to y; asks for the statistics of PReLU(y).
        tf32: products of float32 in TF32 on the tensor cores, three decimal digits.

    Returns:
        y (n, 4, frames, N) in the dtype of ``x``, and the statistics of PReLU(y, next_slope) or None.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    if weight.dim() != 3 or weight.shape[1] == 0:
        raise ShapeError(f"weight must be (4, out, {x.shape[3]}), got {tuple(weight.shape)}.")
    check_parameter("weight", weight, (4, weight.shape[1], x.shape[3]), x)
    check_parameter("bias", bias, (4, weight.shape[1]), x)
    check_parameter("slope", slope, (1,), x)
    check_parameter("next_slope", next_slope, (1,), x)
    if residual is not None:
        check_activation("residual", residual, (*x.shape[:3], weight.shape[1]), x)
    if norm is not None:
        check_norm(norm, x)
    statistics, gamma, beta = (None, None, None) if norm is None else norm
    y, next_statistics, _ = _pointwise(x, weight, bias, residual, slope, statistics, gamma, beta, next_slope, tf32)
    return y, None if next_slope is None else next_statistics


def _packed(p: Tensor | None) -> Tensor | None:
    return None if p is None else p.contiguous()


def _forward_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None, next_slope: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    module = kernels("pointwise", x.dtype)
    beta, affine = _packed(beta), None
    if statistics is not None and gamma is not None and beta is not None:
        launcher = kernels("statistics", x.dtype).group_affine
        affine = launcher(statistics.contiguous(), gamma.contiguous(), beta, x.shape[2])
    residual = None if residual is None else unit_stride(residual)
    y, next_statistics = module.pointwise_forward(
        unit_stride(x), weight.contiguous(), _packed(bias), residual, slope, affine, beta, next_slope, tf32
    )
    return y, _or_empty(next_statistics, x), _or_empty(affine, x)


def _or_empty(value: Tensor | None, x: Tensor) -> Tensor:
    """Operators return tensors, not None: a value that was not asked for has no elements."""
    return x.new_empty(0, dtype=wide(x.dtype)) if value is None else value


def _forward_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None, next_slope: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    affine = None
    if statistics is not None and gamma is not None and beta is not None:
        affine = _affine_reference(statistics, gamma, beta, x.shape[2])
    y = plain.forward(x, weight, bias, residual, slope, affine, beta).contiguous()
    next_statistics = None if next_slope is None else tile_statistics(activation(y, next_slope), tile())
    return y, _or_empty(next_statistics, x), _or_empty(affine, x)


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None, next_slope: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, _, frames, inputs = x.shape
    columns = weight.shape[1]
    dtype = wide(x.dtype)
    return (
        x.new_empty(n, 4, frames, columns),
        x.new_empty(0, dtype=dtype)
        if next_slope is None
        else x.new_empty(n, 4, -(-frames // tile()), 2, columns, dtype=dtype),
        x.new_empty(0, dtype=dtype) if statistics is None else x.new_empty(n, 4, 4, inputs, dtype=dtype),
    )


def _backward_kernel(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    affine: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    tf32: bool,
) -> tuple[Tensor, ...]:
    module = kernels("pointwise_backward", x.dtype)
    found = module.pointwise_backward(
        unit_stride(dy), unit_stride(x), weight.contiguous(), slope, affine, _packed(beta), tf32
    )
    return tuple(_or_empty(value, x) for value in found)


def _backward_reference(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    affine: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    tf32: bool,
) -> tuple[Tensor, ...]:
    dx, *others = plain.backward(dy, x, weight, slope, affine, gamma, beta)
    return dx.contiguous(), *(_or_empty(value, x).contiguous() for value in others)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor | None,
    affine: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    tf32: bool,
) -> tuple[Tensor, ...]:
    dtype = wide(x.dtype)
    channels = x.new_empty(0, dtype=dtype) if affine is None else x.new_empty(4, x.shape[3], dtype=dtype)
    return (
        x.new_empty(x.shape),
        x.new_empty(weight.shape, dtype=dtype),
        x.new_empty(4, weight.shape[1], dtype=dtype),
        x.new_empty(0 if slope is None else 1, dtype=dtype),
        channels,
        torch.empty_like(channels),
    )


_pointwise = register(
    "pointwise(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? slope, Tensor? statistics, Tensor? gamma, "
    "Tensor? beta, Tensor? next_slope, bool tf32) -> (Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_pointwise_backward = register(
    "pointwise_backward(Tensor dy, Tensor x, Tensor weight, Tensor? slope, Tensor? affine, Tensor? gamma, Tensor? beta, "
    "bool tf32) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, slope, statistics, gamma, beta, _, tf32 = inputs
    _, next_statistics, affine = output
    ctx.mark_non_differentiable(next_statistics, affine)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, slope, None if statistics is None else affine, gamma, beta)
    ctx.tf32 = tf32


def _differentiate(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, slope, affine, gamma, beta = ctx.saved_tensors
    if dy is None:
        return (None,) * 10
    dx, dw, dbias, dslope, dgamma, dbeta = _pointwise_backward(dy, x, weight, slope, affine, gamma, beta, ctx.tf32)

    def like(gradient: Tensor, p: Tensor | None) -> Tensor | None:
        return None if p is None else gradient.to(p.dtype)

    return (
        dx, like(dw, weight), like(dbias, bias), dy if ctx.needs_input_grad[3] else None, like(dslope, slope), None,
        like(dgamma, gamma), like(dbeta, beta), None, None,
    )  # fmt: skip


torch.library.register_autograd(f"{NAMESPACE}::pointwise", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("pointwise_backward")
