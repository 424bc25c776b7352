"""Networks that run in milliseconds, and an engine whose arithmetic is plain to see."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metatasnet_fast import MultiTasNet, Separator
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.separation.fast_mode import WindowShape
from tests.support import TINY

SMALL = WindowShape(window=128, context=16, fade=4)
"""Windows of 0.32 s, so that a short signal has many."""


@dataclass(frozen=True)
class PointwiseEngine:
    """Stem i is (i + 1) / 10 of the last stage's mixture: linear, and without memory."""

    config: MetaTasNetConfig = TINY

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        (last,) = wanted
        factors = torch.tensor([0.1, 0.2, 0.3, 0.4])
        return {last: factors[None, :, None, None] * mixes[last][:, None]}


@pytest.fixture(scope="session")
def network() -> MultiTasNet:
    torch.manual_seed(0)
    return MultiTasNet(TINY).eval()


@pytest.fixture
def separator(network: MultiTasNet) -> Separator:
    """Fast mode in small windows on the plain backend."""
    result = Separator(network, device="cpu", backend="reference", batch_size=3)
    result.window = SMALL
    return result


def music(channels: int, samples: int, rate: int = 44100, seed: int = 0) -> Tensor:
    """Chords with noise, (channels, samples), a different one in each channel."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples, dtype=torch.float64) / rate
    pitch = 80 + 900 * torch.rand(channels, 5, 1, generator=generator, dtype=torch.float64)
    swell = 0.6 + 0.4 * torch.sin(2 * torch.pi * 1.7 * time)
    noise = torch.randn(channels, samples, generator=generator, dtype=torch.float64)
    return (0.05 * swell * torch.sin(2 * torch.pi * pitch * time).sum(1) + 0.02 * noise).float()
