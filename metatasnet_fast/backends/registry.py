"""List the backends, find the ones that can serve a request, choose one for ``auto``, and keep the user's choice."""

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
"""Backends that ``auto`` tries on each type of device, fastest first; on other types ``auto`` chooses the reference."""


@dataclass(frozen=True)
class Availability:
    """Availability of a backend on this machine: ``reason`` is None if the backend can run, else a sentence on what to do."""

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
    # Do not look up by key: torch.compile would treat the key as a constant, which it cannot guard.
    for known, backend in _loaded.items():
        if known == name:
            return backend
    if name not in _HOMES:
        raise BackendUnavailableError(f"Unknown backend {name!r}; choose one of auto, {', '.join(_HOMES)}.")
    module, cls = _HOMES[name].split(":")
    _loaded[name] = getattr(importlib.import_module(f".{module}", __package__), cls)()
    return _loaded[name]


def available_backends() -> dict[str, Availability]:
    """Return the availability of every backend by name, with a reason for each backend that cannot run here."""
    return {
        name: Availability(name, get_backend(name).summary, get_backend(name).unavailable()) for name in backend_names()
    }


def resolve(name: str, request: Request) -> Backend:
    """Return the backend that serves a request.

    Args:
        name: a backend's name, or ``auto`` for the fastest that supports the request.

    Raises:
        BackendUnavailableError: if the named backend cannot serve, or, for ``auto``, no backend can; with the reasons.
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
    """Log the choice once for each kind of request; on a GPU as a warning if a backend that was passed over cannot run
    at all."""
    job = "training" if training else "inference"
    because = f" (passed over: {passed_over})" if passed_over else ""
    level = logging.WARNING if broken and device.type == "cuda" else logging.INFO
    logger.log(level, "backend %s serves %s in %s on %s%s", name, job, precision.value, device, because)


@dataclass(frozen=True)
class Choice:
    """The name of a backend, or ``auto``; and a precision, or None for the precision of the parameters."""

    backend: str = "auto"
    precision: Precision | None = None

    @classmethod
    def parse(cls, backend: str, dtype: str | torch.dtype | None) -> Choice:
        """Check both names; raise :class:`BackendUnavailableError` for an unknown backend, :class:`ConfigError` for a dtype."""
        if backend != "auto" and backend not in backend_names():
            known = ", ".join(backend_names())
            raise BackendUnavailableError(f"Unknown backend {backend!r}; choose one of auto, {known}.")
        return cls(backend, None if dtype is None else Precision.parse(dtype))


_DEFAULT = Choice()
_chosen: list[use_backend] = []
"""The active choices; the last one counts. Each choice removes itself when it ends, in any order."""


def current_choice() -> Choice:
    """Return the process-wide choice."""
    return _chosen[-1].choice if _chosen else _DEFAULT


class use_backend:  # noqa: N801 - reads as a statement, like torch.no_grad
    """Choose the backend of every network that has no choice of its own.

    The choice takes effect at once. Used as a context manager, it ends with the context. The choice is for the whole process,
    not for one thread, so that the threads of ``DataParallel`` use it, too.

    Args:
        name: ``auto``, or one of :func:`available_backends`. If the backend cannot serve a request, the request raises.
        dtype: precision of the computation (``float32``, ``bfloat16``, ...); None means the dtype of the parameters.

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
