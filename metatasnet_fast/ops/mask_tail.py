"""The end of the masking network: group norm, masks, product with the mixture's latent."""

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
)

__all__ = ["mask_tail"]


def mask_tail(m: Tensor, latent: Tensor, slope: Tensor, norm: GroupNorm, softmax: int | None = None) -> Tensor:
    """y[n, i, t, c] = mask_i( norm(PReLU(m, slope)) )[n, i, t, c] latent[n, t, c].

    The masks of the first ``softmax`` instruments are a softmax over them, that of each other one is a sigmoid.
    Differentiable once, in everything but the statistics. Backward needs ``m`` and ``latent``; masks are computed again.

    Args:
        m: (n, I, frames, C) for I instruments, float32, bfloat16, float16; on a CPU also float64.
        latent: (n, frames, C), of the dtype of ``m``.
        slope: (1,), of the PReLU on ``m``.
        norm: group norm of PReLU(m), with the statistics of PReLU(m).
        softmax: 0 or 2 to I; None for I, or 0 for one instrument, whose softmax would be 1.

    Returns:
        (n, I, frames, C) in the dtype of ``m``.

    Raises:
        ShapeError: if a shape, dtype, device or ``softmax`` does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("m", m)
    n, instruments, frames, channels = m.shape
    if latent.shape != (n, frames, channels) or latent.dtype != m.dtype or latent.device != m.device:
        found = f"{latent.dtype} {tuple(latent.shape)} on {latent.device}"
        raise ShapeError(f"latent must be {m.dtype} {(n, frames, channels)} on {m.device}, got {found}.")
    check_parameter("slope", slope, (1,), m)
    check_norm(norm, m)
    if softmax is None:
        softmax = instruments if instruments > 1 else 0
    if softmax == 1 or not 0 <= softmax <= instruments:
        raise ShapeError(f"softmax must be 0 or 2 to {instruments} instruments, got {softmax}.")
    y: Tensor = _mask_tail(m, latent[:, None], slope, *norm, softmax)[0]
    return y


def _masks(m: Tensor, slope: Tensor, affine: Tensor, beta: Tensor, softmax: int) -> tuple[Tensor, Tensor]:
    z = activation(m, slope)
    u = normalise(z, affine, beta)
    if softmax == u.shape[1]:
        return z, u.softmax(1)
    return z, torch.cat([u[:, :softmax].softmax(1), torch.sigmoid(u[:, softmax:])], dim=1)


def _kernel(
    m: Tensor, latent: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor, softmax: int
) -> tuple[Tensor, Tensor]:
    affine = affine_by_kernel(statistics, gamma, beta, m.shape[2])
    forward = kernels("mask_tail", m.dtype).mask_tail_forward
    return forward(unit_stride(m), unit_stride(latent), slope, affine, beta.contiguous(), softmax), affine


@operator("mask_tail", _kernel)
def _mask_tail(
    m: Tensor, latent: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor, softmax: int
) -> tuple[Tensor, Tensor]:
    affine = affine_of(statistics, gamma, beta, m.shape[2])
    return (_masks(m, slope, affine, beta, softmax)[1] * latent).to(m.dtype), affine


def _backward_kernel(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor, softmax: int
) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = kernels("mask_tail_backward", m.dtype).mask_tail_backward(
        unit_stride(dy), unit_stride(m), unit_stride(latent), slope, affine, beta.contiguous(), softmax
    )
    return found


@operator("mask_tail_backward", _backward_kernel)
def _mask_tail_backward(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor, softmax: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy = dy.to(wide(m.dtype))
    z, p = _masks(m, slope, affine, beta, softmax)
    dlatent = (dy * p).sum(1, keepdim=True)
    g = dy * latent
    competing = p[:, :softmax] * (g[:, :softmax] - (g[:, :softmax] * p[:, :softmax]).sum(1, keepdim=True))
    alone = p[:, softmax:] * (1 - p[:, softmax:]) * g[:, softmax:]
    dz, dgamma, dbeta = normalise_backward(torch.cat([competing, alone], dim=1), z, affine, gamma)
    dm, dslope = activation_backward(dz, m, slope)
    return dm, dlatent.to(latent.dtype), dslope, dgamma, dbeta


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    m, latent, slope, _, gamma, beta, ctx.softmax = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(m, latent, slope, output[1], gamma, beta)


def _differentiate(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    m, latent, slope, affine, gamma, beta = ctx.saved_tensors
    dm, dlatent, dslope, dgamma, dbeta = _mask_tail_backward(dy, m, latent, slope, affine, gamma, beta, ctx.softmax)
    return dm, dlatent, dslope.to(slope.dtype), None, dgamma.to(gamma.dtype), dbeta.to(beta.dtype), None


differentiable(_mask_tail, _differentiate, _save, _mask_tail_backward)
