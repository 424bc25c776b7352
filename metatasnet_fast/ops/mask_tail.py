"""The end of the masking network: group norm, softmax over the instruments, product with the mixture's latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..reference import mask_tail as plain
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

__all__ = ["mask_tail"]


def mask_tail(m: Tensor, latent: Tensor, slope: Tensor, norm: GroupNorm) -> Tensor:
    """y[n, i, t, c] = softmax_i( norm(PReLU(m, slope)) )[n, i, t, c] latent[n, t, c].

    Differentiable once, in everything but the statistics. Backward needs ``m`` and ``latent``; the masks are computed again.

    Args:
        m: (n, 4, frames, C), float32, bfloat16, float16; on a CPU also float64.
        latent: (n, frames, C), of the dtype of ``m``.
        slope: (1,), of the PReLU on ``m``.
        norm: group norm of PReLU(m), with the statistics of PReLU(m).

    Returns:
        (n, 4, frames, C) in the dtype of ``m``.

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("m", m)
    n, _, frames, channels = m.shape
    if latent.shape != (n, frames, channels) or latent.dtype != m.dtype or latent.device != m.device:
        found = f"{latent.dtype} {tuple(latent.shape)} on {latent.device}"
        raise ShapeError(f"latent must be {m.dtype} {(n, frames, channels)} on {m.device}, got {found}.")
    check_parameter("slope", slope, (1,), m)
    check_norm(norm, m)
    y: Tensor = _mask_tail(m, latent[:, None], slope, *norm)[0]
    return y


def _forward_kernel(
    m: Tensor, latent: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    beta = beta.contiguous()
    launcher = kernels("statistics", m.dtype).group_affine
    affine = launcher(statistics.contiguous(), gamma.contiguous(), beta, m.shape[2])
    forward = kernels("mask_tail", m.dtype).mask_tail_forward
    return forward(unit_stride(m), unit_stride(latent), slope, affine, beta), affine


def _forward_reference(
    m: Tensor, latent: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    affine = _affine_reference(statistics, gamma, beta, m.shape[2])
    return plain.forward(m, latent, slope, affine, beta).contiguous(), affine


def _forward_fake(
    m: Tensor, latent: Tensor, slope: Tensor, statistics: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    return m.new_empty(m.shape), statistics.new_empty(m.shape[0], 4, 4, m.shape[3])


def _backward_kernel(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, ...]:
    launcher = kernels("mask_tail_backward", m.dtype).mask_tail_backward
    found: tuple[Tensor, ...] = launcher(
        unit_stride(dy), unit_stride(m), unit_stride(latent), slope, affine, beta.contiguous()
    )
    return found


def _backward_reference(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in plain.backward(dy, m, latent, slope, affine, gamma, beta))


def _backward_fake(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, ...]:
    channels = affine.new_empty(4, m.shape[3])
    return (
        m.new_empty(m.shape), latent.new_empty(latent.shape), affine.new_empty(1), channels, torch.empty_like(channels),
    )  # fmt: skip


_mask_tail = register(
    "mask_tail(Tensor m, Tensor latent, Tensor slope, Tensor statistics, Tensor gamma, Tensor beta) -> (Tensor, Tensor)",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_mask_tail_backward = register(
    "mask_tail_backward(Tensor dy, Tensor m, Tensor latent, Tensor slope, Tensor affine, Tensor gamma, Tensor beta) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    m, latent, slope, _, gamma, beta = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(m, latent, slope, output[1], gamma, beta)


def _differentiate(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    m, latent, slope, affine, gamma, beta = ctx.saved_tensors
    dm, dlatent, dslope, dgamma, dbeta = _mask_tail_backward(dy, m, latent, slope, affine, gamma, beta)
    return dm, dlatent, dslope.to(slope.dtype), None, dgamma.to(gamma.dtype), dbeta.to(beta.dtype)


torch.library.register_autograd(f"{NAMESPACE}::mask_tail", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("mask_tail_backward")
