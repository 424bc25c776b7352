"""Log power minus its mean, on (n, samples) and (n, frames, bins), forward and backward; see :mod:`.spectrogram`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .spectrogram import FLOOR
from .statistics import wide

__all__ = ["backward", "forward"]


def _places(samples: int, n_fft: int, device: torch.device) -> Tensor:
    """Which sample the reflect-padded signal shows at each place."""
    place = torch.arange(-(n_fft // 2), samples + n_fft // 2, device=device).abs()
    return torch.where(place >= samples, 2 * (samples - 1) - place, place)


def _spectrum(signal: Tensor, window: Tensor, hop: int) -> Tensor:
    padded = signal[:, _places(signal.shape[1], len(window), signal.device)].to(wide(signal.dtype))
    frames = padded.unfold(1, len(window), hop) * window.to(padded.dtype)
    if len(signal) == 0:
        return torch.empty(0, frames.shape[1], len(window) // 2 + 1, dtype=frames.dtype.to_complex())
    found: Tensor = torch.fft.rfft(frames)
    return found


def forward(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    """log10(|X|^2 + 1e-8) - mean, (n, samples // hop + 1, n_fft / 2 + 1)."""
    x = _spectrum(signal, window, hop)
    return torch.log10(x.real**2 + x.imag**2 + FLOOR) - mean.to(x.real.dtype)


def backward(dy: Tensor, signal: Tensor, window: Tensor, hop: int) -> Tensor:
    """dsignal."""
    n, samples = signal.shape
    x = _spectrum(signal, window, hop)
    if n == 0:
        return signal.new_empty(0, samples)
    dx = dy * 2 / math.log(10) / (x.real**2 + x.imag**2 + FLOOR) * x
    dframes = torch.fft.ifft(dx, n=len(window), norm="forward").real * window.to(dx.real.dtype)
    places = _places(samples, len(window), signal.device).unfold(0, len(window), hop)
    found = dframes.new_zeros(n, samples).index_add(1, places.flatten(), dframes.flatten(1))
    gradient: Tensor = found.to(signal.dtype)
    return gradient
