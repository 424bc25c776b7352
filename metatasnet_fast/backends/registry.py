"""List the backends, find those that can serve a request, choose one for ``auto``, and keep the user's own choice."""

from __future__ import annotations

import functools
import importlib
import logging
from dataclasses import dataclass
from types import TracebackType

import torch

from ..errors import BackendUnavailableError
from ..precision import Precision
from .base import Backend, Request

__all__ = [
    "Availability", "Choice", "available_backends", "backend_names", "current_choice", "get_backend", "resolve",
    "use_backend",
]  # fmt: skip

logger = logging.getLogger("metatasnet_fast")

_HOMES = {
    "reference": "reference:ReferenceBackend",
    "cpu": "cpu:CpuBackend",
    "triton": "triton:TritonBackend",
    "cuda": "cuda:CudaBackend",
    "cuda-wgmma": "cuda:WgmmaBackend",
}

_PREFERENCE: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}
"""Backends that ``auto`` tries on a device, fastest first; on all other devices it chooses the reference."""


@dataclass(frozen=True)
class Availability:
    """Availability of a backend on this machine: ``reason`` is None if it can run, else a sentence that a user can act
    on."""

    name: str
    summary: str
    reason: str | None

    @property
    def available(self) -> bool:
        return self.reason is None


def backend_names() -> tuple[str, ...]:
    """Return the names that :func:`use_backend` accepts in addition to ``auto``."""
    return tuple(_HOMES)


_loaded: dict[str, Backend] = {}


def get_backend(name: str) -> Backend:
    """Return the backend of that name, even if it cannot run here.

    Raises:
        BackendUnavailableError: for an unknown name.
    """
    # Without a look-up by key: a compiler would take the key for a constant, which it cannot guard.
    for known, backend in _loaded.items():
        if known == name:
            return backend
    if name not in _HOMES:
        raise BackendUnavailableError(f"Unknown backend {name!r}; choose one of auto, {', '.join(_HOMES)}.")
    module, cls = _HOMES[name].split(":")
    _loaded[name] = getattr(importlib.import_module(f".{module}", __package__), cls)()
    return _loaded[name]


def available_backends() -> dict[str, Availability]:
    """Return every backend by name, with a reason for each that cannot run here."""
    return {
        name: Availability(name, get_backend(name).summary, get_backend(name).unavailable()) for name in backend_names()
    }


def resolve(name: str, request: Request) -> Backend:
    """Return the backend that serves a request.

    Args:
        name: a backend's name, or ``auto`` for the fastest that supports the request.

    Raises:
        BackendUnavailableError: if the named backend (or, for ``auto``, every backend) cannot serve; with the reasons.
    """
    if name != "auto":
        reason = _refusal(name, request)
        if reason is not None:
            raise BackendUnavailableError(f"The backend {name} cannot serve {request}: {reason}")
        return get_backend(name)
    reasons: list[str] = []
    broken = False
    for candidate in _PREFERENCE.get(request.device.type, ("reference",)):
        reason = _refusal(candidate, request)
        if reason is None:
            _announce(candidate, request.device, request.precision, request.training, "; ".join(reasons), broken)
            return get_backend(candidate)
        reasons.append(f"{candidate}: {reason}")
        broken = broken or get_backend(candidate).unavailable() is not None
    raise BackendUnavailableError(f"No backend can serve {request}. " + " ".join(reasons))


def _refusal(name: str, request: Request) -> str | None:
    backend = get_backend(name)
    return backend.unavailable() or backend.supports(request)


@functools.cache
def _announce(
    name: str, device: torch.device, precision: Precision, training: bool, passed_over: str, broken: bool
) -> None:
    """Log the choice once for each kind of request; as a warning if a backend that was passed over on a GPU cannot run
    at all."""
    job = "training" if training else "inference"
    because = f" (passed over: {passed_over})" if passed_over else ""
    level = logging.WARNING if broken and device.type == "cuda" else logging.INFO
    logger.log(level, "backend %s serves %s in %s on %s%s", name, job, precision.value, device, because)


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
