"""Logarithm of the short-time power spectrum, minus a stored mean."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from .operator import check_parameter, differentiable, kernels, operator, unit_stride, wide

__all__ = ["log_power"]

FLOOR = 1e-8
"""The number that is added to the power before the logarithm."""


def log_power(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    """Return y[n, f, b] = log10( |STFT(signal)[n, f, b]|^2 + 1e-8 ) - mean[b].

    The STFT has centred frames, reflect padding and the bins 0 to n_fft / 2. Two-byte signals are converted to float32: lower
    precision would change the logarithm of near silence too much. The operation is differentiable once, only in the signal.

    Args:
        signal: (n, samples), any floating dtype, more than n_fft / 2 samples.
        window: (n_fft,), n_fft a multiple of 8; without gradient.
        mean: (n_fft / 2 + 1,), stored statistics; without gradient.
        hop: samples from one frame to the next, at most n_fft.

    Returns:
        y, (n, samples // hop + 1, n_fft / 2 + 1), float32 (float64 if the signal is).

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


def _places(samples: int, n_fft: int, device: torch.device) -> Tensor:
    """Return, for each place of the reflect-padded signal, the index of the sample that stands there."""
    place = torch.arange(-(n_fft // 2), samples + n_fft // 2, device=device).abs()
    return torch.where(place >= samples, 2 * (samples - 1) - place, place)


def _spectrum(signal: Tensor, window: Tensor, hop: int) -> Tensor:
    padded = signal[:, _places(signal.shape[1], len(window), signal.device)].to(wide(signal.dtype))
    frames = padded.unfold(1, len(window), hop) * window.to(padded.dtype)
    if signal.shape[0] == 0:
        return torch.empty(
            0, frames.shape[1], len(window) // 2 + 1, dtype=frames.dtype.to_complex(), device=signal.device
        )
    found: Tensor = torch.fft.rfft(frames)
    return found


def _kernel(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    found: Tensor = kernels("log_power", signal.dtype).log_power_forward(
        unit_stride(signal.float()), window.float().contiguous(), mean.float().contiguous(), hop
    )
    return found


@operator("log_power", _kernel)
def _log_power(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    x = _spectrum(signal, window, hop)
    return torch.log10(x.real**2 + x.imag**2 + FLOOR) - mean.to(x.real.dtype)


def _backward_kernel(dy: Tensor, signal: Tensor, window: Tensor, hop: int) -> Tensor:
    found: Tensor = kernels("log_power", signal.dtype).log_power_backward(
        dy.contiguous(), unit_stride(signal.float()), window.float().contiguous(), hop
    )
    return found.to(signal.dtype)


@operator("log_power_backward", _backward_kernel)
def _log_power_backward(dy: Tensor, signal: Tensor, window: Tensor, hop: int) -> Tensor:
    n, samples = signal.shape
    x = _spectrum(signal, window, hop)
    if n == 0:
        return signal.new_empty(0, samples)
    dx = dy * 2 / math.log(10) / (x.real**2 + x.imag**2 + FLOOR) * x
    dframes = torch.fft.ifft(dx, n=len(window), norm="forward").real * window.to(dx.real.dtype)
    places = _places(samples, len(window), signal.device).unfold(0, len(window), hop)
    found: Tensor = dframes.new_zeros(n, samples).index_add(1, places.flatten(), dframes.flatten(1))
    return found.to(signal.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    signal, window, _, ctx.hop = inputs
    ctx.save_for_backward(signal, window)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    signal, window = ctx.saved_tensors
    return _log_power_backward(dy, signal, window, ctx.hop), None, None, None


differentiable(_log_power, _differentiate, _save, _log_power_backward)
