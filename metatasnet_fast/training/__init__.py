"""Train by the authors' recipe on a prepared cache. The authors' optimiser and learning-rate schedule can be used
alone.

The names below are loaded on first use: the command line reads a run's settings before it needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["SGDR", "Ranger"]

if TYPE_CHECKING:
    from .optimizer import SGDR, Ranger


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import optimizer

    globals()[name] = value = getattr(optimizer, name)
    return value
