"""The codec, decoder(encoder(x)), before the masks: where it starts, and what it learns.

ReLU lets one half of a filter's output through. A random codec of few channels therefore begins far from any inverse, and since
music is loud below 1 kHz, SI-SDR leaves the rest unlearnt for thousands of steps. Here filters come in pairs of either sign, so
relu(f x) - relu(-f x) = f x: encoder and decoder begin as linear maps, and whitened music makes every frequency count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.reference.generator import generate
from metatasnet_fast.reference.losses import si_sdr

from .codec import decode, encode, parameters

__all__ = ["pair_signs", "reconstruction", "tilted"]


@torch.no_grad()
def pair_signs(network: MultiTasNet) -> None:
    """Begin with windowed cosines of either sign, the lowest in the longest filters, and a decoder that is linear in the pairs.

    The first 1x1 convolution passes the filters on, the second adds a little of its own initial values to the identity. The
    decoder's is random, odd in the pairs. Spectrogram branch and masking network stay as they are.
    """
    for index, values in enumerate(parameters(network)):
        config = network.config.stage(index)
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
            values[f"encoder.filters.{number}.weight"][:, 0] = torch.cat([cosine, -cosine])
        first, second = (values[f"encoder.bottleneck.{i}.weight"][..., 0] for i in (0, 2))
        filters = 2 * pairs
        first.mul_(0.3)
        first[:filters, filters:] *= 0.1
        first[:filters, :filters] = torch.eye(filters)
        second.mul_(0.1).add_(torch.eye(len(second)))
        # Channels are interleaved: n * count + l holds filter n of size l, and n < half is the positive one of a pair.
        number, size = torch.arange(filters) // count, torch.arange(filters) % count
        sign, pair = torch.where(number < half, 1.0, -1.0), (number % half) * count + size
        widths = config.decoder_widths
        mixing = torch.randn(pairs, sum(widths) // 2) / math.sqrt(pairs)
        odd = (sign[:, None] * mixing[pair]).split([width // 2 for width in widths], dim=1)
        bottleneck = values["decoder.bottleneck.0.weight"][..., 0]
        bottleneck.zero_()
        bottleneck[:filters] = torch.cat([part for columns in odd for part in (columns, -columns)], dim=1)
        for number, width in enumerate(widths):
            kernel = values[f"decoder.filters.{number}.weight"]
            kernel[width // 2 :] = -kernel[: width // 2]


def tilted(signals: Sequence[Tensor], rates: Sequence[int], slopes: Tensor) -> list[Tensor]:
    """Unit deviation, and spectra that rise by ``slopes`` times 6 dB an octave: (n, T_s) and (n,)."""
    results = []
    for signal, rate in zip(signals, rates, strict=True):
        frequency = torch.fft.rfftfreq(signal.shape[-1], 1 / rate).clamp(min=60.0) / 1000
        found = torch.fft.irfft(torch.fft.rfft(signal) * frequency ** slopes[:, None], n=signal.shape[-1])
        results.append(found / found.std(-1, keepdim=True).clamp(min=1e-3))
    return results


def reconstruction(network: MultiTasNet, mixes: Sequence[Tensor]) -> Tensor:
    """SI-SDR, dB, of `decoder(encoder(mix))` in float32, mean over items, summed over stages."""
    total = mixes[0].new_zeros(())
    for index, (mix, values) in enumerate(zip(mixes, parameters(network), strict=True)):
        config = network.config.stage(index)
        weights = generate(config, values)
        total = total + si_sdr(decode(weights.decoder, config, encode(weights.encoder, config, mix)), mix).mean()
    return total
