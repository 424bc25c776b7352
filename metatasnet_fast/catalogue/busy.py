"""How long a device has been busy, and names for what runs, as profilers show them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator

import torch

__all__ = ["DeviceClock", "profiled"]

BATCHES_QUEUED = 2
"""Batches that a GPU has in its queue at most: enough to never wait for the host, few enough to bound memory."""


@contextlib.contextmanager
def profiled(name: str) -> Iterator[None]:
    """An NVTX range around the block, where there is CUDA."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


class DeviceClock:
    """Adds up the time in which a device worked on batches: by its own events on a GPU, where calls return at once."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._busy = 0.0
        self._began: float | None = None
        self._lock = threading.Lock()
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Around the work on one batch; waits while the GPU has enough in its queue."""
        with profiled(name):
            if not self._cuda:
                self._began = time.perf_counter()
                try:
                    yield
                finally:
                    with self._lock:
                        self._busy += time.perf_counter() - self._began
                        self._began = None
                return
            stream = torch.cuda.current_stream(self._device)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            try:
                yield
            finally:
                end.record(stream)
                self._events.append((begin, end))
            while len(self._events) >= BATCHES_QUEUED:
                self._collect()

    @property
    def busy_seconds(self) -> float:
        with self._lock:
            began = self._began
            return self._busy + (time.perf_counter() - began if began is not None else 0.0)

    def settle(self) -> None:
        """Wait for the GPU, so that ``busy_seconds`` is complete."""
        while self._events:
            self._collect()

    def _collect(self) -> None:
        begin, end = self._events.popleft()
        end.synchronize()
        with self._lock:
            self._busy += begin.elapsed_time(end) / 1000
