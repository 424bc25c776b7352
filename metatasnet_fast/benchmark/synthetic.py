"""Make synthetic networks and signals by formula, from names, sizes and a seed: the same bits everywhere.

The weights follow the formula of the recorded networks: normal numbers ``z`` are drawn by numpy's
``RandomState(crc32(name) ^ seed)``, then scaled so that every layer passes on signals of about unit size. The signals
are sums of tremolo tones with noise, as loud as music.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import MetaTasNetConfig
from ..model import MultiTasNet

__all__ = ["mixtures", "network", "sources", "varied"]

Array = npt.NDArray[np.float64]


def network(config: MetaTasNetConfig, seed: int = 51) -> MultiTasNet:
    """Return a network in evaluation mode, with weights that depend only on their names and ``seed``."""
    made = MultiTasNet(config).eval()
    state = {name: _weights(name, tuple(value.shape), seed) for name, value in made.state_dict().items()}
    made.load_state_dict(state, strict=True)
    return made


def _weights(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    z: Array = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF).standard_normal(shape)
    return torch.from_numpy(_scaled(name, z).astype(np.float32))


def _scaled(name: str, z: Array) -> Array:
    if name.endswith("spectrogram.window"):
        return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(len(z)) / len(z)))
    if name.endswith("spectrogram.mean"):
        return -1 + 0.5 * z
    if name.endswith("spectrogram.std"):
        return 1 + 0.25 * np.tanh(z)
    if name.endswith("affine_scale"):
        return 1 + 0.1 * z
    if ".prelu_" in name:
        return 0.25 + 0.05 * z
    if name.endswith(".affine.bias"):
        first = np.arange(len(z)) < len(z) // 2
        return 0.3 * z + first
    if "group_norm.weight" in name:
        return 1 + 0.3 * z
    if name.endswith("instrument_embedding.weight"):
        return z
    if name.endswith((".bias", "affine_bias", ".kernel.weight")):
        return 0.1 * z
    return z / math.sqrt(max(1, math.prod(z.shape[1:])))


def sources(config: MetaTasNetConfig, batch: int, samples: int, seed: int) -> list[Tensor]:
    """Return the I sources of each item at every stage's rate: float64 (batch, I, 1, samples 2^s)."""
    random = np.random.RandomState(seed)
    shape = (batch, len(config.instruments), 6, 1)
    f, p, a = (random.uniform(low, high, shape) for low, high in ((60, 1800), (0, 2 * math.pi), (0.1, 1)))
    found = []
    for stage in config.stages:
        t = np.arange(samples * 2**stage.index) / stage.sampling_rate
        x = sum(a[:, :, j] * np.sin(2 * np.pi * f[:, :, j] * t + p[:, :, j]) for j in range(6))
        x = x * (0.6 + 0.4 * np.sin(2 * np.pi * 1.3 * t)) + 0.1 * random.standard_normal((*shape[:2], len(t)))
        found.append(torch.from_numpy(x)[:, :, None])
    return found


def mixtures(stems: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums of the sources, (batch, 1, samples) for every stage."""
    return [stem.sum(1) for stem in stems]


_STEP = 7919
"""Samples of the first stage by which each round is shifted; prime, so that shifts do not repeat soon."""


def varied(base: Sequence[Tensor], strides: Sequence[int]) -> Callable[[int], list[Tensor]]:
    """Return a function from a round's number to its inputs: ``base`` for round 0, ``base`` rotated in time and scaled
    for all others.

    Args:
        base: float32 tensors with time last; those of one recording at several rates are shifted together.
        strides: for each tensor, how many of its samples last as long as one sample of the slowest tensor.
    """

    def draw(number: int) -> list[Tensor]:
        gain = 0.5 + (number * 0.618034 + 0.5) % 1.0
        return [
            tensor.clone() if number == 0 else gain * torch.roll(tensor, number * _STEP * stride, dims=-1)
            for tensor, stride in zip(base, strides, strict=True)
        ]

    return draw
