"""Group norm of PReLU(x), stored: for the start of the residual stream, where no product can take the norm in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import group_norm as plain
from .library import (
    LIBRARY,
    NAMESPACE,
    check_activation,
    check_norm,
    check_parameter,
    kernels,
    register,
    register_once_differentiable,
    unit_stride,
)
from .statistics import GroupNorm, _affine_reference

__all__ = ["group_norm"]


def group_norm(x: Tensor, slope: Tensor, norm: GroupNorm) -> Tensor:
    """y = gamma (PReLU(x, slope) - mean) / sqrt(variance + 1e-8) + beta, 8 groups an instrument.

    Differentiable once, in everything but the statistics.

    Args:
        x: (n, 4, frames, C), float32, bfloat16, float16; on a CPU also float64.
        slope: (1,), of the PReLU on ``x``.
        norm: group norm of PReLU(x), with the statistics of PReLU(x).

    Returns:
        (n, 4, frames, C) in the dtype of ``x``.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    check_parameter("slope", slope, (1,), x)
    check_norm(norm, x)
    y: Tensor = _group_norm(x, slope, *norm)[0]
    return y


def _forward_kernel(x: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    beta = beta.contiguous()
    launcher = kernels("statistics", x.dtype).group_affine
    affine = launcher(statistics.contiguous(), gamma.contiguous(), beta, x.shape[2])
    return kernels("group_norm", x.dtype).group_norm_forward(unit_stride(x), slope, affine, beta), affine


def _forward_reference(
    x: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    affine = _affine_reference(statistics, gamma, beta, x.shape[2])
    return plain.forward(x, slope, affine, beta).contiguous(), affine


def _forward_fake(x: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), statistics.new_empty(x.shape[0], 4, 4, x.shape[3])


def _backward_kernel(dy: Tensor, x: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    launcher = kernels("group_norm", x.dtype).group_norm_backward
    found: tuple[Tensor, ...] = launcher(unit_stride(dy), unit_stride(x), slope, affine)
    return found


def _backward_reference(dy: Tensor, x: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in plain.backward(dy, x, slope, affine, gamma))


def _backward_fake(dy: Tensor, x: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    channels = affine.new_empty(4, x.shape[3])
    return x.new_empty(x.shape), affine.new_empty(1), channels, torch.empty_like(channels)


_group_norm = register(
    "group_norm(Tensor x, Tensor slope, Tensor statistics, Tensor gamma, Tensor beta) -> (Tensor, Tensor)",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_group_norm_backward = register(
    "group_norm_backward(Tensor dy, Tensor x, Tensor slope, Tensor affine, Tensor gamma) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, slope, _, gamma, beta = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, slope, output[1], gamma, beta)


def _differentiate(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, slope, affine, gamma, beta = ctx.saved_tensors
    dx, dslope, dgamma, dbeta = _group_norm_backward(dy, x, slope, affine, gamma)
    return dx, dslope.to(slope.dtype), None, dgamma.to(gamma.dtype), dbeta.to(beta.dtype)


torch.library.register_autograd(f"{NAMESPACE}::group_norm", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("group_norm_backward")
