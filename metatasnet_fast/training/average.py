"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch

from ..model import MultiTasNet

__all__ = ["WeightAverage"]


class WeightAverage:
    """``average <- d average + (1 - d) weights`` after every step, with ``d = min(decay, (1 + step) / (10 + step))``.

    The smaller decay of the first steps lets the average forget the random weights it starts from.
    """

    def __init__(self, network: MultiTasNet, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        """The network with averaged weights."""

    @torch.no_grad()
    def update(self, network: MultiTasNet, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)
