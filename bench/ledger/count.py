"""Count the cost of every launch of a job, from the launches and the machine code alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from metatasnet_fast._io import write_atomically
from metatasnet_fast.kernels import recording

from .launches import CudaLaunch, buffers, cubin_of, parameters
from .predict import FROM_CACHE, FROM_MEMORY, Cost, Gpu
from .sass import Function, function, usage
from .simulate import SECTOR, WHICH_SECTOR, Place, distinct, simulate

__all__ = ["Row", "costs"]

FOLLOWED = 16
"""Number of a launch's blocks that are simulated."""
SHORT, NEIGHBOURS = 4, 32
"""Along an axis of the grid with at most SHORT blocks, every block is followed. Along a longer axis, up to NEIGHBOURS
adjacent blocks are followed, to see which sectors they share."""


@dataclass
class Row:
    """Equal launches of a job: the kernel's name, what one of them costs, and how many there are."""

    kernel: str
    cost: Cost
    count: int


def costs(launches: Sequence[Any], gpu: Gpu) -> list[Row]:
    """Return the costs of the launches on a GPU: one row for each set of equal launches, in order of appearance.

    Kernels are compiled and followed in several processes, and results are kept in ``METATASNET_LEDGER`` (by default
    ``~/.cache/metatasnet_fast/ledger``) by code, arguments and grid.
    """
    groups: dict[Any, list[Any]] = {}
    for launch in launches:
        groups.setdefault(_key(launch), []).append(launch)
    programs: dict[Any, list[Any]] = {}  # launches of one program are counted in one process
    for key, own in groups.items():
        programs.setdefault(key[0], []).append((key, own[0]))
    global _queue
    _queue = [(own, gpu.capability) for own in programs.values()]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        found = {key: cost for costs in pool.map(_costs_of, range(len(_queue))) for key, cost in costs}
    return [Row(own[0].name, found[key], len(own)) for key, own in groups.items()]


_queue: list[tuple[list[tuple[Any, Any]], int]] = []
"""Work of the forked processes, which inherit this list."""


def _costs_of(number: int) -> list[tuple[Any, Cost]]:
    launches, capability = _queue[number]
    return [(key, _cost_of(launch, capability)) for key, launch in launches]


def _cost_of(launch: Any, capability: int) -> Cost:
    if isinstance(launch, recording.TorchCall):
        return Cost(hbm=launch.bytes, level_2=launch.bytes)
    return (_triton if isinstance(launch, recording.Launch) else _cuda)(launch, capability)


def _key(launch: Any) -> tuple[Any, ...]:
    """Return a key that is equal for launches of equal cost; its first entry stands for the program."""
    if isinstance(launch, recording.TorchCall):
        return "torch", launch.bytes
    if isinstance(launch, recording.Launch):
        what, options = recording.source(launch)
        return what.hash() + str(options), parameters(launch), launch.programs
    return launch.symbol, launch.placeless, launch.grid, launch.shared


def _triton(launch: recording.Launch, capability: int) -> Cost:
    kernel = recording.compiled(launch, capability)
    cubin, name = kernel.asm["cubin"], kernel.metadata.name
    given, limits = parameters(launch), buffers(launch)
    place = Place((launch.programs, 1, 1), 32 * kernel.metadata.num_warps, (), given, capability)
    found = _kept(lambda: _follow(cubin, name, place, limits=limits), cubin, given, launch.programs, limits)
    found.registers, found.shared = usage(cubin, name)[0], kernel.metadata.shared
    return found


def _cuda(launch: CudaLaunch, capability: int) -> Cost:
    if not launch.symbol:
        return Cost(hbm=launch.shared, level_2=launch.shared)
    cubin = cubin_of(launch.symbol, capability)
    place = Place(launch.grid, launch.threads, (), launch.arguments, capability, launch.cluster)
    starts = np.append(np.uint64(0), launch.pointers)
    found = _kept(
        lambda: _follow(cubin, launch.symbol, place, starts=starts), cubin, launch.symbol, launch.placeless, launch.grid
    )
    registers, _, static = usage(cubin, launch.symbol)
    found.registers, found.shared = registers, launch.shared + static
    return found


