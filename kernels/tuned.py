"""Which tile, warps and stages a kernel is launched with: measured ones where there are any for the device, else the defaults.

A configuration belongs to a kernel, a precision and the sizes that are compile-time constants (channels, never frames). The
nearest one measured is taken, sizes compared by their ratios, if they are off by a factor of two at most. They are data:
``assets/tuned/<device>.json`` in the package, and a file of the user's own that ``metatasnet-fast tune`` writes and that goes
before it. Nothing is measured unless that command is given. No configuration changes what is computed beyond the order of
sums, and none depends on the length or on what else is in a batch.
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
"""Environment variable: the folder of the user's own files, by default ``metatasnet_fast/tuned`` in the user's cache."""

FARTHEST = 1.0
"""Sum of the sizes' ratios, in powers of two, beyond which a configuration says nothing about a kernel."""

logger = logging.getLogger("metatasnet_fast")
_applied: list[tuple[str, Mapping[str, int]]] = []


def user_folder() -> Path:
    """Return the file that ``metatasnet-fast tune`` writes, and that is read first."""
    own = os.environ.get(VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(cache) / "metatasnet_fast" / "tuned"


def file_name(device: str) -> str:
    """The file of a device's configurations."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


@functools.cache
def device_name(device: torch.device) -> str | None:
    """A GPU's name; None for other devices, which have no configurations."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


@functools.cache
def load(device: str) -> tuple[Mapping[str, Any], ...]:
    """Entries for a device, the user's first; says once where they are from, or that there are none."""
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
    """Options of the entry of that kernel and precision whose sizes are nearest; the first of equals; none if all are far."""

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
    """Launch ``kernel`` with these options whatever is known; for measuring them."""
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
    """``defaults`` for a launch on tensors like ``x``, changed where something is known to be faster."""
    precision = "tf32" if tf32 else str(x.dtype).removeprefix("torch.")
    found = _known(kernel, x.device, precision, tuple(sizes.items()))
    for name, options in _applied:
        found = options if name == kernel else found
    return {name: found.get(name, value) for name, value in defaults.items()}
