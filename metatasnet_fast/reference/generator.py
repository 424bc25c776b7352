"""Generate the weights of one stage, one set per instrument, from the parameters of the stage.

Each generated layer maps the embedding ``e_i`` of instrument ``i`` through the layer's own bottleneck, ``h_i = A e_i + a``,
and then to the layer's parameters, ``K h_i + k_0``. If the network has independent parameters, each layer stores one set of
parameters per instrument instead.

Source: Samuel et al. 2020, section 2.2; original ``model/conv1d.py`` and ``model/group_norm.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..config import StageConfig

__all__ = [
    "BlockWeights", "Convolution", "DecoderWeights", "EncoderWeights", "MaskingWeights", "Norm", "SpectrogramWeights",
    "StageWeights", "block_weights", "decoder_weights", "encoder_weights", "generate", "masking_weights",
]  # fmt: skip


@dataclass(frozen=True)
class Convolution:
    """A convolution with weights of each instrument's own.

    ``weight`` is (instruments, out, in / groups, taps); ``bias`` is (instruments, out) or None.
    """

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """The scale and the shift of a group norm, both (instruments, channels)."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class BlockWeights:
    """The weights of a block of the masking network. ``res_out`` is None in the last block, whose residual is not used."""

    conv1d: Convolution
    prelu_1: Tensor
    norm_1: Norm
    dconv1d: Convolution
    prelu_2: Tensor
    norm_2: Norm
    res_out: Convolution | None
    skip_out: Convolution


@dataclass(frozen=True)
class MaskingWeights:
    """The weights of the masking network. The slope of every PReLU is one number, of shape (1,)."""

    prelu_1: Tensor
    norm_1: Norm
    in_conv: Convolution
    prelu_2: Tensor
    norm_2: Norm
    blocks: tuple[BlockWeights, ...]
    prelu_3: Tensor
    norm_3: Norm
    mask_output: Convolution
    prelu_4: Tensor
    norm_4: Norm


@dataclass(frozen=True)
class SpectrogramWeights:
    """The weights of the spectrogram branch.

    ``window`` is (n_fft,); ``mean``, ``std``, ``scale`` and ``bias`` are (1, bins, 1); ``mel_weight`` is (mels, bins, 1);
    ``mel_bias`` is (mels,).
    """

    window: Tensor
    mean: Tensor
    std: Tensor
    scale: Tensor
    bias: Tensor
    mel_weight: Tensor
    mel_bias: Tensor


@dataclass(frozen=True)
class EncoderWeights:
    """The weights of the encoder.

    ``filters[l]`` is (N / 4, 1, k_l); ``bottleneck_1`` is (N, filters * N / 4 + mels, 1); ``bottleneck_2`` is (N, N, 1).
    """

    spectrogram: SpectrogramWeights | None
    """None in a network without the spectrogram branch."""
    filters: tuple[Tensor, ...]
    bottleneck_1: Tensor
    bottleneck_2: Tensor


@dataclass(frozen=True)
class DecoderWeights:
    """The weights of the decoder's transposed convolutions.

    ``bottleneck`` is (N, sum of widths, 1); ``filters[l]`` is (N / 2^(l+1), 1, k_l).
    """

    bottleneck: Tensor
    filters: tuple[Tensor, ...]


@dataclass(frozen=True)
class StageWeights:
    """All weights of a stage."""

    config: StageConfig
    encoder: EncoderWeights
    masking: MaskingWeights
    decoder: DecoderWeights


Parameters = Mapping[str, Tensor]


def generate(config: StageConfig, parameters: Parameters) -> StageWeights:
    """Return the weights of one stage, evaluated by its generator.

    Args:
        config: the stage's sizes.
        parameters: the stage's parameters by the original's names (``encoder.filters.0.weight``, ...).

    Returns:
        the weights, differentiable with respect to the parameters. The last block's ``res_out`` is left out: its output is
        never used, so its parameters get no gradient, as in the original.
    """
    return StageWeights(
        config,
        encoder_weights(config, parameters),
        masking_weights(config, parameters),
        decoder_weights(config, parameters),
    )


