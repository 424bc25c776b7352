"""PReLU, group norm, 1x1 convolution per instrument, bias, residual, and the statistics of the result, in one operation."""

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
    optional,
    unit_stride,
    wide,
)
from .statistics import (
    GroupNorm,
    activation,
    activation_backward,
    affine_of,
    normalise,
    normalise_backward,
    tile_statistics,
)

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
    """Return y[n, i, t, o] = sum_c weight[i, o, c] norm(PReLU(x))[n, i, t, c] + bias[i, o] + residual[n, i, t, o].

    The operation is differentiable once, in all inputs except the statistics.

    Args:
        x: (n, I, frames, K) for I instruments, float32, bfloat16, float16; on a CPU also float64. May be one latent, expanded.
        weight: (I, N, K), any floating dtype; products are taken in the dtype of ``x`` and summed in float32.
        bias: (I, N), any floating dtype; None for no bias.
        residual: (n, I, frames, N), of the dtype of ``x``; None for no residual.
        norm: group norm of PReLU(x), with the statistics of PReLU(x); None to leave the norm out.
        slope: (1,), slope of the PReLU on ``x``; None to leave the PReLU out.
        next_slope: (1,), slope of the PReLU that will be applied to y.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        y (n, I, frames, N) in the dtype of ``x``, and the statistics of PReLU(y, next_slope); None without ``next_slope``.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    instruments = x.shape[1]
    if weight.dim() != 3 or weight.shape[1] == 0:
        raise ShapeError(f"weight must be ({instruments}, out, {x.shape[3]}), got {tuple(weight.shape)}.")
    check_parameter("weight", weight, (instruments, weight.shape[1], x.shape[3]), x)
    check_parameter("bias", bias, (instruments, weight.shape[1]), x)
    check_parameter("slope", slope, (1,), x)
    check_parameter("next_slope", next_slope, (1,), x)
    if residual is not None:
        check_activation("residual", residual, (*x.shape[:3], weight.shape[1]), x)
    if norm is not None:
        check_norm(norm, x)
    statistics, gamma, beta = (None, None, None) if norm is None else norm
    y, next_statistics, _ = _pointwise(x, weight, bias, residual, slope, statistics, gamma, beta, next_slope, tf32)
    return y, None if next_slope is None else next_statistics


def _normalised(x: Tensor, slope: Tensor | None, affine: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    z = activation(x, slope)
    return z, z if affine is None or beta is None else normalise(z, affine, beta)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    affine: Tensor | None, beta: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return y of :func:`pointwise` in the dtype of ``x``. ``affine`` is that of the norm."""
    m = _normalised(x, slope, affine, beta)[1]
    y = torch.einsum("nitc,ioc->nito", m, weight.to(m.dtype))
    y = y if bias is None else y + bias.to(y.dtype)[:, None]
    return (y if residual is None else y + residual).to(x.dtype)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, slope: Tensor | None, affine: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Return dx, dW, dbias, dslope, dgamma, dbeta. Without a PReLU dslope is None; without a norm dgamma and dbeta are."""
    dy = dy.to(wide(x.dtype))
    z, m = _normalised(x, slope, affine, beta)
    dw = torch.einsum("nito,nitc->ioc", dy, m)
    dz = torch.einsum("nito,ioc->nitc", dy, weight.to(dy.dtype))
    dgamma, dbeta, dslope = None, None, None
    if affine is not None and gamma is not None:
        dz, dgamma, dbeta = normalise_backward(dz, z, affine, gamma)
    dx = dz.to(x.dtype)
    if slope is not None:
        dx, dslope = activation_backward(dz, x, slope)
    return dx, dw, dy.sum((0, 2)), dslope, dgamma, dbeta


def _contiguous(p: Tensor | None) -> Tensor | None:
    return None if p is None else p.contiguous()


def _kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None, next_slope: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    norm = None
    if statistics is not None and gamma is not None and beta is not None:
        norm = (statistics.contiguous(), gamma.contiguous(), beta.contiguous())
    y, next_statistics, affine = kernels("pointwise", x.dtype).pointwise_forward(
        unit_stride(x), weight.contiguous(), _contiguous(bias), None if residual is None else unit_stride(residual),
        slope, norm, next_slope, tf32,
    )  # fmt: skip
    return y, optional(next_statistics, x), optional(affine, x)


@operator("pointwise", _kernel)
def _pointwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    statistics: Tensor | None, gamma: Tensor | None, beta: Tensor | None, next_slope: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    affine = None
    if statistics is not None and gamma is not None and beta is not None:
        affine = affine_of(statistics, gamma, beta, x.shape[2])
    y = forward(x, weight, bias, residual, slope, affine, beta)
    next_statistics = None if next_slope is None else tile_statistics(activation(y, next_slope))
    return y, optional(next_statistics, x), optional(affine, x)


def _backward_kernel(
    dy: Tensor, x: Tensor, weight: Tensor, slope: Tensor | None, affine: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    found = kernels("pointwise_backward", x.dtype).pointwise_backward(
        unit_stride(dy), unit_stride(x), weight.contiguous(), slope, affine, _contiguous(beta), tf32
    )
    return tuple(optional(value, x) for value in found)


@operator("pointwise_backward", _backward_kernel)
def _pointwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, slope: Tensor | None, affine: Tensor | None, gamma: Tensor | None,
    beta: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx, dw, dbias, dslope, dgamma, dbeta = backward(dy, x, weight, slope, affine, gamma, beta)
    return dx, dw, dbias, optional(dslope, x), optional(dgamma, x), optional(dbeta, x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, slope, statistics, gamma, beta, _, ctx.tf32 = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, slope, None if statistics is None else output[2], gamma, beta)


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


differentiable(_pointwise, _differentiate, _save, _pointwise_backward)
