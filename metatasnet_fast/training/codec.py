"""Teach encoder and decoder alone, before the first step of a new network: decoder(encoder(x)) = x.

Encoder and decoder together are the codec. No mask can restore what the codec loses. A ReLU passes only half of a
filter's output, so a random encoder and decoder of few channels are far from inverse to each other. And music is loud
below 1 kHz, so SI-SDR teaches the other frequencies only after thousands of steps.

Here filters begin in pairs of both signs: relu(f x) - relu(-f x) = f x, so the codec begins as a linear map. It learns
from mixtures whose spectra are tilted, so that every frequency counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backends import Choice
from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..model import MultiTasNet
from ..precision import Precision
from ..reference import si_sdr
from .data import BatchSource

__all__ = ["check_codec", "codec_quality", "learn_codec", "pair_signs", "tilted"]

RATE, WARM_UP, LAST = 3e-3, 20, 0.05
"""Highest learning rate; steps until that rate is reached; share of that rate that remains at the end."""

SLOPE = 1.2
"""Steepest tilt of the mixtures' spectra, in units of 6 dB per octave."""


def check_codec(config: MetaTasNetConfig) -> None:
    """Raise :class:`ConfigError` unless the filters of a network's codec can begin in pairs."""
    if config.N % 2 ** (config.filters + 1) or config.filters > 4:
        raise ConfigError(
            f"Filters in pairs need at most 4 filters and N as a multiple of {2 ** (config.filters + 1)}, got "
            f"filters={config.filters} and N={config.N}: train with --codec-steps 0."
        )


def learn_codec(
    network: MultiTasNet,
    batches: BatchSource,
    steps: int,
    backend: str,
    precision: Precision,
    report: Callable[[int], object] = lambda step: None,
) -> float:
    """Pair the filters, then train encoder and decoder with Adam on the mixtures of batches 0, 1, ...

    Args:
        network: a new network that has the statistics of its spectrograms already.
        steps: number of steps, at least 1.
        backend, precision: those of the network's training; but the codec learns in float32 or float64 only.
        report: called after each step with the step's number, from 1.

    Returns:
        the SI-SDR in dB between the mixtures of the last step and the codec's output, the mean over items and stages.

    Raises:
        ConfigError: if the filters cannot begin in pairs.
    """
    generator = torch.Generator().manual_seed(batches.seed % 2**63)
    pair_signs(network, generator)
    choice = Choice(backend, precision if precision is Precision.float64 else Precision.float32)
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    trained = [p for name, p in network.named_parameters() if ".encoder." in name or ".decoder." in name]
    optimizer = torch.optim.Adam(trained, betas=(0.9, 0.98))
    quality = torch.zeros(())
    for step in range(steps):
        mixes = [mix.to(dtype) for mix in batches.batch(step).mixes]
        slopes = SLOPE * torch.rand(len(mixes[0]), generator=generator).to(mixes[0])
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - (1 - LAST) * step / steps)
        network.zero_grad(set_to_none=True)
        quality = codec_quality(network, tilted(mixes, batches.rates, slopes), choice)
        (-quality).backward()
        torch.nn.utils.clip_grad_norm_(trained, 5.0)
        optimizer.step()
        report(step + 1)
    network.zero_grad(set_to_none=True)
    return float(quality.detach()) / network.config.stages_num


def codec_quality(network: MultiTasNet, mixes: Sequence[Tensor], choice: Choice) -> Tensor:
    """Return the SI-SDR in dB of decoder(encoder(mix)), the mean over items and the sum over stages.

    ``mixes`` are (n, 1, T_s) for each stage s; the result is a scalar.
    """
    engine = network.engine(choice, training=True)
    values = []
    for mix, prepared in zip(mixes, engine.prepared, strict=True):
        found = engine.backend.decode(prepared, engine.backend.encode(prepared, mix)).to(mix.dtype)
        values.append(si_sdr(found, mix[..., : found.shape[-1]]).mean())
    return torch.stack(values).sum()


@torch.no_grad()
def pair_signs(network: MultiTasNet, generator: torch.Generator) -> None:
    """Replace the codec's initial weights by windowed cosines of both signs, and a decoder that is linear in the pairs.

    The longest filters get the lowest frequencies. The encoder's first 1x1 convolution passes the filters' outputs on;
    the second one is the identity plus a tenth of its initial values. The decoder's 1x1 convolution is random, with
    opposite weights for the two filters of a pair. Spectrogram branch and masking network stay as they are.

    Raises:
        ConfigError: if the sizes do not allow pairs.
    """
    check_codec(network.config)
    for index, stage in enumerate(network.stages):
        values, config = dict(stage.named_parameters()), network.config.stage(index)
        count, half = len(config.kernel_sizes), config.encoder_width // 2
        pairs = count * half
        frequencies = (torch.arange(pairs) + 0.5) / pairs * config.sampling_rate / 2
        for number, size in enumerate(config.kernel_sizes):
            mine = frequencies[(count - 1 - number) * half : (count - number) * half, None]
            time = (torch.arange(size) - (size - 1) / 2) / config.sampling_rate
            window = torch.ones(size) if size == config.W else torch.hann_window(size + 2)[1:-1]
            turn = math.pi / 4 * (1 + 2 * (torch.arange(half) % 2))[:, None]
            cosine = window * torch.cos(2 * math.pi * mine * time + turn)
            cosine /= cosine.norm(dim=1, keepdim=True)
            values[f"encoder.filters.{number}.weight"][:, 0] = torch.cat([cosine, -cosine]).to(network.device)
        first, second = (values[f"encoder.bottleneck.{i}.weight"][..., 0] for i in (0, 2))
        filters = 2 * pairs
        first.mul_(0.3)
        first[:filters, filters:] *= 0.1
        first[:filters, :filters] = torch.eye(filters)
        second.mul_(0.1).add_(torch.eye(len(second)).to(second))
        # Channels are interleaved: channel n * count + l belongs to filter n of the l-th length. In each pair, the
        # positive filter has n < half.
        place, kind = torch.arange(filters) // count, torch.arange(filters) % count
        sign, pair = torch.where(place < half, 1.0, -1.0), (place % half) * count + kind
        widths = config.decoder_widths
        mixing = torch.randn(pairs, sum(widths) // 2, generator=generator) / math.sqrt(pairs)
        odd = (sign[:, None] * mixing[pair]).split([width // 2 for width in widths], dim=1)
        bottleneck = values["decoder.bottleneck.0.weight"][..., 0]
        bottleneck.zero_()
        columns = torch.cat([part for column in odd for part in (column, -column)], dim=1)
        bottleneck[:filters] = columns.to(bottleneck)
        for number, width in enumerate(widths):
            kernel = values[f"decoder.filters.{number}.weight"]
            kernel[width // 2 :] = -kernel[: width // 2]


def tilted(signals: Sequence[Tensor], rates: Sequence[int], slopes: Tensor) -> list[Tensor]:
    """Tilt the spectra of signals (n, 1, T_s): they rise by ``slopes`` (n,) times 6 dB per octave.

    Return the tilted signals, scaled to a standard deviation of 1.
    """
    results = []
    for signal, rate in zip(signals, rates, strict=True):
        frequency = torch.fft.rfftfreq(signal.shape[-1], 1 / rate).clamp(min=60.0).to(signal) / 1000
        found = torch.fft.irfft(torch.fft.rfft(signal) * frequency ** slopes[:, None, None], n=signal.shape[-1])
        results.append(found / found.std(-1, keepdim=True).clamp(min=1e-3))
    return results
