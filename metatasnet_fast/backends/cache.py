"""Prepared weights, kept until a parameter changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..config import StageConfig
from ..precision import Precision
from .base import Backend
from .fingerprint import fingerprint

__all__ = ["PreparedCache", "prepare_all"]

Stage: TypeAlias = tuple[StageConfig, Mapping[str, Tensor]]


class PreparedCache:
    """Prepared weights of a network's stages: the latest for each backend, precision and device.

    Every change of a parameter is noticed, however it was made, because the contents are read anew at every call. Copying or
    pickling a network leaves its cache behind; ``DataParallel`` replicas share one, each under its device.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], tuple[tuple[object, ...], list[Any]]] = {}
        self._lock = threading.Lock()

    def get(self, backend: Backend, precision: Precision, stages: Sequence[Stage]) -> list[Any]:
        """Prepared weights of all stages, without gradients."""
        tensors = [tensor for _, parameters in stages for tensor in parameters.values()]
        key = (backend.name, backend.variant(), precision, tensors[0].device)
        with torch.no_grad():
            contents = (*(config for config, _ in stages), *fingerprint(tensors))
            with self._lock:
                known, prepared = self._entries.get(key, (None, []))
            if known != contents:
                prepared = prepare_all(backend, precision, stages)
                with self._lock:
                    self._entries[key] = (contents, prepared)
        return prepared

    def clear(self) -> None:
        """Free everything that is kept."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedCache:
        return PreparedCache()

    def __reduce__(self) -> tuple[Callable[[], PreparedCache], tuple[()]]:
        return PreparedCache, ()


def prepare_all(backend: Backend, precision: Precision, stages: Sequence[Stage]) -> list[Any]:
    """Prepare every stage; differentiable if gradients are enabled."""
    return [backend.prepare(config, parameters, precision) for config, parameters in stages]
