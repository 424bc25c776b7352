"""The end of the masking network: group norm, masks, product with the mixture's latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import GROUPS
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
from .pointwise import forward as pointwise_forward
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

__all__ = ["mask_tail", "masked_latent"]


def mask_tail(m: Tensor, latent: Tensor, slope: Tensor, norm: GroupNorm, softmax: int | None = None) -> Tensor:
    """Return y[n, i, t, c] = mask_i( norm(PReLU(m, slope)) )[n, i, t, c] latent[n, t, c].

    The masks of the first ``softmax`` instruments are a softmax over these instruments; each other mask is a sigmoid. The
    operation is differentiable once, in all inputs except the statistics. Backward needs ``m`` and ``latent``, and computes the
    masks again.

    Args:
        m: (n, I, frames, C) for I instruments, float32, bfloat16, float16; on a CPU also float64.
        latent: (n, frames, C), of the dtype of ``m``.
        slope: (1,), slope of the PReLU on ``m``.
        norm: group norm of PReLU(m), with the statistics of PReLU(m).
        softmax: 0, or from 2 to I. None stands for I; but with one instrument, whose softmax would always be 1, for 0.

    Returns:
        y, (n, I, frames, C), in the dtype of ``m``.

    Raises:
        ShapeError: if a shape, dtype, device or ``softmax`` does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("m", m)
    softmax = _checked(m, m.shape[3], latent, slope, softmax)
    check_norm(norm, m)
    y: Tensor = _mask_tail(m, latent[:, None], slope, *norm, softmax)[0]
    return y


def masked_latent(
    x: Tensor,
    weight: Tensor,
    norm: GroupNorm,
    next_slope: Tensor,
    next_gamma: Tensor,
    next_beta: Tensor,
    latent: Tensor,
    softmax: int | None = None,
    *,
    tf32: bool = False,
) -> Tensor:
    """Return ``mask_tail(m, latent, next_slope, ...)`` for m = ``weight`` norm(x), without storing m.

    The result has no gradient.

    Args:
        x: (n, I, frames, K), after its PReLU, if any: float32, bfloat16, float16; on a CPU also float64.
        weight: (I, C, K), any floating dtype; products are taken in the dtype of ``x`` and summed in float32.
        norm: group norm of x, with the statistics of x.
        next_slope: (1,), slope of the PReLU on m.
        next_gamma, next_beta: (I, C), parameters of the group norm of PReLU(m).
        latent: (n, frames, C), of the dtype of ``x``.
        softmax: as in :func:`mask_tail`.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        (n, I, frames, C) in the dtype of ``x``.

    Raises:
        ShapeError: if a shape, dtype, device or ``softmax`` does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    instruments, channels = x.shape[1], next_gamma.shape[-1]
    softmax = _checked(x, channels, latent, next_slope, softmax)
    check_norm(norm, x)
    if channels % GROUPS:
        raise ShapeError(f"Group norm needs a multiple of {GROUPS} channels, got {channels}.")
    check_parameter("weight", weight, (instruments, channels, x.shape[3]), x)
    check_parameter("next_gamma", next_gamma, (instruments, channels), x)
    check_parameter("next_beta", next_beta, (instruments, channels), x)
    given = [v.detach() for v in (x, weight, *norm, next_slope, next_gamma, next_beta, latent[:, None])]
    y: Tensor = _masked_latent(*given, softmax, tf32)
    return y


def _checked(m: Tensor, channels: int, latent: Tensor, slope: Tensor, softmax: int | None) -> int:
    """Check the arguments of both operations; return how many instruments share the softmax."""
    n, instruments, frames, _ = m.shape
    if latent.shape != (n, frames, channels) or latent.dtype != m.dtype or latent.device != m.device:
        found = f"{latent.dtype} {tuple(latent.shape)} on {latent.device}"
        raise ShapeError(f"latent must be {m.dtype} {(n, frames, channels)} on {m.device}, got {found}.")
    check_parameter("slope", slope, (1,), m)
    if softmax is None:
        softmax = instruments if instruments > 1 else 0
    if softmax == 1 or not 0 <= softmax <= instruments:
        raise ShapeError(f"softmax must be 0 or 2 to {instruments} instruments, got {softmax}.")
    return softmax


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
    found: tuple[Tensor, ...] = kernels("mask_tail", m.dtype).mask_tail_backward(
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


def _masked_kernel(
    x: Tensor, weight: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor, slope: Tensor, next_gamma: Tensor,
    next_beta: Tensor, latent: Tensor, softmax: int, tf32: bool,
) -> Tensor:  # fmt: skip
    x, latent, next_beta, frames = unit_stride(x), unit_stride(latent), next_beta.contiguous(), x.shape[2]
    pointwise, module = kernels("pointwise", x.dtype), kernels("masked_latent", x.dtype)
    norm = (statistics.contiguous(), gamma.contiguous(), beta.contiguous())
    folded, shares, _ = pointwise.fold_weights(weight.contiguous(), None, *norm, frames, x.dtype)
    if module.serves(x):
        bias = shares.sum(2)
        affine = affine_by_kernel(module.mask_statistics(x, folded, bias, slope), next_gamma, next_beta, frames)
        found: Tensor = module.masked_latent(x, folded, bias, slope, affine, latent, softmax)
        return found
    m, statistics = pointwise.product(x, folded, shares, None, None, slope, tf32)
    affine = affine_by_kernel(statistics, next_gamma, next_beta, frames)
    found = kernels("mask_tail", x.dtype).mask_tail_forward(m, latent, slope, affine, next_beta, softmax)
    return found


@operator("masked_latent", _masked_kernel)
def _masked_latent(
    x: Tensor, weight: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor, slope: Tensor, next_gamma: Tensor,
    next_beta: Tensor, latent: Tensor, softmax: int, tf32: bool,
) -> Tensor:  # fmt: skip
    m = pointwise_forward(x, weight, None, None, None, affine_of(statistics, gamma, beta, x.shape[2]), beta)
    affine = affine_of(tile_statistics(activation(m, slope)), next_gamma, next_beta, x.shape[2])
    return (_masks(m, slope, affine, next_beta, softmax)[1] * latent).to(x.dtype)
