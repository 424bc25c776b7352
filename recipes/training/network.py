"""The loss of a training step: that of `MultiTasNet.forward` without auxiliary losses, with weights, for stems that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metatasnet_fast.backends import Request, resolve
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision
from metatasnet_fast.reference.losses import si_sdr

from .codec import parameters

__all__ = ["bright", "separate", "step_loss"]


def separate(network: MultiTasNet, mixes: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Estimates (4, n, T) of every stage, float32, of mixtures (n, T), by the fastest backend that trains."""
    precision = Precision.parse(dtype)
    backend = resolve("auto", Request(mixes[0].device, precision, training=True, config=network.config))
    partial, estimates = None, []
    for index, (mix, values) in enumerate(zip(mixes, parameters(network), strict=True)):
        prepared = backend.prepare(network.config.stage(index), values, precision)
        partial = backend.mask(prepared, backend.encode(prepared, mix[:, None]), partial)
        signals = backend.decode(prepared, partial.flatten(0, 1))[:, 0]
        estimates.append(signals.unflatten(0, partial.shape[:2]).transpose(0, 1))
    return estimates


def bright(signal: Tensor, rate: int) -> Tensor:
    """Zero-phase high-pass f^2 / (f^2 + (2 kHz)^2). Music holds most of its energy below: plain SI-SDR lets a network, its
    encoder and decoder first, leave out what makes a stem sound bright."""
    square = torch.fft.rfftfreq(signal.shape[-1], 1 / rate).square()
    return torch.fft.irfft(torch.fft.rfft(signal) * (square / (square + 2000.0**2)), n=signal.shape[-1])


def sounding(sources: Tensor) -> Tensor:
    """(4, n), 1 where a stem and the rest each hold at least 1% of the energy of their sum: (4, n, T)."""
    power = sources.square().mean(-1)
    rest = (sources.sum(0) - sources).square().mean(-1)
    return ((power > 1e-2 * (power + rest)) & (rest > 1e-2 * (power + rest)) & (power > 1e-8)).float()


def step_loss(
    network: MultiTasNet,
    mixes: Sequence[Tensor],
    sources: Sequence[Tensor],
    counts: Tensor,
    dtype: torch.dtype,
    stem_weights: Tensor,
    stage_weights: Tensor,
    emphasis: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The training loss, and the stages' SI-SDR in dB, (stages, 4), over the stems that count (nan where none does).

    Args:
        mixes: (n, T_s) for each stage.
        sources: (4, n, T_s) for each stage.
        counts: (4, n), 1 where a stem of an item counts.
        stem_weights, stage_weights: (4,) and (stages,), factors of the loss; all 1 in the authors' loss.
        emphasis: share of the loss that hears high frequencies (see :func:`bright`), for the stems that sound there; 0 in
            the authors' loss.
    """
    pairs = list(zip(separate(network, mixes, dtype), sources, strict=True))
    sdr = torch.stack([(si_sdr(e, s) * counts).sum(1) for e, s in pairs])
    number = counts.sum(1)
    heard = (1 - emphasis) * sdr / number.clamp(min=1.0)
    if emphasis > 0:
        for index, (found, expected) in enumerate(pairs):
            rate = network.config.stage(index).sampling_rate
            there = bright(expected, rate)
            both = counts * sounding(there)
            high = (si_sdr(bright(found, rate), there) * both).sum(1) / both.sum(1).clamp(min=1.0)
            heard = heard + emphasis * F.one_hot(torch.tensor(index), len(pairs))[:, None] * high
    loss = -(stage_weights[:, None] * stem_weights * heard).sum()
    return loss, (sdr / number).detach()