def encoder_weights(config: StageConfig, p: Parameters) -> EncoderWeights:
    spectrogram = None
    if config.has_spectrogram:
        spectrogram = SpectrogramWeights(
            window=p["encoder.spectrogram.window"],
            mean=p["encoder.spectrogram.mean"],
            std=p["encoder.spectrogram.std"],
            scale=p["encoder.spectrogram.affine_scale"],
            bias=p["encoder.spectrogram.affine_bias"],
            mel_weight=p["encoder.spectrogram.mel_transform.weight"],
            mel_bias=p["encoder.spectrogram.mel_transform.bias"],
        )
    filters = tuple(p[f"encoder.filters.{i}.weight"] for i in range(len(config.kernel_sizes)))
    return EncoderWeights(spectrogram, filters, p["encoder.bottleneck.0.weight"], p["encoder.bottleneck.2.weight"])


def decoder_weights(config: StageConfig, p: Parameters) -> DecoderWeights:
    filters = tuple(p[f"decoder.filters.{i}.weight"] for i in range(len(config.kernel_sizes)))
    return DecoderWeights(p["decoder.bottleneck.0.weight"], filters)


def masking_weights(config: StageConfig, p: Parameters) -> MaskingWeights:
    blocks = len(config.dilations)
    return MaskingWeights(
        prelu_1=p["mask.prelu_1.weight"],
        norm_1=_norm(config, p, "mask.norm_1"),
        in_conv=_convolution(config, p, "mask.in_conv", config.B),
        prelu_2=p["mask.prelu_2.weight"],
        norm_2=_norm(config, p, "mask.norm_2"),
        blocks=tuple(block_weights(config, p, f"mask.tcn.{i}", last=i == blocks - 1) for i in range(blocks)),
        prelu_3=p["mask.prelu_3.weight"],
        norm_3=_norm(config, p, "mask.norm_3"),
        mask_output=_convolution(config, p, "mask.mask_output", config.N),
        prelu_4=p["mask.prelu_4.weight"],
        norm_4=_norm(config, p, "mask.norm_4"),
    )


def block_weights(config: StageConfig, p: Parameters, name: str, last: bool) -> BlockWeights:
    bias = config.residual_bias
    return BlockWeights(
        conv1d=_convolution(config, p, f"{name}.conv1d", config.H),
        prelu_1=p[f"{name}.prelu_1.weight"],
        norm_1=_norm(config, p, f"{name}.norm_1"),
        dconv1d=_convolution(config, p, f"{name}.dconv1d", config.H, taps=3),
        prelu_2=p[f"{name}.prelu_2.weight"],
        norm_2=_norm(config, p, f"{name}.norm_2"),
        res_out=None if last else _convolution(config, p, f"{name}.res_out", config.B, bias=bias),
        skip_out=_convolution(config, p, f"{name}.skip_out", config.B, bias=bias),
    )


def _hidden(p: Parameters, name: str) -> Tensor:
    return F.linear(p["instrument_embedding.weight"], p[f"{name}.bottleneck.weight"], p[f"{name}.bottleneck.bias"])


def _convolution(
    config: StageConfig, p: Parameters, name: str, out: int, taps: int = 1, bias: bool = False
) -> Convolution:
    if not config.generated:
        weight = p[f"{name}.conv.weight"].reshape(config.instruments, out, -1, taps)
        return Convolution(weight, p[f"{name}.conv.bias"].reshape(config.instruments, out) if bias else None)
    hidden = _hidden(p, name)
    weight = F.linear(hidden, p[f"{name}.kernel.weight"], p[f"{name}.kernel.bias"]).view(len(hidden), out, -1, taps)
    return Convolution(weight, F.linear(hidden, p[f"{name}.bias.weight"], p[f"{name}.bias.bias"]) if bias else None)


def _norm(config: StageConfig, p: Parameters, name: str) -> Norm:
    if not config.generated:
        scale, shift = p[f"{name}.group_norm.weight"], p[f"{name}.group_norm.bias"]
        return Norm(scale.view(config.instruments, -1), shift.view(config.instruments, -1))
    affine = F.linear(_hidden(p, name), p[f"{name}.affine.weight"], p[f"{name}.affine.bias"])
    scale, shift = affine.chunk(2, dim=1)
    return Norm(scale, shift)
