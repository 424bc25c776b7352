"""Measurements of ``metatasnet-fast tune``: every configurable launch of a network, and its candidate configurations."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import BlockWeights, blocks_forward
from .depthwise import depthwise_forward
from .in_conv import in_conv_forward
from .pointwise import product
from .pointwise_backward import data_gradient, weight_gradient
from .pointwise_sums import new_sums

__all__ = ["Sizes", "Subject", "subjects"]


@dataclass(frozen=True)
class Sizes:
    """Sizes for which the masking kernels are compiled.

    Channels of the residual stream (``width``), of a block (``hidden``) and of each stage's latent; the number of blocks.
    """

    width: int
    hidden: int
    blocks: int
    latents: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A kernel to measure at some sizes.

    ``run`` launches the kernel and returns a result, which is the same for all ``candidates`` except for rounding.
    """

    kernel: str
    sizes: dict[str, int]
    candidates: tuple[dict[str, int], ...]
    run: Callable[[], Tensor]


def _options(**choices: tuple[int, ...]) -> tuple[dict[str, int], ...]:
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


COLUMNS = ((128, 32), (128, 0), (64, 32), (64, 0), (32, 0))
PRODUCTS = tuple(
    {"BLOCK_N": main, "TAIL_N": tail, **other}
    for main, tail in COLUMNS
    for other in _options(BLOCK_K=(32, 64), num_warps=(4, 8), num_stages=(2, 3, 4))
)
GRADIENTS = tuple(
    {"BLOCK_K": main, "TAIL_K": tail, **other}
    for main, tail in ((32, 0), (64, 0), (128, 0), (128, 32))
    for other in _options(BLOCK_T=(32, 64), BLOCK_N=(32, 64, 128), num_warps=(4, 8), num_stages=(2, 3))
)
PASSES = _options(BLOCK_C=(16, 32, 64), num_warps=(2, 4, 8))
ITEMS = _options(items=(0, 1, 2, 4, 8))


def _product(x: Tensor, w: Tensor, one: Tensor, tf32: bool) -> Tensor:
    return product(x, w, None, None, None, one, tf32)[0]


def _dgrad(dy: Tensor, x: Tensor, w: Tensor, tf32: bool) -> Tensor:
    return data_gradient(dy, None, w, x, None, None, None, tf32)[0]


def _wgrad(dy: Tensor, x: Tensor, tf32: bool) -> Tensor:
    s, d = new_sums(x, dy.shape[3], x.shape[3])
    weight_gradient(dy, None, x, None, None, s, d, tf32)
    return s


def _in_conv(x: Tensor, v: Tensor | None, w: Tensor, bias: Tensor, one: Tensor, tf32: bool) -> Tensor:
    return in_conv_forward(x, v, w, bias, one, one, tf32)[0]


def subjects(
    sizes: Sizes, dtype: torch.dtype, tf32: bool, device: torch.device, items: int, frames: int
) -> Iterator[Subject]:
    """Yield each kernel to measure once, with random activations of ``items`` items and ``frames`` frames."""

    def random(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device).to(of)

    def stream(channels: int) -> Tensor:
        return random(items, 4, frames, channels)

    b, h = sizes.width, sizes.hidden
    one, wide = torch.full((1,), 0.25, device=device), torch.float32
    products = {(b, h), (h, b), (sizes.blocks * h, b), *((b, n) for n in sizes.latents)}
    for k, n in sorted(products):
        x, w = stream(k), random(items, 4, n, k)
        yield Subject("pointwise_fwd", {"K": k, "N": n}, PRODUCTS, functools.partial(_product, x, w, one, tf32))
    for k, n in sorted({(b, h), (h, b), *((b, n) for n in sizes.latents)}):
        dy, x, w = stream(n), stream(k), random(4, n, k)
        yield Subject("pointwise_dgrad", {"K": k, "N": n}, PRODUCTS, functools.partial(_dgrad, dy, x, w, tf32))
        yield Subject("pointwise_wgrad", {"K": k, "N": n}, GRADIENTS, functools.partial(_wgrad, dy, x, tf32))
    for i, n in enumerate(sizes.latents):
        x, v = random(items, 1, frames, n), stream(n // 2) if i else None
        k = n + n // 2 if i else n
        w, bias = random(items, 4, b, k), random(items, 4, 1, b, of=wide)
        run = functools.partial(_in_conv, x, v, w, bias, one, tf32)
        yield Subject("in_conv_fwd", {"K": k, "N": b}, PRODUCTS, run)
    x, taps, affine, beta = stream(h), random(4, h, 3, of=wide), random(items, 4, 4, h, of=wide), random(4, h, of=wide)
    yield Subject("depthwise_fwd", {"C": h}, PASSES, lambda: depthwise_forward(x, taps, 4, one, affine, beta, one))
    count, slopes = sizes.blocks, torch.full((sizes.blocks, 4), 0.25, device=device)
    channels = [random(count, 4, h, of=wide) for _ in range(4)]
    tower = BlockWeights(
        random(count, 4, h, b), slopes, channels[0], channels[1], random(count, 4, h, 3, of=wide), slopes, channels[2],
        channels[3], random(count, 4, 2 * b, h, of=wide), None, tuple(2 ** (i % 6) for i in range(count)),
    )  # fmt: skip
    start = stream(b)
    yield Subject("blocks", {"K": b, "N": h}, ITEMS, lambda: blocks_forward(start, tower, one, 0, 0, tf32)[0])
