"""Logarithm of the short-time power spectrum, minus a stored mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..reference import log_power as plain
from ..reference.statistics import wide
from .library import (
    LIBRARY,
    NAMESPACE,
    check_parameter,
    kernels,
    register,
    register_once_differentiable,
    unit_stride,
)

__all__ = ["log_power"]


def log_power(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    """y[n, f, b] = log10( |STFT(signal)[n, f, b]|^2 + 1e-8 ) - mean[b]: centred frames, reflect padding, one-sided.

    Float32 in every precision: the logarithm of near silence, from which the mean is taken, forgives nothing less.
    Differentiable once, in the signal alone.

    Args:
        signal: (n, samples), any floating dtype, more than n_fft / 2 samples.
        window: (n_fft,), n_fft a multiple of 8; without gradient.
        mean: (n_fft / 2 + 1,), stored statistics; without gradient.
        hop: samples from one frame to the next, at most n_fft.

    Returns:
        (n, samples // hop + 1, n_fft / 2 + 1), float32 (float64 where the signal is).

    Raises:
        ShapeError: if a shape, dtype, device or size does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    if signal.dim() != 2 or not signal.is_floating_point():
        raise ShapeError(f"signal must be (n, samples), floating point, got {signal.dtype} {tuple(signal.shape)}.")
    if window.dim() != 1 or len(window) == 0 or len(window) % 8:
        raise ShapeError(f"window must be (n_fft,), n_fft a multiple of 8, got {tuple(window.shape)}.")
    check_parameter("window", window, (len(window),), signal)
    check_parameter("mean", mean, (len(window) // 2 + 1,), signal)
    if not 1 <= hop <= len(window):
        raise ShapeError(f"hop must be between 1 and n_fft={len(window)}, got {hop}.")
    if signal.shape[1] <= len(window) // 2:
        raise ShapeError(f"{signal.shape[1]} samples are too few to reflect {len(window) // 2}: pad the signal.")
    y: Tensor = _log_power(signal, window.detach(), mean.detach(), hop)
    return y


def _forward_kernel(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    module = kernels("log_power", signal.dtype)
    found: Tensor = module.log_power_forward(
        unit_stride(signal.float()), window.float().contiguous(), mean.float().contiguous(), hop
    )
    return found


def _forward_reference(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    return plain.forward(signal, window, mean, hop).contiguous()


def _forward_fake(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    return signal.new_empty(
        signal.shape[0], signal.shape[1] // hop + 1, window.shape[0] // 2 + 1, dtype=wide(signal.dtype)
    )


def _backward_kernel(dy: Tensor, signal: Tensor, window: Tensor, hop: int) -> Tensor:
    module = kernels("log_power_backward", signal.dtype)
    found: Tensor = module.log_power_backward(
        dy.contiguous(), unit_stride(signal.float()), window.float().contiguous(), hop
    )
    return found.to(signal.dtype)


def _backward_reference(dy: Tensor, signal: Tensor, window: Tensor, hop: int) -> Tensor:
    return plain.backward(dy, signal, window, hop).contiguous()


def _backward_fake(dy: Tensor, signal: Tensor, window: Tensor, hop: int) -> Tensor:
    return signal.new_empty(signal.shape)


_log_power = register(
    "log_power(Tensor signal, Tensor window, Tensor mean, int hop) -> Tensor",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_log_power_backward = register(
    "log_power_backward(Tensor dy, Tensor signal, Tensor window, int hop) -> Tensor",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    signal, window, _, ctx.hop = inputs
    ctx.save_for_backward(signal, window)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    signal, window = ctx.saved_tensors
    return _log_power_backward(dy, signal, window, ctx.hop), None, None, None


torch.library.register_autograd(f"{NAMESPACE}::log_power", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("log_power_backward")
