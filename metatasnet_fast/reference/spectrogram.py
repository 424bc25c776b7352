"""The spectrogram branch of the encoder.

Source: original ``model/spectrogram.py``; ``torch.stft`` is asked for complex numbers, the only form it still has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import StageConfig
from .weights import SpectrogramWeights

__all__ = ["log_power", "mel_spectrogram"]

FLOOR = 1e-8
"""Added to the power before the logarithm."""


def log_power(signal: Tensor, window: Tensor, config: StageConfig) -> Tensor:
    """Return ``log10(|STFT|^2 + 1e-8)`` with centred frames, reflect padding, one-sided.

    Args:
        signal: (n, 1, T).
        window: (n_fft,).

    Returns:
        (n, n_fft / 2 + 1, T // hop + 1).
    """
    if signal.shape[0] == 0:
        return signal.new_empty(0, config.bins, signal.shape[-1] // config.hop + 1)
    stft = torch.stft(
        signal[:, 0],
        n_fft=config.n_fft,
        hop_length=config.hop,
        window=window,
        center=True,
        pad_mode="reflect",
        onesided=True,
        return_complex=True,
    )
    return torch.log10(stft.real**2 + stft.imag**2 + FLOOR)


def mel_spectrogram(weights: SpectrogramWeights, config: StageConfig, signal: Tensor, frames: int) -> Tensor:
    """Apply the learned mel map to the normalised log power, and interpolate to the latent's frame rate.

    Args:
        signal: (n, 1, T).
        frames: latent frames to interpolate to, corners aligned.

    Returns:
        (n, mels, frames).
    """
    x = log_power(signal, weights.window, config)
    x = (x - weights.mean) / weights.std
    x = x * weights.scale + weights.bias
    x = F.conv1d(x, weights.mel_weight, weights.mel_bias)
    if x.shape[0] == 0:
        return x.new_empty(0, x.shape[1], frames)
    return F.interpolate(x, size=frames, mode="linear", align_corners=True)
