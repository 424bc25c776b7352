"""Count the least work of the network from its sizes: multiply-accumulates and bytes of every job.

A convolution counts ``outputs * inputs / groups * taps`` multiply-accumulates (MAC) per frame; the FFT, the norms, the
activations and the losses are not counted. One MAC is two FLOP. The arithmetic is counted in two ways:

- as written: every operation of the authors' program, with the last block's unused residual, the mel map's share of the
  bottleneck at the latent's frame rate, and every stage's decoder;
- folded: without that residual, the mel share at the spectrogram's frame rate, and only the decoders that are asked for.

Bytes are a model of a fused implementation that streams its activations through memory. A block of I instruments makes
7 passes over ``I H`` channels: the block's input is read and its output written, the results of the first and of the
second convolution are each written and read, and the second result is read once more for the skips. All other inputs
and outputs, and the weights, are moved once. Eager PyTorch makes 24 such passes. An implementation that keeps
activations in a cache moves less, so a fraction of the copy rate above 1 is possible.

The peak rates of the machine are measured in the same run: a large copy, and a large matrix product in every precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..config import MetaTasNetConfig, StageConfig
from ..precision import Precision, tf32_products
from .machine import Timer, make_timer

__all__ = [
    "PASSES", "Peaks", "Work", "decoder", "encoder", "inference", "masking", "measure_peaks", "preparation",
    "training_step",
]  # fmt: skip

PASSES = 7
"""Passes over a block's activations in the byte model."""


@dataclass(frozen=True)
class Work:
    """Number of multiply-accumulates, and of bytes that are read or written."""

    macs: float
    bytes: float

    @property
    def flops(self) -> float:
        return 2 * self.macs

    def __add__(self, other: Work) -> Work:
        return Work(self.macs + other.macs, self.bytes + other.bytes)

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.macs, times * self.bytes)


def encoder(stage: StageConfig, frames: int, items: int = 1, itemsize: int = 4, folded: bool = False) -> Work:
    """Count the work from signals (items, 1, frames W) to latents (items, N, frames)."""
    n, width = stage.N, stage.encoder_width
    bank = width * sum(stage.kernel_sizes)
    spectra = frames * stage.W // stage.hop + 1
    mel = stage.bins * stage.num_mels
    joint = stage.num_mels * n
    waves = len(stage.kernel_sizes) * width * n
    macs = frames * (bank + waves + n * n) + spectra * mel + (spectra if folded else frames) * joint
    weights = bank + waves + joint + n * n + mel
    moved = 4 * frames * stage.W + itemsize * frames * n
    return Work(float(items * macs), float(items * moved + itemsize * weights))


def masking(stage: StageConfig, frames: int, items: int = 1, itemsize: int = 4, folded: bool = False) -> Work:
    """Count the work from latents (items, N, frames) and partial latents (items, I, N / 2, frames) to masked latents
    (items, I, N, frames)."""
    b, h, blocks, i = stage.B, stage.H, len(stage.dilations), stage.instruments
    residuals = blocks - 1 if folded else blocks
    weights = stage.in_channels * b + blocks * (b * h + 3 * h + h * b) + residuals * h * b + b * stage.N
    passes = blocks * PASSES * i * h + i * stage.partial_channels + (1 + i) * stage.N
    return Work(float(items * frames * i * weights), float(itemsize * (items * frames * passes + i * weights)))


def decoder(stage: StageConfig, frames: int, items: int = 1, itemsize: int = 4) -> Work:
    """Count the work from latents (items, N, frames) to signals (items, 1, frames W); a separated mixture has an item for
    each instrument."""
    widths = stage.decoder_widths
    weights = stage.N * sum(widths) + sum(w * k for w, k in zip(widths, stage.kernel_sizes, strict=True))
    moved = itemsize * frames * stage.N + 4 * frames * stage.W
    return Work(float(items * frames * weights), float(items * moved + itemsize * weights))


def inference(config: MetaTasNetConfig, frames: int, items: int = 1, itemsize: int = 4, folded: bool = True) -> Work:
    """Count the work of all stages for ``items`` mono signals of ``frames`` latent frames; if ``folded``, only the last
    stage is decoded."""
    total = Work(0.0, 0.0)
    for stage in config.stages:
        total += encoder(stage, frames, items, itemsize, folded) + masking(stage, frames, items, itemsize, folded)
        if not folded or stage.index == config.stages_num - 1:
            total += decoder(stage, frames, stage.instruments * items, itemsize)
    return total


def training_step(config: MetaTasNetConfig, frames: int, items: int, itemsize: int = 4, folded: bool = True) -> Work:
    """Count the work of forward and backward, where backward counts as twice forward. The mixture and its sources are
    encoded; the estimates and the mixture are decoded. The optimiser is not counted."""
    total = Work(0.0, 0.0)
    signals = (len(config.instruments) + 1) * items
    for stage in config.stages:
        total += encoder(stage, frames, signals, itemsize, folded) + masking(stage, frames, items, itemsize, folded)
        total += decoder(stage, frames, signals, itemsize)
    return 3 * total


def preparation(config: MetaTasNetConfig, parameters: int, itemsize: int = 4) -> Work:
    """Count the work of generating and packing the weights: float32 parameters are read once, the generated weights
    written once."""
    generated = 0
    for stage in config.stages:
        generated += round(masking(stage, 1, 1, 0, folded=True).macs)
    macs = float(config.E_2 * generated) if not config.independent_params else 0.0
    return Work(macs, float(4 * parameters + itemsize * generated))


ROUNDS = 5


@dataclass(frozen=True)
class Peaks:
    """Measured peaks: bytes per second of a copy (read plus written), FLOP per second of ``torch.mm`` by precision."""

    copy: float
    products: dict[str, float] = field(default_factory=dict)

    def of_compute(self, work: Work, precision: Precision, seconds: float) -> float | None:
        """Return the rate of the work as a fraction of the rate of ``torch.mm``; None if no product was measured in
        this precision."""
        rate = self.products.get(precision.value)
        return None if rate is None else work.flops / seconds / rate

    def of_memory(self, work: Work, seconds: float) -> float:
        return work.bytes / seconds / self.copy

    def to_dict(self) -> dict[str, Any]:
        return {"copy_bytes_per_s": self.copy, "mm_flop_per_s": self.products}


def measure_peaks(device: torch.device, precisions: Iterable[Precision], tiny: bool = False) -> Peaks:
    """Measure the peaks, each as the best of five runs on random data. ``tiny`` chooses sizes that only test the
    program."""
    large = device.type == "cuda"
    timer = make_timer(device)
    bandwidth = _copy(timer, 2**16 if tiny else 2**30 if large else 2**26, device)
    n = 256 if tiny else 8192 if large else 2048
    return Peaks(bandwidth, {p.value: _product(timer, n, p, device) for p in precisions})


def _copy(timer: Timer, size: int, device: torch.device) -> float:
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / min(timer(lambda: target.copy_(source))[0] for _ in range(ROUNDS))


def _product(timer: Timer, n: int, precision: Precision, device: torch.device) -> float:
    a, b = (torch.randn(n, n, device=device).to(precision.storage) for _ in range(2))
    with tf32_products(precision is Precision.tf32):
        torch.mm(a, b)
        return 2 * n**3 / min(timer(lambda: torch.mm(a, b))[0] for _ in range(ROUNDS))
