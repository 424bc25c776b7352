"""Peak memory of a call, beyond what was there before it."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..backends.cpu import give_back_memory

__all__ = ["peak_memory", "resident"]

_STATUS = Path("/proc/self/status")
_INTERVAL = 0.002
"""Seconds between samples if the kernel does not record the peak."""


def peak_memory(function: Callable[[], Any], device: torch.device) -> tuple[int | None, str]:
    """Return the bytes at the peak of a call minus the bytes before it, and how they were measured.

    On a GPU it is the memory that torch's allocator gave out; on Linux the process's resident memory, which includes
    memory that the allocator keeps for later. None if neither can be read.
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
    """Give freed memory back, so that the next call has to ask for it again (glibc only)."""
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
