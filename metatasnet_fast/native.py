"""Load the compiled module ``metatasnet_fast._native``, or say why it cannot be loaded.

The package works without this module. Only the backends ``cpu`` and ``cuda`` need it. If one of these backends is
requested by name and the module is missing, the error gives the result of :func:`reason`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

__all__ = ["cuda_reason", "load", "reason"]

_NAME = "metatasnet_fast._native"
_REASON_FILE = Path(__file__).with_name("_native_absent.txt")  # setup.py writes this file if the build fails


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(_NAME), None
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
    except ImportError as error:
        return None, f"the compiled module is installed but cannot be loaded ({error}); reinstall metatasnet-fast."
    if _REASON_FILE.exists():
        recorded = _REASON_FILE.read_text(encoding="utf-8").strip()
        return None, (
            f"the compiled module was not built ({recorded}); install a C++17 compiler and reinstall with "
            "METATASNET_NATIVE=on pip install --force-reinstall --no-deps --no-cache-dir metatasnet-fast."
        )
    return None, (
        "the compiled module is not there: this source tree was never built for this Python; "
        "run METATASNET_NATIVE=on pip install -e . in it."
    )


def load() -> ModuleType | None:
    """Return the module, imported once; ``None`` if it cannot be imported. Then :func:`reason` says why."""
    return _load()[0]


def reason() -> str | None:
    """Return a sentence that says why the module cannot be imported, and what to do; ``None`` if it can be imported."""
    return _load()[1]


def cuda_reason() -> str | None:
    """Return a sentence that says why the module has no CUDA kernels, and what to do; ``None`` if it has CUDA kernels."""
    module = load()
    if module is None:
        return reason()
    if not hasattr(module, "cuda_build_info"):
        return (
            "the compiled module is older than this package; build it again: pip install --force-reinstall --no-deps ."
        )
    absent = module.cuda_build_info()["reason"]
    if not absent:
        return None
    return (
        f"the compiled module has no CUDA kernels ({absent}); install NVIDIA's compiler nvcc and reinstall with "
        "METATASNET_CUDA=on pip install --force-reinstall --no-deps --no-cache-dir metatasnet-fast."
    )
