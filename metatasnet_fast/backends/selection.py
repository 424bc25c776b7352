"""Which backend and precision a network computes with, as the user said it."""

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
    """A backend by name, or ``auto``; and a precision, or None for that of the parameters."""

    backend: str = "auto"
    precision: Precision | None = None

    @classmethod
    def parse(cls, backend: str, dtype: str | torch.dtype | None) -> Choice:
        """Check the names; raises :class:`BackendUnavailableError` or :class:`ConfigError` for unknown ones."""
        if backend != "auto" and backend not in backend_names():
            known = ", ".join(backend_names())
            raise BackendUnavailableError(f"Unknown backend {backend!r}; choose one of auto, {known}.")
        return cls(backend, None if dtype is None else Precision.parse(dtype))


_current = Choice()


def current_choice() -> Choice:
    """The process-wide choice."""
    return _current


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
        >>> with use_backend("reference", dtype="float64"):
        ...     network.inference(mixtures)
    """

    def __init__(self, name: str, dtype: str | torch.dtype | None = None) -> None:
        global _current
        self._before = _current
        _current = Choice.parse(name, dtype)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        _current = self._before
