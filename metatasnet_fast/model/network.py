"""Define the network. Its interface, and the names, shapes, order and distributions of its parameters, are the
original's.

The modules of a stage only hold parameters; backends compute with these. Layers are created in the original's order, so
that the same seed gives the same network.

Source: original ``model/*.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..config import GROUPS, MetaTasNetConfig, StageConfig
from .methods import NetworkMethods
from .pretrained import PretrainedMixin

__all__ = ["MultiTasNet", "Stage"]


class Spectrogram(nn.Module):
    """Parameters of the spectrogram branch: a fixed window, fixed statistics, a learned affine map and a learned mel
    map."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        shape = (1, config.bins, 1)
        self.window = nn.Parameter(torch.hann_window(config.n_fft), requires_grad=False)
        self.mel_transform = nn.Conv1d(config.bins, config.num_mels, kernel_size=1)
        # The original leaves mean and std uninitialised until compute_stats is called.
        self.mean = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.std = nn.Parameter(torch.ones(shape), requires_grad=False)
        self.affine_bias = nn.Parameter(torch.zeros(shape))
        self.affine_scale = nn.Parameter(torch.ones(shape))


class Encoder(nn.Module):
    """Parameters of the encoder: spectrogram branch, filter bank and bottleneck."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(config) if config.has_spectrogram else None
        self.filters = nn.ModuleList(
            nn.Conv1d(1, config.encoder_width, k, stride=config.W, bias=False, padding=(k - config.W) // 2)
            for k in config.kernel_sizes
        )
        width = len(config.kernel_sizes) * config.encoder_width + config.num_mels
        self.bottleneck = nn.Sequential(
            nn.Conv1d(width, config.N, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv1d(config.N, config.N, kernel_size=1, bias=False),
        )


class Decoder(nn.Module):
    """Parameters of the decoder: bottleneck and transposed filter bank."""

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        widths = config.decoder_widths
        self.bottleneck = nn.Sequential(nn.ConvTranspose1d(config.N, sum(widths), kernel_size=1, bias=False), nn.ReLU())
        self.filters = nn.ModuleList(
            nn.ConvTranspose1d(width, 1, k, stride=config.W, bias=False, padding=(k - config.W) // 2)
            for width, k in zip(widths, config.kernel_sizes, strict=True)
        )


class GeneratedConvolution(nn.Module):
    """Generator of a convolution: it maps an instrument's embedding through a bottleneck to the kernel, and to the bias
    if there is one."""

    def __init__(self, e1: int, e2: int, inputs: int, outputs: int, taps: int, bias: bool) -> None:
        super().__init__()
        self.bottleneck = nn.Linear(e1, e2)
        self.kernel = nn.Linear(e2, outputs * inputs * taps)
        self.bias = nn.Linear(e2, outputs) if bias else None


class IndependentConvolution(nn.Module):
    """A convolution with a stored kernel for each instrument."""

    def __init__(self, instruments: int, inputs: int, outputs: int, taps: int, groups: int, bias: bool) -> None:
        super().__init__()
        groups *= instruments
        self.conv = nn.Conv1d(inputs * groups, instruments * outputs, taps, groups=groups, bias=bias)


class GeneratedNorm(nn.Module):
    """Generator of a group norm: it maps an instrument's embedding through a bottleneck to scales and shifts."""

    def __init__(self, e1: int, e2: int, channels: int) -> None:
        super().__init__()
        self.bottleneck = nn.Linear(e1, e2)
        self.affine = nn.Linear(e2, 2 * channels)


class IndependentNorm(nn.Module):
    """A group norm with stored scales and shifts for each instrument."""

    def __init__(self, instruments: int, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(instruments * GROUPS, instruments * channels, eps=1e-8)


class Layers:
    """Factory of the masking network's layers: generated ones, or with ``independent_params`` stored ones."""

    def __init__(self, config: MetaTasNetConfig) -> None:
        self.config = config

    def norm(self, channels: int) -> nn.Module:
        if self.config.independent_params:
            return IndependentNorm(len(self.config.instruments), channels)
        return GeneratedNorm(self.config.E_1, self.config.E_2, channels)

    def convolution(self, inputs: int, outputs: int, taps: int = 1, groups: int = 1, bias: bool = False) -> nn.Module:
        if self.config.independent_params:
            count = len(self.config.instruments)
            return IndependentConvolution(count, inputs // groups, outputs, taps, groups, bias)
        return GeneratedConvolution(self.config.E_1, self.config.E_2, inputs // groups, outputs, taps, bias)


class Block(nn.Module):
    """Parameters of one block of the masking network."""

    def __init__(self, config: MetaTasNetConfig, layers: Layers) -> None:
        super().__init__()
        b, h, bias = config.B, config.H, config.residual_bias
        self.norm_1 = layers.norm(h)
        self.prelu_1 = nn.PReLU()
        self.conv1d = layers.convolution(b, h)
        self.norm_2 = layers.norm(h)
        self.prelu_2 = nn.PReLU()
        self.dconv1d = layers.convolution(h, h, taps=config.kernel, groups=h)
        self.res_out = layers.convolution(h, b, bias=bias)
        self.skip_out = layers.convolution(h, b, bias=bias)


class MaskingNetwork(nn.Module):
    """Parameters of the masking network of one stage."""

    def __init__(self, config: MetaTasNetConfig, stage: StageConfig) -> None:
        super().__init__()
        layers = Layers(config)
        self.norm_1 = layers.norm(stage.in_channels)
        self.prelu_1 = nn.PReLU()
        self.in_conv = layers.convolution(stage.in_channels, config.B)
        self.norm_2 = layers.norm(config.B)
        self.prelu_2 = nn.PReLU()
        self.tcn = nn.ModuleList(Block(config, layers) for _ in stage.dilations)
        self.norm_3 = layers.norm(config.B)
        self.prelu_3 = nn.PReLU()
        self.mask_output = layers.convolution(config.B, stage.N)
        self.norm_4 = layers.norm(stage.N)
        self.prelu_4 = nn.PReLU()


class Stage(nn.Module):
    """Parameters of one stage, which works at one sampling rate: encoder, decoder, masking network, and the embeddings
    of the instruments."""

    def __init__(self, config: MetaTasNetConfig, index: int) -> None:
        super().__init__()
        stage = config.stage(index)
        self.encoder = Encoder(stage)
        self.decoder = Decoder(stage)
        self.mask = MaskingNetwork(config, stage)
        count = len(config.instruments)
        self.instrument_embedding = None if config.independent_params else nn.Embedding(count, config.E_1)


class MultiTasNet(PretrainedMixin, NetworkMethods):
    """Meta-TasNet: a drop-in for the authors' class of the same name.

    Args:
        args: the authors' ``argparse.Namespace``, or a :class:`MetaTasNetConfig`. It is kept as ``self.args``.

    Raises:
        ConfigError: for settings with which the network cannot be built.

    Source: Samuel et al. 2020; original ``model/tasnet.py``.
    """

    def __init__(self, args: Any) -> None:
        super().__init__()
        config = MetaTasNetConfig.from_namespace(args)
        self.args = args
        self.W = config.W
        self.base_sr = config.sampling_rate
        self.stages_num = config.stages_num
        self.stages = nn.ModuleList(Stage(config, index) for index in range(config.stages_num))
