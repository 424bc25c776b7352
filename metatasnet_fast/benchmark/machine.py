"""Describe the machine of a measurement: code, processor, device, versions, clocks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import __version__, native

__all__ = ["clocks", "describe", "source_version"]

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "numpy", "triton")


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
        "packages": {name: _version(name) for name in _PACKAGES},
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


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
