"""metatasnet-fast: the Meta-TasNet music source separation network behind fast kernels.

Public names are loaded on first use, so that importing the package costs little more than importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AccelerationReport": "model",
    "INSTRUMENTS": "config",
    "MetaTasNetConfig": "config",
    "MetaTasNetError": "errors",
    "MultiTasNet": "model",
    "Precision": "precision",
    "Separation": "separation",
    "Separator": "separation",
    "accelerate": "model",
    "available_backends": "backends",
    "bundled_models": "model",
    "convert": "model",
    "export": "model",
    "load_checkpoint": "model",
    "restore": "model",
    "use_backend": "backends",
}

__all__ = [
    "INSTRUMENTS",
    "AccelerationReport",
    "MetaTasNetConfig",
    "MetaTasNetError",
    "MultiTasNet",
    "Precision",
    "Separation",
    "Separator",
    "__version__",
    "accelerate",
    "available_backends",
    "bundled_models",
    "convert",
    "export",
    "load_checkpoint",
    "restore",
    "use_backend",
]

if TYPE_CHECKING:
    from .backends import available_backends, use_backend
    from .config import INSTRUMENTS, MetaTasNetConfig
    from .errors import MetaTasNetError
    from .model import MultiTasNet, bundled_models, convert, export, load_checkpoint
    from .model.accelerate import AccelerationReport, accelerate, restore
    from .precision import Precision
    from .separation import Separation, Separator


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
