"""The encoder and the decoder as a few fused operations.

The encoder takes six operations: the filters as one bank with a ReLU; log power, the mel map and the mel bands' share of the
bottleneck, these three at 31.25 frames a second; the bottleneck's first product, whose epilogue interpolates and adds the
share; the bottleneck's second product. The decoder takes two: a product with a ReLU, and the overlap-add. Latents are
(n, frames, N) in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import StageConfig
from ..precision import Precision
from ..reference.generator import DecoderWeights, EncoderWeights
from .bottleneck import bottleneck, rectified_bottleneck
from .filter_bank import overlap_add, rectified_filter_bank
from .log_power import log_power

__all__ = ["DecoderOperands", "EncoderOperands", "decode", "encode", "prepare_decoder", "prepare_encoder"]

ALIGNMENT = 8


@dataclass(frozen=True)
class MelOperands:
    """The weights of the spectrogram branch: ``window`` and ``mean``; ``weight`` and ``bias`` of the map to mel bands;
    ``to_latent``, the bottleneck's weights for the mel bands."""

    window: Tensor
    mean: Tensor
    weight: Tensor
    bias: Tensor
    to_latent: Tensor


@dataclass(frozen=True)
class EncoderOperands:
    """The weights of :func:`encode`.

    ``bank`` (outputs, taps) holds all filters. The bottleneck's first weights are ``wave``, for the outputs of the filters, and
    ``mel.to_latent``, for the mel bands; its second weights are ``last``. ``narrow`` is the number of rows of the bank with
    filters shorter than the longest, and the number of taps of the longest of these filters.
    """

    config: StageConfig
    precision: Precision
    bank: Tensor
    narrow: tuple[int, int]
    wave: Tensor
    mel: MelOperands | None
    """None in a network without the spectrogram branch."""
    last: Tensor


@dataclass(frozen=True)
class DecoderOperands:
    """The weights of :func:`decode`: ``bottleneck`` and ``bank``. ``narrow`` is as in :class:`EncoderOperands`."""

    config: StageConfig
    precision: Precision
    bottleneck: Tensor
    bank: Tensor
    narrow: tuple[int, int]


def _narrow(bank: Sequence[Tensor]) -> tuple[int, int]:
    """Return the number of rows of all filters except the longest, and the number of taps of the second longest.

    The filters come shortest first.
    """
    return sum(len(f) for f in bank[:-1]), bank[-2].shape[-1] if len(bank) > 1 else bank[-1].shape[-1]


