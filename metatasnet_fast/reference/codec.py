"""Encode by a bank of strided filters and a learned-mel spectrogram, mixed by two 1x1 convolutions. Decode by a 1x1
expansion, then transposed filters of several lengths, whose outputs are summed.

Source: Samuel et al. 2020, section 2.3; original ``model/encoder.py``, ``model/spectrogram.py`` (here ``torch.stft``
returns complex numbers, the only form that it still supports), ``model/decoder.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import StageConfig
from .generator import DecoderWeights, EncoderWeights, SpectrogramWeights

__all__ = ["decode", "encode", "log_power", "mel_spectrogram"]

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


def filter_bank(signal: Tensor, filters: tuple[Tensor, ...], stride: int) -> Tensor:
    """Return ``relu`` of the filters' outputs, interleaved: channel ``n * filters + l`` holds output ``n`` of filter ``l``.

    Args:
        signal: (n, 1, T).
        filters: (N / 4, 1, k_l) each; all are centred on the same sample.
        stride: samples per frame.

    Returns:
        (n, filters * N / 4, T // stride).
    """
    outputs = [F.conv1d(signal, f, stride=stride, padding=(f.shape[-1] - stride) // 2) for f in filters]
    return torch.stack(outputs, dim=2).flatten(1, 2).relu()


def encode(weights: EncoderWeights, config: StageConfig, signal: Tensor) -> Tensor:
    """Encode a signal into its latent.

    Args:
        signal: (n, 1, T) with T at least ``config.shortest``.

    Returns:
        (n, N, T // W).

    Raises:
        ShapeError: for a signal of another shape or too short for the reflect-padded STFT.
    """
    config.check_signal(signal.shape)
    wave = filter_bank(signal, weights.filters, config.W)
    if weights.spectrogram is not None:
        mel = mel_spectrogram(weights.spectrogram, config, signal, wave.shape[-1])
        wave = torch.cat([wave, mel], dim=1)
    x = F.conv1d(wave, weights.bottleneck_1).relu()
    return F.conv1d(x, weights.bottleneck_2)


def decode(weights: DecoderWeights, config: StageConfig, latent: Tensor) -> Tensor:
    """Decode a latent into its signal.

    Args:
        latent: (n, N, frames).

    Returns:
        (n, 1, frames * W).

    Raises:
        ShapeError: for a latent of another shape.
    """
    config.check_latent(latent.shape)
    if latent.shape[0] == 0:
        return latent.new_empty(0, 1, latent.shape[-1] * config.W)
    x = F.conv_transpose1d(latent, weights.bottleneck).relu()
    parts = x.split(config.decoder_widths, dim=1)
    signals = [
        F.conv_transpose1d(part, kernel, stride=config.W, padding=(kernel.shape[-1] - config.W) // 2)
        for part, kernel in zip(parts, weights.filters, strict=True)
    ]
    return sum(signals[1:], signals[0])
