"""New inputs for every round, cheaply: one recording, shifted and scaled by the round's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["varied"]

_STEP = 7919
"""Samples of the first stage that each round is shifted by; prime, so that shifts do not come back soon."""


def varied(base: Sequence[Tensor], strides: Sequence[int]) -> Callable[[int], list[Tensor]]:
    """A function of the round's number: round 0 is ``base``; later ones are rotated in time and scaled.

    Args:
        base: float32 tensors with time last; those of one recording at several rates are shifted together.
        strides: samples that one sample of the slowest tensor lasts, for each tensor.
    """

    def draw(number: int) -> list[Tensor]:
        gain = 0.5 + (number * 0.618034 + 0.5) % 1.0
        return [
            tensor.clone() if number == 0 else gain * torch.roll(tensor, number * _STEP * stride, dims=-1)
            for tensor, stride in zip(base, strides, strict=True)
        ]

    return draw
