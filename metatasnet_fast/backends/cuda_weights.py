"""The weights of one stage in the form that the CUDA kernels read: padded, in the precision's storage dtype, on one device."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import StageConfig
from ..precision import Precision
from ..reference import StageWeights
from ..reference.generator import Norm
from .cpu_weights import MelShare

__all__ = ["pack", "persistent_arrays", "round_tf32", "sizes", "slopes", "spectrogram_arrays"]

CHANNELS = 32
"""The number of stored channels is a multiple of this number (``csrc/cuda/device.h``)."""

OUTPUTS = 160
"""Number of outputs in one tile of a product (``csrc/cuda/tile.h``)."""


def sizes(config: StageConfig) -> dict[str, Any]:
    """Return the sizes that ``CudaStage`` needs."""
    return {
        "instruments": config.instruments,
        "softmax": config.softmax,
        "N": config.N,
        "W": config.W,
        "B": config.B,
        "H": config.H,
        "partial": config.partial_channels,
        "window": max(config.kernel_sizes),
        "bank": len(config.kernel_sizes) * config.encoder_width,
        "wide": sum(config.decoder_widths),
        "turn": _turn(config),
        "taps": list(config.kernel_sizes),
        "inputs": list(config.decoder_widths),
        "mels": config.num_mels,
        "n_fft": config.n_fft,
        "hop": config.hop,
        "biased": config.residual_bias,
        "dilations": list(config.dilations),
    }


def slopes(weights: StageWeights) -> list[float]:
    """Return the slopes prelu_1 to prelu_4, then prelu_1 and prelu_2 of each block. One transfer from the device gets all."""
    masking = weights.masking
    found = [masking.prelu_1, masking.prelu_2, masking.prelu_3, masking.prelu_4]
    for block in masking.blocks:
        found += [block.prelu_1, block.prelu_2]
    return torch.cat([slope.reshape(1) for slope in found]).tolist()


def round_tf32(values: Tensor) -> Tensor:
    """Return float32 values, rounded to 10 bits of mantissa as the hardware does: to the nearest, ties away from zero."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def pack(weights: StageWeights, precision: Precision) -> dict[str, Tensor]:
    """Return the weights under the names of ``csrc/cuda/stage.cu``, without the spectrogram branch.

    The kernels fold group norms into some of the weights. These weights, and the norms, are float32. Other weights have the
    dtype of ``precision``.
    """
    config, encoder, decoder, masking = weights.config, weights.encoder, weights.decoder, weights.masking
    filters, width, window = len(config.kernel_sizes), config.encoder_width, max(config.kernel_sizes)

    def stored(matrix: Tensor) -> Tensor:
        matrix = _padded(matrix)
        if precision is Precision.bfloat16:
            return matrix.to(torch.bfloat16)
        return round_tf32(matrix) if precision is Precision.tf32 else matrix

    # The filter bank stores its outputs filter by filter: reorder the columns of bottleneck_1 accordingly.
    by_filter = encoder.bottleneck_1[:, : filters * width, 0].unflatten(1, (width, filters)).transpose(1, 2).flatten(1)
    named = {
        "encoder.bank": stored(torch.cat([_centred(f[:, 0], window) for f in encoder.filters])),
        "encoder.bottleneck_1": stored(by_filter),
        "encoder.bottleneck_2": stored(encoder.bottleneck_2[:, :, 0]),
        "decoder.expansion": stored(decoder.bottleneck[:, :, 0].T),
        "decoder.filters": stored(
            torch.cat([_centred(f[:, 0], window) for f in decoder.filters]).T.roll(-_turn(config), 0)
        ),
        "mask.mask_output": _padded(masking.mask_output.weight[..., 0]),
        **{f"mask.norm_{i}": _norm(getattr(masking, f"norm_{i}")) for i in (1, 2, 3, 4)},
    }
    into, own = masking.in_conv.weight[..., 0], config.N
    parts = [into[..., :own], into[..., own:]] if config.partial_channels else [into]
    named["mask.in_conv"] = torch.cat([_padded(part) for part in parts], dim=-1)
    blocks = masking.blocks
    named["mask.blocks.conv1d"] = torch.stack([stored(block.conv1d.weight[..., 0]) for block in blocks])
    named["mask.blocks.taps"] = torch.stack([_padded(b.dconv1d.weight[:, :, 0].transpose(1, 2)) for b in blocks])
    named["mask.blocks.norm_1"] = torch.stack([_norm(block.norm_1) for block in blocks])
    named["mask.blocks.norm_2"] = torch.stack([_norm(block.norm_2) for block in blocks])
    for index, block in enumerate(blocks):
        name = f"mask.blocks.{index}"
        mixing = [c for c in (block.res_out, block.skip_out) if c is not None]
        named[f"{name}.mix"] = _padded(torch.cat([c.weight[..., 0] for c in mixing], dim=1))
        if config.residual_bias:
            named[f"{name}.mix_bias"] = torch.cat([c.bias for c in mixing if c.bias is not None], dim=1)
    return {name: _own(tensor) for name, tensor in named.items()}