def _centred(filters: tuple[Tensor, ...]) -> list[Tensor]:
    """Return each filter (C_l, 1, k_l) as (C_l, k), padded with zeros at both ends. k is the longest length."""
    taps = max(f.shape[-1] for f in filters)
    ends = [(taps - f.shape[-1]) // 2 for f in filters]
    return [F.pad(f.squeeze(1), (end, end)) if end else f.squeeze(1) for f, end in zip(filters, ends, strict=True)]


def _aligned(p: Tensor, *dims: int) -> Tensor:
    """Return ``p`` with zeros added to the given dimensions, up to multiples of eight: kernels then load 16 bytes at a time.

    At the default widths the filters' 330 outputs become 336, and the 385 inputs of the decoder's filters become 392. The added
    channels stay zero after the ReLUs.
    """
    padding = [0] * (2 * p.dim())
    for dim in dims:
        padding[2 * (p.dim() - 1 - dim) + 1] = -p.shape[dim] % ALIGNMENT
    return F.pad(p, padding) if any(padding) else p


def _exact(precision: Precision) -> torch.dtype:
    """Return the dtype of values that need at least float32: float32, or float64 if ``precision`` is float64."""
    return torch.promote_types(precision.storage, torch.float32)


def prepare_encoder(weights: EncoderWeights, config: StageConfig, precision: Precision) -> EncoderOperands:
    """Convert an encoder's weights to the form that :func:`encode` takes. The conversion is differentiable.

    The standard deviations, the learned affine and the mel map become one matrix and one bias. The mean stays separate: it must
    be subtracted from the logarithm in float32, before any product.
    """
    dtype, exact, s = precision.storage, _exact(precision), weights.spectrogram
    first, waves = weights.bottleneck_1.squeeze(2), len(weights.filters) * config.encoder_width
    wave, to_latent = first.split((waves, first.shape[1] - waves), dim=1)
    wave = wave.unflatten(1, (-1, len(weights.filters))).transpose(1, 2).flatten(1)  # columns in the bank's order
    mel = None
    if s is not None:
        mel_weight = s.mel_weight.squeeze(2).to(exact)
        mel = MelOperands(
            window=s.window.to(exact),
            mean=s.mean.flatten().to(exact),
            weight=mel_weight * (s.scale / s.std).flatten().to(exact),
            bias=s.mel_bias.to(exact) + (mel_weight * s.bias.flatten().to(exact)).sum(1),
            to_latent=to_latent.to(exact),
        )
    return EncoderOperands(
        config,
        precision,
        bank=_aligned(torch.cat(_centred(weights.filters)), 0).to(dtype),
        narrow=_narrow(weights.filters),
        wave=_aligned(wave, 1).to(dtype),
        mel=mel,
        last=weights.bottleneck_2.squeeze(2).to(dtype),
    )


def prepare_decoder(weights: DecoderWeights, config: StageConfig, precision: Precision) -> DecoderOperands:
    """Convert a decoder's weights to the form that :func:`decode` takes. The conversion is differentiable."""
    dtype = precision.storage
    bank, first = _aligned(torch.cat(_centred(weights.filters)), 0), _aligned(weights.bottleneck.squeeze(2).T, 0)
    return DecoderOperands(config, precision, first.to(dtype), bank.to(dtype), _narrow(weights.filters))


def encode(operands: EncoderOperands, signal: Tensor) -> Tensor:
    """Encode a signal into its latent.

    In bfloat16 and float16 the mel branch is float32 with TF32 products. Its Fourier transform has at least float32 accuracy.

    Args:
        operands: from :func:`prepare_encoder`.
        signal: (n, 1, T), any strides and floating dtype, T at least ``config.shortest``.

    Returns:
        the latent, (n, N, T // W), in the precision's dtype; channels are contiguous in memory.

    Raises:
        ShapeError: for a signal of another shape, or too short for the reflect-padded transform.
    """
    o, config, tf32 = operands, operands.config, operands.precision is Precision.tf32
    config.check_signal(signal.shape)
    samples, share = signal[:, 0], None
    padding = (o.bank.shape[1] - config.W) // 2
    wave = rectified_filter_bank(samples.to(o.bank.dtype), o.bank, config.W, padding, narrow=o.narrow, tf32=tf32)
    if o.mel is not None:
        power = log_power(samples.to(o.mel.mean.dtype), o.mel.window, o.mel.mean, config.hop)
        rough = tf32 or o.bank.dtype.itemsize == 2
        mel = bottleneck(power, o.mel.weight, o.mel.bias, tf32=rough)
        share = bottleneck(mel, o.mel.to_latent, tf32=rough)
    x = rectified_bottleneck(wave, o.wave, share=share, tf32=tf32)
    return bottleneck(x, o.last, tf32=tf32).transpose(1, 2)


def decode(operands: DecoderOperands, latent: Tensor) -> Tensor:
    """Decode a latent into its signal.

    Args:
        operands: from :func:`prepare_decoder`.
        latent: (n, N, frames), any strides and floating dtype; it is not copied if channels are contiguous in memory.

    Returns:
        the signal, (n, 1, frames W), float32; float64 if the precision is float64.

    Raises:
        ShapeError: for a latent of another shape.
    """
    o, config, tf32 = operands, operands.config, operands.precision is Precision.tf32
    config.check_latent(latent.shape)
    if latent.shape[2] == 0:
        return latent.new_empty(latent.shape[0], 1, 0, dtype=_exact(o.precision))
    x = rectified_bottleneck(latent.transpose(1, 2).to(o.bank.dtype), o.bottleneck, tf32=tf32)
    padding = (o.bank.shape[1] - config.W) // 2
    return overlap_add(x, o.bank, config.W, padding, narrow=o.narrow, tf32=tf32)[:, None]
