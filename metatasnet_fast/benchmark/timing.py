"""Time one call: by the host's clock on a CPU, by events on a GPU whose caches are cold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = ["EventTimer", "GraphTimer", "HostTimer", "Spread", "Timer", "make_timer"]


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentile of samples."""

    median: float
    p20: float
    p80: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Compute the spread; raise ``ValueError`` if there are no samples."""
        if not samples:
            raise ValueError("There is no spread of no samples.")
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        cuts = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(statistics.median(samples), cuts[1], cuts[7], len(samples))

    @property
    def noise(self) -> float:
        """Width from the 20th to the 80th percentile, relative to the median."""
        return (self.p80 - self.p20) / self.median


class Timer(Protocol):
    """A timer of one call of a function."""

    method: str

    def __call__(self, function: Callable[[], Any]) -> tuple[float, Any]:
        """Call the function once; return the seconds, and the complete result."""


class HostTimer:
    """A timer that reads the host's monotonic clock; for functions that return only when they are done."""

    method = "host clock"

    def __call__(self, function: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result


class EventTimer:
    """A timer that puts CUDA events around one call, after writing four times the size of the L2 cache.

    That write also keeps the device busy while the host enqueues the call, so that the start event does not wait for the
    host. If the host launches kernels more slowly than the device runs them, that waiting time counts, as it does for a
    user.
    """

    method = "CUDA events, L2 cold"

    def __init__(self, device: torch.device) -> None:
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self._device = device
        self._flush = torch.empty(max(4 * size, 1 << 28), dtype=torch.uint8, device=device)

    def __call__(self, function: Callable[[], Any]) -> tuple[float, Any]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        result = function()
        end.record()
        torch.cuda.synchronize(self._device)
        return start.elapsed_time(end) / 1e3, result


class GraphTimer:
    """A timer that replays a CUDA graph of the call with a cold L2 cache: device time without the host's launches.

    The function must read its inputs from tensors that stay where they are, and must not synchronise. A graph is captured at
    the first call of each function, and kept.

    Args:
        one_pool: the graphs share their memory, so a function's results last only until another function is replayed.
    """

    method = "CUDA graph replay, L2 cold"

    def __init__(self, device: torch.device, one_pool: bool = False) -> None:
        self._events = EventTimer(device)
        self._pool = torch.cuda.graph_pool_handle() if one_pool else None
        self._graphs: dict[Callable[[], Any], tuple[torch.cuda.CUDAGraph, Any]] = {}

    def __call__(self, function: Callable[[], Any]) -> tuple[float, Any]:
        if function not in self._graphs:
            self._graphs[function] = self._capture(function)
        graph, result = self._graphs[function]
        seconds, _ = self._events(graph.replay)
        return seconds, result

    def _capture(self, function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = function()
        return graph, result


def make_timer(device: torch.device, graph: bool = False, one_pool: bool = False) -> Timer:
    """Return the timer for a device. ``graph`` asks for graph replay if the device has graphs; for ``one_pool`` see
    :class:`GraphTimer`."""
    if device.type != "cuda":
        return HostTimer()
    return GraphTimer(device, one_pool) if graph else EventTimer(device)
