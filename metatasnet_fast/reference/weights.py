"""The weights of one stage as the arithmetic sees them: one set per instrument, however they came about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config import StageConfig

__all__ = [
    "BlockWeights",
    "Convolution",
    "DecoderWeights",
    "EncoderWeights",
    "MaskingWeights",
    "Norm",
    "SpectrogramWeights",
    "StageWeights",
]


@dataclass(frozen=True)
class Convolution:
    """A convolution for each instrument.

    ``weight``: (instruments, out, in / groups, taps); ``bias``: (instruments, out) or None.
    """

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """Scale and shift of a group norm for each instrument, both (instruments, channels)."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class BlockWeights:
    """One block of the masking network. ``res_out`` is None in the last block, as nothing reads its residual."""

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
    """The masking network; every PReLU slope is one number, shape (1,)."""

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
    """``window`` (n_fft,); ``mean``, ``std``, ``scale``, ``bias`` (1, bins, 1); ``mel_weight`` (mels, bins, 1)."""

    window: Tensor
    mean: Tensor
    std: Tensor
    scale: Tensor
    bias: Tensor
    mel_weight: Tensor
    mel_bias: Tensor


@dataclass(frozen=True)
class EncoderWeights:
    """``filters[l]`` (N / 4, 1, k_l); ``bottleneck_1`` (N, filters * N / 4 + mels, 1); ``bottleneck_2`` (N, N, 1)."""

    spectrogram: SpectrogramWeights | None
    """None in a network without the spectrogram branch."""
    filters: tuple[Tensor, ...]
    bottleneck_1: Tensor
    bottleneck_2: Tensor


@dataclass(frozen=True)
class DecoderWeights:
    """Transposed convolutions: ``bottleneck`` (N, sum of widths, 1); ``filters[l]`` (N / 2^(l+1), 1, k_l)."""

    bottleneck: Tensor
    filters: tuple[Tensor, ...]


@dataclass(frozen=True)
class StageWeights:
    """All weights of a stage."""

    config: StageConfig
    encoder: EncoderWeights
    masking: MaskingWeights
    decoder: DecoderWeights
