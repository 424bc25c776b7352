"""Training: the authors' recipe on a prepared cache, and their optimiser and learning-rate schedule on their own.

Names are loaded on first use: the command line reads a run's settings before it needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["SGDR", "Ranger"]

_HOMES = {"Ranger": "ranger", "SGDR": "schedule"}

if TYPE_CHECKING:
    from .ranger import Ranger
    from .schedule import SGDR


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
