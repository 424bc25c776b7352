"""Every launch of the masking network at the default widths, stage by stage, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metatasnet_fast.kernels import (
    blocks,
    depthwise,
    depthwise_backward,
    generator,
    group_norm,
    in_conv,
    mask_tail,
    masked_latent,
    pointwise,
    pointwise_backward,
    statistics,
)
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
        (empty(2, 4, -(-frames // TILE), 2, inputs), beta, beta) if beta is not None else None,
        one if next_slope else None, tf32,
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


def _in_conv(stage: int, frames: int, dtype: torch.dtype, tf32: bool, shared: bool = True) -> None:
    inputs, latent = STAGES[stage]
    x = empty(2, 1 if shared else 4, frames, latent, dtype=dtype)
    v = empty(2, 4, frames, inputs - latent, dtype=dtype) if inputs > latent else None
    y, one, parameter = empty(2, 4, frames, WIDTH, dtype=dtype), empty(1), empty(4, inputs)
    affine, weight = empty(2, 4, 4, inputs), empty(4, WIDTH, inputs)
    partials = in_conv.input_statistics(x, v, one, 4)
    *folded, _ = pointwise.fold_weights(weight, None, partials, parameter, parameter, frames, dtype)
    in_conv.in_conv_forward(x, v, *folded, one, one, tf32)
    in_conv.in_conv_backward(y, x, v, weight, one, affine, parameter, tf32)


def _mask_tail(channels: int, frames: int, dtype: torch.dtype) -> None:
    m, latent = empty(2, 4, frames, channels, dtype=dtype), empty(2, 1, frames, channels, dtype=dtype)
    one, affine, beta = empty(1), empty(2, 4, 4, channels), empty(4, channels)
    mask_tail.mask_tail_forward(m, latent, one, affine, beta, 4)
    mask_tail.mask_tail_backward(m, m, latent, one, affine, beta, 4)


def _masked_latent(channels: int, frames: int, dtype: torch.dtype) -> None:
    x, latent = empty(2, 4, frames, WIDTH, dtype=dtype), empty(2, 1, frames, channels, dtype=dtype)
    folded, bias, one = empty(2, 4, channels, WIDTH, dtype=dtype), empty(2, 4, channels), empty(1)
    masked_latent.mask_statistics(x, folded, bias, one)
    masked_latent.masked_latent(x, folded, bias, one, empty(2, 4, 4, channels), latent, 4)


def _blocks(frames: int, dtype: torch.dtype, tf32: bool, keep: int, bias: bool = False) -> None:
    """Eighteen blocks; forward once without and once with what backward needs."""
    count, channels = 18, (18, 4, WIDTH)
    stack = blocks.BlockWeights(
        empty(*channels, WIDTH, dtype=dtype), empty(count, 4), empty(*channels), empty(*channels), empty(*channels, 3),
        empty(count, 4), empty(*channels), empty(*channels), empty(count, 4, 2 * WIDTH, WIDTH),
        empty(count, 4, 2 * WIDTH) if bias else None, (1, 2, 4, 8, 16, 32) * 3,
    )  # fmt: skip
    x = empty(2, 4, frames, WIDTH, dtype=dtype)
    start = blocks.Start(empty(1), empty(2, 4, 4, WIDTH), empty(4, WIDTH))
    blocks.blocks_forward(x, stack, empty(1), 0, 1, tf32, True, start)
    _, _, kept = blocks.blocks_forward(x, stack, empty(1), keep, 2, tf32)
    blocks.blocks_backward(x, x, kept, stack, tf32)


def _generator() -> None:
    e, a, bias, k, offset = empty(4, 8), empty(3, 5, 8), empty(3, 5), empty(1000, 5), empty(1000)
    table, programs = empty(3, 5, dtype=torch.int64), empty(3, 2, dtype=torch.int32)
    generator.generator_forward(e, a, bias, k, offset, table, empty(4000))
    generator.generator_backward(empty(4000), e, a, bias, k, table, programs)


def uses(stage: int, frames: int, dtype: torch.dtype, tf32: bool = False) -> dict[str, Callable[[], None]]:
    """What the network launches, forward and backward, by the layer's name."""
    inputs, outputs = STAGES[stage]

    def product(inputs: int, outputs: int, **what: bool) -> Callable[[], None]:
        return lambda: _pointwise(inputs, outputs, frames, dtype, tf32, **what)

    return {
        "in_conv": lambda: _in_conv(stage, frames, dtype, tf32),
        "in_conv with dropout": lambda: _in_conv(stage, frames, dtype, tf32, shared=False),
        "mask tail": lambda: _mask_tail(outputs, frames, dtype),
        **({"masked latent": lambda: _masked_latent(outputs, frames, dtype)} if dtype.itemsize == 2 else {}),
        "blocks": lambda: _blocks(frames, dtype, tf32, keep=2),
        "blocks with bias": lambda: _blocks(frames, dtype, tf32, keep=1, bias=True),
        "generator": _generator,
        "norm after in_conv": lambda: _group_norm(frames, dtype),
        "conv1d": product(WIDTH, WIDTH, next_slope=True),
        "dconv1d": lambda: _depthwise(frames, dtype),
        "res_out": product(WIDTH, WIDTH, norm=True, residual=True),
        "res_out with bias": product(WIDTH, WIDTH, norm=True, residual=True, bias=True),
        "mask_output": product(WIDTH, outputs, slope=True, norm=True, next_slope=True),
        "input statistics": lambda: _statistics(inputs, frames, dtype),
        "block statistics": lambda: _statistics(WIDTH, frames, dtype),
    }
