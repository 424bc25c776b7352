"""Run the network's jobs with given weights: encode, mask, decode.

The encoder is a bank of strided filters and a learned-mel spectrogram, mixed by two 1x1 convolutions. The masking network is a
temporal convolutional network for all instruments at once: its activations are (n, instruments, channels, frames), and the
instruments are groups of one grouped convolution. The decoder is a 1x1 expansion, then transposed filters of several lengths,
whose outputs are summed.

Source: Samuel et al. 2020, sections 2 and 2.3; original ``model/encoder.py``, ``model/spectrogram.py`` (here ``torch.stft``
returns complex numbers, the only form that it still supports), ``model/mask_tcn.py``, ``model/decoder.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import GROUPS, StageConfig
from .generator import (
    BlockWeights,
    Convolution,
    DecoderWeights,
    EncoderWeights,
    MaskingWeights,
    Norm,
    SpectrogramWeights,
)

__all__ = [
    "block", "decode", "depthwise", "encode", "group_norm", "instrument_masks", "log_power", "mask", "masking_network",
    "mel_spectrogram", "pointwise",
]  # fmt: skip

FLOOR = 1e-8
"""The number that is added to the power before the logarithm."""

EPSILON = 1e-8
"""The number that is added to the biased variance of every group."""


def log_power(signal: Tensor, window: Tensor, config: StageConfig) -> Tensor:
    """Return ``log10(|STFT|^2 + 1e-8)``; the STFT has centred frames, reflect padding and the bins 0 to n_fft / 2.

    Args:
        signal: (n, 1, T).
        window: (n_fft,).
        config: the stage's sizes, which give n_fft and hop.

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
    """Return the learned mel bands: the mel map of the normalised log power, interpolated to the latent's frame rate.

    Args:
        weights: the weights of the spectrogram branch.
        config: the stage's sizes.
        signal: (n, 1, T).
        frames: number of latent frames to which the bands are interpolated, with aligned corners.

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
    """Return the outputs of all filters after a ReLU. With F filters, channel ``c F + l`` holds output ``c`` of
    filter ``l``.

    Args:
        signal: (n, 1, T).
        filters: (N / 4, 1, k_l) each; all are centred on the same sample.
        stride: samples from one frame to the next.

    Returns:
        (n, F N / 4, T // stride).
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
        ShapeError: for a signal of another shape, or too short for the reflect-padded STFT.
    """
    config.check_signal(signal.shape)
    wave = filter_bank(signal, weights.filters, config.W)
    if weights.spectrogram is not None:
        mel = mel_spectrogram(weights.spectrogram, config, signal, wave.shape[-1])
        wave = torch.cat([wave, mel], dim=1)
    x = F.conv1d(wave, weights.bottleneck_1).relu()
    return F.conv1d(x, weights.bottleneck_2)


def pointwise(x: Tensor, weights: Convolution) -> Tensor:
    """Return a 1x1 convolution of ``x`` (n, instruments, in, frames). Each instrument has its own weights.

    The result is (n, instruments, out, frames).
    """
    instruments, out, channels, _ = weights.weight.shape
    y = F.conv1d(x.flatten(1, 2), weights.weight.reshape(instruments * out, channels, 1), groups=instruments)
    y = y.view(y.shape[0], instruments, out, -1)
    return y if weights.bias is None else y + weights.bias[:, :, None]


def depthwise(x: Tensor, weights: Convolution, dilation: int) -> Tensor:
    """Return a dilated depthwise convolution of ``x`` (n, instruments, H, frames) with three taps, in the same shape.

    Outside the signal x counts as zero.
    """
    kernel = weights.weight.reshape(-1, 1, 3)
    y = F.conv1d(x.flatten(1, 2), kernel, padding=dilation, dilation=dilation, groups=len(kernel))
    return y.view(x.shape)


def group_norm(x: Tensor, weights: Norm) -> Tensor:
    """Return the group norm of ``x`` (n, instruments, channels, frames): 8 groups per instrument, biased variance, eps 1e-8.

    Mean and variance are taken over the channels of a group and over all frames.
    """
    scale, shift = weights.scale.reshape(-1), weights.shift.reshape(-1)
    return F.group_norm(x.flatten(1, 2), x.shape[1] * GROUPS, scale, shift, EPSILON).view(x.shape)


def block(x: Tensor, weights: BlockWeights, dilation: int) -> tuple[Tensor | None, Tensor]:
    """Run one block on ``x`` (n, instruments, B, frames). Return the residual and the skip output, both shaped as ``x``.

    The residual is to be added to ``x``; in the last block it is None.
    """
    h = group_norm(F.prelu(pointwise(x, weights.conv1d), weights.prelu_1), weights.norm_1)
    h = group_norm(F.prelu(depthwise(h, weights.dconv1d, dilation), weights.prelu_2), weights.norm_2)
    residual = None if weights.res_out is None else pointwise(h, weights.res_out)
    return residual, pointwise(h, weights.skip_out)


def masking_network(weights: MaskingWeights, config: StageConfig, x: Tensor) -> Tensor:
    """Return the masks: a softmax over the first ``config.softmax`` instruments, a sigmoid for each other instrument.

    Args:
        weights: the weights of the masking network.
        config: the stage's sizes.
        x: (n, instruments, in channels, frames).

    Returns:
        (n, instruments, N, frames).
    """
    x = pointwise(group_norm(F.prelu(x, weights.prelu_1), weights.norm_1), weights.in_conv)
    x = group_norm(F.prelu(x, weights.prelu_2), weights.norm_2)
    skips: Tensor | None = None
    for block_weights, dilation in zip(weights.blocks, config.dilations, strict=True):
        residual, skip = block(x, block_weights, dilation)
        skips = skip if skips is None else skips + skip
        if residual is not None:
            x = x + residual
    assert skips is not None
    x = pointwise(group_norm(F.prelu(skips, weights.prelu_3), weights.norm_3), weights.mask_output)
    return instrument_masks(group_norm(F.prelu(x, weights.prelu_4), weights.norm_4), config.softmax)


def instrument_masks(x: Tensor, softmax: int) -> Tensor:
    """Return ``x`` with a softmax over the first ``softmax`` rows of dimension 1, and a sigmoid in every other row."""
    if softmax == x.shape[1]:
        return F.softmax(x, dim=1)
    if softmax == 0:
        return torch.sigmoid(x)
    return torch.cat([F.softmax(x[:, :softmax], dim=1), torch.sigmoid(x[:, softmax:])], dim=1)


def mask(
    weights: MaskingWeights, config: StageConfig, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
) -> Tensor:
    """Return the latents of all instruments: the mixture's latent times the masks.

    Args:
        latent: (n, N, frames), the latent of the mixture.
        partial: (n, instruments, N / 2, frames), the masked latent of the previous stage; None in the first stage.
        dropout: (n, instruments, N), factors for the copy of the latent that the masking network reads; None for no dropout.

    Returns:
        (n, instruments, N, frames).

    Raises:
        ShapeError: if ``latent`` or ``partial`` does not fit the stage.
    """
    config.check_latent(latent.shape)
    config.check_partial(None if partial is None else partial.shape, latent.shape)
    if latent.shape[0] == 0:
        return latent.new_empty(0, config.instruments, config.N, latent.shape[-1])
    latents = latent[:, None].expand(-1, config.instruments, -1, -1)
    x = latents if dropout is None else latents * dropout[..., None]
    if partial is not None:
        x = torch.cat([x, partial], dim=2)
    return latents * masking_network(weights, config, x)


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
