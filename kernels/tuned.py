"""Choose the tile, warps and stages of a launch: a configuration measured on the same GPU model, else the defaults.

A configuration belongs to a kernel, a precision and the sizes that are compile-time constants (channels, never frames). The
nearest measured configuration is used if the product of its sizes' ratios is at most two. Configurations are stored in
``assets/tuned/<device>.json`` in the package, and in a file of the user that ``metatasnet-fast tune`` writes and that is read
first. Only that command measures. A configuration changes results only by the order of sums. It depends neither on the
length nor on the other items of a batch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["VARIABLE", "applied", "configuration", "device_name", "file_name", "load", "nearest", "user_folder"]

VARIABLE = "METATASNET_TUNED"
"""Environment variable: the folder of the user's own files; by default ``metatasnet_fast/tuned`` in the user's cache folder."""

FARTHEST = 1.0
"""Largest distance at which a configuration is used: the sum over the sizes of abs(log2(ratio))."""

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
    """Return the entries for a device, the user's first. Log once from which files, or that there are no entries."""
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
    """Return the options of the entry with the nearest sizes, for that kernel and precision; the first of equally near ones.

    If no entry is near enough (FARTHEST), return an empty mapping.
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
    """In this context, launch ``kernel`` with these options instead of the known ones, to measure the options."""
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
    """Return ``defaults`` for a launch on tensors like ``x``, with the options of the nearest tuned entry in their place."""
    precision = "tf32" if tf32 else str(x.dtype).removeprefix("torch.")
    found = _known(kernel, x.device, precision, tuple(sizes.items()))
    for name, options in _applied:
        found = options if name == kernel else found
    return {name: found.get(name, value) for name, value in defaults.items()}