def _follow(cubin: bytes, name: str, place: Place, limits: dict[int, int] | None = None, starts: Any = None) -> Cost:
    """Estimate the cost of the whole grid from a few of its blocks.

    Args:
        limits: bytes of each buffer, by ``address >> 38``; None if they are unknown.
        starts: 0 and the pointers among the arguments, sorted, to find the buffer of an address; needed if ``limits`` is None.
    """
    code, grid = function(cubin, name), place.grid
    blocks = _chosen(grid)
    counts = simulate(code, replace(place, blocks=blocks))
    total = math.prod(grid)
    scale = total / len(blocks)
    cost = Cost(blocks=total, threads=place.threads, unknown=counts.unknown)
    cost.instructions = float(counts.instructions.sum()) * scale
    cost.flops = {kind: float(each.sum()) * scale for kind, each in counts.flops.items()}
    waiting = counts.waits @ np.array([FROM_MEMORY, FROM_CACHE])
    cost.waiting, cost.busiest = (float(waiting.mean()), float(waiting.max())), float(counts.instructions.max())
    cost.level_2 = scale * float(counts.requested.sum() + SECTOR * len(counts.cached))
    if limits is None:
        cost.hbm = _footprint(code, place, starts)
        return cost
    for keys in (counts.read, counts.written):  # blocks touch distinct sectors until the whole buffer is touched
        storages, sectors = np.unique((keys & WHICH_SECTOR) >> np.uint64(33), return_counts=True)
        for storage, found in zip(storages, sectors, strict=True):
            if int(storage) not in limits:
                raise RuntimeError(f"{name} was followed to an address that is none of its arguments'.")
            cost.hbm += min(float(found) * SECTOR * scale, float(limits[int(storage)]))
    return cost


def _footprint(code: Function, place: Place, starts: Any) -> float:
    """Estimate the bytes that all blocks touch, each byte counted once.

    Along each long axis of the grid a few adjacent blocks are followed. Their union has more sectors than one block
    has; this growth is extended in a straight line to the whole axis, for each pointer, for reads and for writes. Along
    short axes every block is followed.
    """
    grid = place.grid
    short = [range(size) if size <= SHORT else range(size // 2, size // 2 + 1) for size in grid]
    own = _union(code, place, short, starts)
    grown = {key: float(sectors) for key, sectors in own.items()}
    for axis, size in enumerate(grid):
        if size <= SHORT:
            continue
        length = min(size, max(SHORT, NEIGHBOURS // math.prod(map(len, short))))
        first = min(size // 2, size - length)
        line = [range(first, first + length) if k == axis else short[k] for k in range(3)]
        union = _union(code, place, line, starts)
        for key in own:
            grown[key] *= 1 + (union[key] / own[key] - 1) / (length - 1) * (size - 1)
    return SECTOR * sum(grown.values())


def _union(code: Function, place: Place, box: Sequence[range], starts: Any) -> dict[tuple[str, int], int]:
    """Return how many distinct sectors the blocks in a box of the grid touch, by kind (``read`` or ``written``) and by
    the position of the pointer in ``starts``."""
    counts = simulate(code, replace(place, blocks=list(itertools.product(box[0], box[1], box[2]))))
    found = {}
    for kind, keys in (("read", counts.read), ("written", counts.written)):
        sectors = distinct(keys & WHICH_SECTOR)
        owner = np.searchsorted(starts, sectors * np.uint64(SECTOR), "right")
        for pointer, count in zip(*np.unique(owner, return_counts=True), strict=True):
            found[kind, int(pointer)] = int(count)
    return found


def _chosen(grid: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Choose at most FOLLOWED blocks, the same in every run: all along short axes, random ones along long axes."""
    chance = random.Random(0)
    left = FOLLOWED
    places: dict[int, list[int]] = {}
    for axis in sorted(range(3), key=lambda a: grid[a]):
        most = max(1, left if axis == max(range(3), key=lambda a: grid[a]) else min(left, 4))
        places[axis] = sorted(chance.sample(range(grid[axis]), most)) if grid[axis] > most else list(range(grid[axis]))
        left //= len(places[axis])
    return list(itertools.product(places[0], places[1], places[2]))


@cache
def _version() -> bytes:
    folder = Path(__file__).parent
    return b"".join((folder / f"{name}.py").read_bytes() for name in ("sass", "instructions", "simulate", "count"))


def _kept(count: Callable[[], Cost], *key: Any) -> Cost:
    """Return ``count()``; read it from the folder of results if an earlier run stored it there."""
    folder = Path(os.environ.get("METATASNET_LEDGER") or Path.home() / ".cache" / "metatasnet_fast" / "ledger")
    digest = hashlib.sha256(_version())
    for part in key:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    path = folder / f"{digest.hexdigest()[:32]}.json"
    try:
        return Cost(**json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        found = count()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(found)))
        return found