def persistent_arrays(weights: StageWeights) -> dict[str, Tensor]:
    """Return the weights of the persistent launch and of the skip sum after it, under the names of ``csrc/cuda/stage.cu``.

    These are ``res_out`` and ``skip_out`` of all blocks, in bfloat16, and their biases, in float32. No norm is folded into
    these weights, as their operand is normalised already. The skip sum is one product over all blocks.
    """
    blocks = weights.masking.blocks
    residual = [block.res_out for block in blocks if block.res_out is not None]
    skip = [block.skip_out for block in blocks]
    named = {"mask.blocks.skip": torch.cat([_padded(c.weight[..., 0]) for c in skip], dim=-1).bfloat16()}
    if residual:
        named["mask.blocks.residual"] = torch.stack([_padded(c.weight[..., 0]) for c in residual]).bfloat16()
    if weights.config.residual_bias:
        named["mask.blocks.skip_bias"] = torch.stack([c.bias.float() for c in skip if c.bias is not None]).sum(0)
        if residual:
            named["mask.blocks.residual_bias"] = torch.stack([c.bias.float() for c in residual if c.bias is not None])
    return {name: _own(tensor) for name, tensor in named.items()}


def spectrogram_arrays(weights: StageWeights) -> dict[str, Tensor]:
    """Return the weights of the spectrogram branch under the names of ``csrc/cuda/stage.cu``.

    The result is empty for an encoder without this branch. Products of weights are computed in float64. In the result only the
    factors of the Fourier transform (twiddles) are float64.
    """
    config = weights.config
    share = MelShare.of(weights.encoder, config, config.N)
    if share is None:
        return {}
    turns = torch.arange(config.n_fft // 2, dtype=torch.float64, device=share.window.device)
    angles = turns * (-2 * math.pi / config.n_fft)
    found = {
        "encoder.window": share.window,
        "encoder.twiddles": torch.stack([angles.cos(), angles.sin()], dim=1),
        "encoder.mean": share.mean,
        "encoder.to_mel": _padded(share.to_mel.T.float()),
        "encoder.to_latent": _padded(share.to_latent.T.float()),
        "encoder.mel_bias": share.bias.float(),
    }
    return {name: _own(tensor) for name, tensor in found.items()}


def _turn(config: StageConfig) -> int:
    """Return by how many taps the decoder's filters are rotated when they are stored.

    The filters are centred in one window. After the rotation their middle OUTPUTS taps come first, so these taps are in the
    first tile. Only filters longer than OUTPUTS taps have taps in other tiles.
    """
    return max(0, max(config.kernel_sizes) - OUTPUTS) // 2


def _own(tensor: Tensor) -> Tensor:
    """Return a contiguous copy: prepared weights must not change with the parameters, and kernels read aligned 16 bytes."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _padded(matrix: Tensor) -> Tensor:
    return F.pad(matrix.float(), (0, -matrix.shape[-1] % CHANNELS))


def _centred(filters: Tensor, window: int) -> Tensor:
    missing = (window - filters.shape[-1]) // 2
    return F.pad(filters, (missing, missing))


def _norm(norm: Norm) -> Tensor:
    return torch.stack([norm.scale, norm.shift], dim=1).float()
