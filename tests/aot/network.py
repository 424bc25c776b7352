"""Every launch of the masking network at the default widths, stage by stage, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metatasnet_fast.kernels import depthwise, depthwise_backward, group_norm, pointwise, pointwise_backward, statistics
from metatasnet_fast.kernels.launch import TILE

WIDTH = 160
STAGES = {1: (440, 440), 2: (1320, 880), 3: (2640, 1760)}
"""Channels into the masking network and out of it."""


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _pointwise(
    inputs: int, outputs: int, frames: int, dtype: torch.dtype, tf32: bool,
    slope: bool = False, norm: bool = False, residual: bool = False, bias: bool = False, next_slope: bool = False,
) -> None:  # fmt: skip
    x, dy = empty(2, 4, frames, inputs, dtype=dtype), empty(2, 4, frames, outputs, dtype=dtype)
    weight, one = empty(4, outputs, inputs), empty(1)
    affine, beta = (empty(2, 4, 4, inputs), empty(4, inputs)) if norm else (None, None)
    pointwise.pointwise_forward(
        x, weight, empty(4, outputs) if bias else None, dy if residual else None, one if slope else None,
        affine, beta, one if next_slope else None, tf32,
    )  # fmt: skip
    pointwise_backward.pointwise_backward(dy, x, weight, one if slope else None, affine, beta, tf32)


def _depthwise(frames: int, dtype: torch.dtype) -> None:
    x, taps, one = empty(2, 4, frames, WIDTH, dtype=dtype), empty(4, WIDTH, 3), empty(1)
    affine, beta = empty(2, 4, 4, WIDTH), empty(4, WIDTH)
    depthwise.depthwise_forward(x, taps, 4, one, affine, beta, one)
    depthwise_backward.depthwise_backward(x, x, taps, 4, one, affine, beta, one)


def _group_norm(frames: int, dtype: torch.dtype) -> None:
    x, one, affine, beta = empty(2, 4, frames, WIDTH, dtype=dtype), empty(1), empty(2, 4, 4, WIDTH), empty(4, WIDTH)
    group_norm.group_norm_forward(x, one, affine, beta)
    group_norm.group_norm_backward(x, x, one, affine)


def _statistics(channels: int, frames: int, dtype: torch.dtype) -> None:
    statistics.group_statistics(empty(2, 4, frames, channels, dtype=dtype), empty(1))
    partials, parameter = empty(2, 4, -(-frames // TILE), 2, channels), empty(4, channels)
    statistics.group_affine(partials, parameter, parameter, frames)


def uses(stage: int, frames: int, dtype: torch.dtype, tf32: bool = False) -> dict[str, Callable[[], None]]:
    """What the network launches, forward and backward, by the layer's name."""
    inputs, outputs = STAGES[stage]

    def product(inputs: int, outputs: int, **what: bool) -> Callable[[], None]:
        return lambda: _pointwise(inputs, outputs, frames, dtype, tf32, **what)

    return {
        "in_conv": product(inputs, WIDTH, slope=True, norm=True, next_slope=True),
        "norm after in_conv": lambda: _group_norm(frames, dtype),
        "conv1d": product(WIDTH, WIDTH, next_slope=True),
        "dconv1d": lambda: _depthwise(frames, dtype),
        "res_out": product(WIDTH, WIDTH, norm=True, residual=True),
        "res_out with bias": product(WIDTH, WIDTH, norm=True, residual=True, bias=True),
        "mask_output": product(WIDTH, outputs, slope=True, norm=True, next_slope=True),
        "input statistics": lambda: _statistics(inputs, frames, dtype),
        "block statistics": lambda: _statistics(WIDTH, frames, dtype),
    }
