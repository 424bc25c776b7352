"""Encoder and decoder of the training step: the arithmetic of the model's, with its convolutions as matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from metatasnet_fast.config import StageConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.reference.spectrogram import log_power
from metatasnet_fast.reference.weights import DecoderWeights, EncoderWeights

__all__ = ["decode", "encode", "parameters"]


@cache
def interpolation(frames: int, to: int) -> Tensor:
    """(to, frames): linear interpolation with aligned corners."""
    return F.interpolate(torch.eye(frames)[None], size=to, mode="linear", align_corners=True)[0].T.contiguous()


def filter_matrix(filters: Sequence[Tensor]) -> Tensor:
    """Centred filters (width_l, 1, k_l) as columns of one matrix, (longest k, sum of widths)."""
    longest = filters[-1].shape[-1]
    return torch.cat([F.pad(f[:, 0], ((longest - f.shape[-1]) // 2,) * 2) for f in filters]).T


def encode(weights: EncoderWeights, config: StageConfig, signal: Tensor) -> Tensor:
    """(n, T', N), float32, of (n, T)."""
    longest, filters = config.kernel_sizes[-1], len(config.kernel_sizes)
    count = filters * config.encoder_width
    frames = F.pad(signal, ((longest - config.W) // 2,) * 2).unfold(-1, longest, config.W)
    wave = (frames.reshape(-1, longest) @ filter_matrix(weights.filters)).relu().view(len(signal), -1, count)
    s = weights.spectrogram
    with torch.no_grad():
        spectrum = ((log_power(signal[:, None], s.window, config) - s.mean) / s.std).transpose(1, 2)
    spectrum = spectrum * s.scale[:, :, 0] + s.bias[:, :, 0]
    mel = F.linear(spectrum, s.mel_weight[..., 0], s.mel_bias)
    mel = interpolation(mel.shape[1], wave.shape[1]) @ mel
    # The network interleaves the outputs of its filters; here they follow each other, so the columns are reordered.
    bottleneck = weights.bottleneck_1[..., 0]
    columns = bottleneck[:, :count].unflatten(1, (config.encoder_width, filters)).transpose(1, 2).flatten(1)
    x = F.linear(wave, columns) + F.linear(mel, bottleneck[:, count:])
    return F.linear(x.relu_(), weights.bottleneck_2[..., 0])


class OverlapAdd(Function):
    """The sum of the filters' frames, float32 (m, frames + longest - 1, stride): frames (m, frames, pieces_l, stride) of each
    filter, that of the shorter ones ``starts_l`` hops later."""

    @staticmethod
    def forward(ctx: Any, starts: tuple[int, ...], longest: int, *parts: Tensor) -> Tensor:
        count, frames, _, stride = parts[0].shape
        total = parts[0].new_zeros(count, frames + longest - 1, stride, dtype=torch.float32)
        for start, part in zip(starts, parts, strict=True):
            for piece in range(part.shape[2]):
                total[:, start + piece : start + piece + frames] += part[:, :, piece]
        ctx.starts, ctx.sizes, ctx.dtype = starts, [part.shape for part in parts], parts[0].dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rounded = grad.contiguous().to(ctx.dtype)
        grads = []
        for start, (_, frames, pieces, stride) in zip(ctx.starts, ctx.sizes, strict=True):
            samples = rounded[:, start : start + frames + pieces - 1].flatten(1)
            grads.append(samples.unfold(1, pieces * stride, stride).unflatten(2, (pieces, stride)))
        return None, None, *grads


def decode(weights: DecoderWeights, config: StageConfig, latent: Tensor) -> Tensor:
    """(m, T), float32, of (m, T', N)."""
    dtype, stride, longest = latent.dtype, config.W, config.kernel_sizes[-1]
    count, frames, _ = latent.shape
    x = torch.mm(latent.flatten(0, 1), weights.bottleneck[..., 0].to(dtype)).relu()
    turns = longest // stride
    starts, parts = [], []
    for part, kernel in zip(x.split(config.decoder_widths, dim=1), weights.filters, strict=True):
        k = kernel.shape[-1]
        # Frames of the shorter filters begin later than those of the longest, by half the difference.
        room = (longest - k) // 2
        pieces = -(-(room % stride + k) // stride)
        taps = F.pad(kernel[:, 0], (room % stride, pieces * stride - k - room % stride)).to(dtype)
        starts.append(room // stride)
        parts.append(torch.mm(part.contiguous(), taps).view(count, frames, pieces, stride))
    total: Tensor = OverlapAdd.apply(tuple(starts), turns, *parts)
    crop = (longest - stride) // 2
    return total.flatten(1)[:, crop : crop + frames * stride]


def parameters(network: MultiTasNet) -> list[dict[str, Tensor]]:
    """The parameters of every stage by the original's names."""
    return [dict(stage.named_parameters()) for stage in network.stages]
