"""Read the machine of a measurement: time and peak memory of a call; code, processor, device, versions and clocks.

A call is timed by the host's clock on a CPU, by events on a GPU whose caches are cold.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import __version__, native
from .._extras import version_of
from ..backends.cpu import give_back_memory

__all__ = [
    "EventTimer", "GraphTimer", "HostTimer", "Spread", "Timer", "clocks", "describe", "make_timer", "peak_memory",
    "source_version",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "numpy", "triton")
_STATUS = Path("/proc/self/status")
_INTERVAL = 0.002
"""Seconds between samples of the memory if the kernel does not record its peak."""


def describe(device: torch.device) -> dict[str, Any]:
    """Return all facts that do not change during a run, ready for JSON; a fact that cannot be read is None."""
    commit, dirty = source_version()
    module = native.load()
    return {
        "version": __version__,
        "commit": commit,
        "dirty": dirty,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": device.type,
        "device_name": device_name(device),
        "driver": _nvidia_smi("driver_version") if device.type == "cuda" else None,
        "power_limit_watts": _nvidia_smi("power.limit") if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "compiled_module": module.build_info()["compiler"] if module else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in _PACKAGES},
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def clocks(device: torch.device) -> dict[str, float | None]:
    """Return the present clock rates in MHz and load of the machine; None for each value that cannot be read."""
    return {
        "cpu_mhz": _cpu_mhz(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu_mhz": _nvidia_smi("clocks.sm") if device.type == "cuda" else None,
        "gpu_memory_mhz": _nvidia_smi("clocks.mem") if device.type == "cuda" else None,
    }


def _cpu_mhz() -> float | None:
    try:
        rates = [
            float(f.read_text()) / 1e3 for f in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_cur_freq")
        ]
        if not rates:
            rates = [float(v) for v in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.M)]
    except (OSError, ValueError):
        return None
    return sum(rates) / len(rates) if rates else None


def _nvidia_smi(field: str) -> Any:
    lines = _said("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits")
    if not lines:
        return None
    value = lines.splitlines()[torch.cuda.current_device()].strip()
    try:
        return float(value)
    except ValueError:
        return value


def source_version() -> tuple[str | None, bool | None]:
    """Return the commit, and whether tracked files differ from it; (None, None) outside a checkout of this library."""
    if not (ROOT / ".git").exists():
        return None, None
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return _said("git", "-C", str(ROOT), "rev-parse", "HEAD"), None if changed is None else bool(changed)


def _said(*command: str) -> str | None:
    """Return what a program prints; None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory(function: Callable[[], Any], device: torch.device) -> tuple[int | None, str]:
    """Call ``function``; return the bytes at its peak minus the bytes before it, and how they were measured.

    On a GPU, bytes are those that torch's allocator gave out. On Linux, they are the process's resident memory, which
    includes memory that the allocator keeps for later. Elsewhere the bytes are None.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, "torch.cuda.max_memory_allocated"
    if not _STATUS.exists():
        return None, "not measured: resident memory can be read on Linux only"
    gc.collect()
    give_back_memory()
    _trim()
    if _reset_peak():
        before = resident("VmRSS")
        function()
        return max(0, resident("VmHWM") - before), "VmHWM after a reset"
    return _sampled(function), "VmRSS, sampled every 2 ms"


def resident(field: str) -> int:
    """Return a field of ``/proc/self/status`` (``VmRSS``, ``VmHWM``) in bytes, or 0 where it is missing."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> bool:
    """Ask the kernel to reset the peak; return False if it cannot (as in containers with a kernel of their own)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return 0 < resident("VmHWM") <= resident("VmRSS") + (1 << 20)


def _trim() -> None:
    """Give freed memory back to the system, so that the next call has to ask for it again (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _sampled(function: Callable[[], Any]) -> int:
    before = peak = resident("VmRSS")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_INTERVAL):
            peak = max(peak, resident("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        function()
        peak = max(peak, resident("VmRSS"))
    finally:
        done.set()
        watcher.join()
    return peak - before


@dataclass(frozen=True)
class Spread:
    """Median, 20th and 80th percentile, and number of a set of samples."""

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
        """The distance between the samples' 20th and 80th percentile, divided by their median."""
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

    That write also keeps the device busy while the host enqueues the call, so that the start event does not wait for
    the host. If the host launches kernels more slowly than the device runs them, that waiting time counts, as it does
    for a user.
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

    The function must read its inputs from tensors that stay where they are, and must not synchronise. A graph is
    captured at the first call of each function, and kept.

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
