"""The user's choice of backend and precision for a network."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import torch

from ..errors import BackendUnavailableError
from ..precision import Precision
from .registry import backend_names

__all__ = ["Choice", "current_choice", "use_backend"]


@dataclass(frozen=True)
class Choice:
    """The name of a backend, or ``auto``; and a precision, or None for that of the parameters."""

    backend: str = "auto"
    precision: Precision | None = None

    @classmethod
    def parse(cls, backend: str, dtype: str | torch.dtype | None) -> Choice:
        """Check the names; raises :class:`BackendUnavailableError` or :class:`ConfigError` for unknown ones."""
        if backend != "auto" and backend not in backend_names():
            known = ", ".join(backend_names())
            raise BackendUnavailableError(f"Unknown backend {backend!r}; choose one of auto, {known}.")
        return cls(backend, None if dtype is None else Precision.parse(dtype))


_DEFAULT = Choice()
_chosen: list[use_backend] = []
"""The choices in force; the last one counts. Each removes itself when it ends, in any order."""


def current_choice() -> Choice:
    """Return the process-wide choice."""
    return _chosen[-1].choice if _chosen else _DEFAULT


class use_backend:  # noqa: N801 - reads as a statement, like torch.no_grad
    """Choose the backend of every network that has no choice of its own.

    Takes effect at once; used as a context manager, it is undone at the end. The choice is one for the process, not one for
    each thread, so that the threads of ``DataParallel`` follow it.

    Args:
        name: ``auto``, or one of :func:`available_backends`. A backend that cannot serve a request raises when it is asked.
        dtype: precision of the computation (``float32``, ``bfloat16``, ...); None means that of the parameters.

    Raises:
        BackendUnavailableError: for an unknown backend.
        ConfigError: for an unknown dtype.

    Example:
        >>> with torch.no_grad(), use_backend("cpu", dtype="bfloat16"):
        ...     network.inference(mixtures)
    """

    def __init__(self, name: str, dtype: str | torch.dtype | None = None) -> None:
        self.choice = Choice.parse(name, dtype)
        _chosen.append(self)

    def __enter__(self) -> None:
        if self not in _chosen:
            _chosen.append(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in _chosen:
            _chosen.remove(self)
