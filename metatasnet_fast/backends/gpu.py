"""Find out why this machine cannot run GPU code: no driver, a driver that is too old, or a missing compiler."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import re
import shutil
import sysconfig
from pathlib import Path

import torch

__all__ = ["compiler_reason", "driver_version", "no_gpu_reason"]


def no_gpu_reason() -> str | None:
    """Return a sentence that says why torch finds no GPU, and what to do; None if torch finds a GPU."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return "torch finds no GPU: it is a build for CPUs; install one for CUDA or ROCm on a machine with a GPU."
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        if "too old" in str(error):
            found = re.search(r"version (\d+)", str(error))
            version = f" (for CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10})" if found else ""
            return f"torch finds no GPU: the driver{version} is too old for its CUDA {torch.version.cuda}; update the driver."
    return "torch finds no GPU: install a driver on a machine with one, or make it visible (CUDA_VISIBLE_DEVICES)."


def driver_version() -> tuple[int, int] | None:
    """Return the newest CUDA version (major, minor) that NVIDIA's driver supports; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1" if os.name == "posix" else "nvcuda.dll")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


@functools.cache
def compiler_reason() -> str | None:
    """Return a sentence that says which tool Triton lacks to launch kernels; None if it lacks no tool.

    Up to version 3.8 Triton compiles a small C module for its first launch, and one for each kind of launch. Some of these
    modules may be in Triton's cache, but others may be missing, so the cache is not considered.
    """
    try:
        if not _compiles():
            return None
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install it again."
    if not os.environ.get("CC") and not shutil.which("gcc") and not shutil.which("clang"):
        return "Triton needs a C compiler to launch kernels and finds none; install gcc, or set CC."
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Triton needs Python's headers to launch kernels; install them (Debian: python3-dev)."
    return None


def _compiles() -> bool:
    driver = importlib.import_module(f"triton.backends.{'amd' if torch.version.hip else 'nvidia'}.driver")
    return hasattr(driver, "compile_module_from_src")
