"""Choose the tile, warps and stages of a launch: a configuration measured on the same GPU model, else the defaults.

A configuration belongs to a kernel, a precision and the sizes that are compile-time constants (channels, never frames). The
measured configuration with the nearest sizes is used, if the ratios of its sizes to the wanted ones multiply to at most two.
Configurations are stored in ``assets/tuned/<device>.json`` in the package, and in a file of the user, which is read first and
which ``metatasnet-fast tune`` writes. Only this command measures: :func:`subjects` yields every configurable launch of a
network, with its candidate configurations. A configuration changes results only by the order of sums. It depends neither on the
length nor on the other items of a batch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Sizes", "Subject", "VARIABLE", "applied", "configuration", "device_name", "file_name", "load", "nearest",
    "subjects", "user_folder",
]  # fmt: skip

VARIABLE = "METATASNET_TUNED"
"""Environment variable with the folder of the user's own files; by default ``metatasnet_fast/tuned`` in the cache folder."""

FARTHEST = 1.0
"""Largest distance at which a configuration is used. The distance is the sum of abs(log2(ratio)) over all sizes."""

logger = logging.getLogger("metatasnet_fast")
_applied: list[tuple[str, Mapping[str, int]]] = []


def user_folder() -> Path:
    """Return the folder into which ``metatasnet-fast tune`` writes, and which is read first."""
    own = os.environ.get(VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(cache) / "metatasnet_fast" / "tuned"


def file_name(device: str) -> str:
    """Return the name of the file with a device's configurations."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


@functools.cache
def device_name(device: torch.device) -> str | None:
    """Return a GPU's name; None for other devices, which have no configurations."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@functools.cache
def load(device: str) -> tuple[Mapping[str, Any], ...]:
    """Return the entries for a device, the user's own first. Log from which files they are, or that there are none."""
    shipped = importlib.resources.files("metatasnet_fast").joinpath("assets").joinpath("tuned")
    entries: list[Mapping[str, Any]] = []
    for path in (folder.joinpath(file_name(device)) for folder in (user_folder(), shipped)):
        try:
            entries += json.loads(path.read_text("utf-8"))["entries"]
            logger.info("kernels on %s are configured by %s", device, path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s holds no tuned configurations (%s); run metatasnet-fast tune again", path, error)
    if not entries:
        logger.info(
            "no tuned configuration for %s: kernels run with defaults; metatasnet-fast tune measures them", device
        )
    return tuple(entries)


def nearest(
    entries: tuple[Mapping[str, Any], ...], kernel: str, precision: str, sizes: Mapping[str, int]
) -> Mapping[str, int]:
    """Return the options of the entry for that kernel and precision whose sizes are nearest.

    Of equally near entries the first one counts. If no entry is near enough (see FARTHEST), return an empty mapping.
    """

    def distance(entry: Mapping[str, Any]) -> float:
        return sum(abs(math.log2(entry["sizes"][name] / size)) for name, size in sizes.items())

    candidates = [
        e
        for e in entries
        if e["kernel"] == kernel and e["precision"] == precision and e["sizes"].keys() == sizes.keys()
    ]
    best = min(candidates, key=distance, default=None)
    return {} if best is None or distance(best) > FARTHEST else best["options"]


@contextlib.contextmanager
def applied(kernel: str, options: Mapping[str, int]) -> Iterator[None]:
    """In this context, launch ``kernel`` with these options instead of the tuned ones. The command ``tune`` measures so."""
    _applied.append((kernel, options))
    try:
        yield
    finally:
        _applied.pop()


@functools.lru_cache(maxsize=1024)
def _known(kernel: str, device: torch.device, precision: str, sizes: tuple[tuple[str, int], ...]) -> Mapping[str, int]:
    name = device_name(device)
    return {} if name is None else nearest(load(name), kernel, precision, dict(sizes))


def configuration(kernel: str, x: Tensor, tf32: bool, defaults: dict[str, int], **sizes: int) -> dict[str, int]:
    """Return the options of a launch on tensors like ``x``: ``defaults``, replaced where the nearest tuned entry has others."""
    precision = "tf32" if tf32 else str(x.dtype).removeprefix("torch.")
    found = _known(kernel, x.device, precision, tuple(sizes.items()))
    for name, options in _applied:
        found = options if name == kernel else found
    return {name: found.get(name, value) for name, value in defaults.items()}


@dataclass(frozen=True)
class Sizes:
    """The sizes for which the masking network's kernels are compiled.

    ``width`` is the number of channels of the residual stream, ``hidden`` that of a block, ``latents`` those of the stages'
    latents. ``blocks`` is the number of blocks.
    """

    width: int
    hidden: int
    blocks: int
    latents: tuple[int, ...]


@dataclass(frozen=True)
class Subject:
    """A kernel to measure at some sizes.

    ``run`` launches the kernel and returns a result, which is the same for all ``candidates`` but for rounding.
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


def subjects(
    sizes: Sizes, dtype: torch.dtype, tf32: bool, device: torch.device, items: int, frames: int
) -> Iterator[Subject]:
    """Yield each kernel to measure once, with random activations of ``items`` items and ``frames`` frames."""
    # Import these modules late, as they import this one.
    from .blocks import BlockWeights, blocks_forward
    from .depthwise import depthwise_forward
    from .in_conv import in_conv_forward
    from .pointwise import product
    from .pointwise_backward import data_gradient, weight_gradient
    from .pointwise_sums import new_sums

    def pointwise(x: Tensor, w: Tensor, one: Tensor, tf32: bool) -> Tensor:
        return product(x, w, None, None, None, one, tf32)[0]

    def dgrad(dy: Tensor, x: Tensor, w: Tensor, tf32: bool) -> Tensor:
        return data_gradient(dy, None, w, x, None, None, None, tf32)[0]

    def wgrad(dy: Tensor, x: Tensor, tf32: bool) -> Tensor:
        s, d = new_sums(x, dy.shape[3], x.shape[3])
        weight_gradient(dy, None, x, None, None, s, d, tf32)
        return s

    def two_operands(x: Tensor, v: Tensor | None, w: Tensor, bias: Tensor, one: Tensor, tf32: bool) -> Tensor:
        return in_conv_forward(x, v, w, bias, one, one, tf32)[0]

    def random(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device).to(of)

    def stream(channels: int) -> Tensor:
        return random(items, 4, frames, channels)

    b, h = sizes.width, sizes.hidden
    one, wide = torch.full((1,), 0.25, device=device), torch.float32
    products = {(b, h), (h, b), (sizes.blocks * h, b), *((b, n) for n in sizes.latents)}
    for k, n in sorted(products):
        x, w = stream(k), random(items, 4, n, k)
        yield Subject("pointwise_fwd", {"K": k, "N": n}, PRODUCTS, functools.partial(pointwise, x, w, one, tf32))
    for k, n in sorted({(b, h), (h, b), *((b, n) for n in sizes.latents)}):
        dy, x, w = stream(n), stream(k), random(4, n, k)
        yield Subject("pointwise_dgrad", {"K": k, "N": n}, PRODUCTS, functools.partial(dgrad, dy, x, w, tf32))
        yield Subject("pointwise_wgrad", {"K": k, "N": n}, GRADIENTS, functools.partial(wgrad, dy, x, tf32))
    for i, n in enumerate(sizes.latents):
        x, v = random(items, 1, frames, n), stream(n // 2) if i else None
        k = n + n // 2 if i else n
        w, bias = random(items, 4, b, k), random(items, 4, 1, b, of=wide)
        run = functools.partial(two_operands, x, v, w, bias, one, tf32)
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
