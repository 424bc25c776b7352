"""The interface of a backend, the list of backends, the choice of one that serves a request, and the user's own choice.

A backend is an object that runs the network's jobs on some devices, in some precisions.
"""

from __future__ import annotations

import functools
import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from .. import reference
from ..config import MetaTasNetConfig, StageConfig
from ..errors import BackendUnavailableError, ShapeError
from ..precision import Precision
from ..reference import LossWeights

__all__ = [
    "Availability", "Backend", "Choice", "Request", "available_backends", "backend_names", "check_device",
    "current_choice", "exactly", "get_backend", "resolve", "use_backend",
]  # fmt: skip

Method = TypeVar("Method", bound=Callable[..., Any])

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
class Request:
    """A request to a backend: a device, a precision, whether gradients are needed (``training``), and the network, if known."""

    device: torch.device
    precision: Precision
    training: bool = False
    config: MetaTasNetConfig | None = None

    def __str__(self) -> str:
        return f"{'training' if self.training else 'inference'} in {self.precision.value} on {self.device}"


class Backend(ABC):
    """The jobs of the network: prepare (which includes the generator), encode, mask, decode.

    A job depends only on its arguments and on the result of :meth:`prepare`. Between jobs, tensors have the shapes named here.
    The backend chooses their strides, and may choose a lower dtype. Every job accepts any strides, and a batch of zero items.
    For ``training`` requests, every job is differentiable with respect to its inputs and to the parameters.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line about the backend, for the list of backends."""

    def variant(self) -> str:
        """Return a text for all else that prepared weights depend on, such as an instruction set that the user forces."""
        return ""

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return None if this machine can run the backend; else one sentence that says what the user can do."""

    @abstractmethod
    def supports(self, request: Request) -> str | None:
        """Return None if the backend can serve the request; else one sentence that says what the user can do."""

    @abstractmethod
    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> Any:
        """Generate, fold and pack the weights of one stage.

        Args:
            config: the stage's sizes.
            parameters: the stage's parameters by the original's names, on one device.
            precision: the precision of all jobs that use the result.

        Returns:
            an object that only this backend understands. Under ``torch.no_grad`` the object must not share memory with the
            parameters, as the network keeps it until a parameter changes.
        """

    @abstractmethod
    def encode(self, prepared: Any, signal: Tensor) -> Tensor:
        """Encode signals (n, 1, T) into latents (n, N, T // W), for any n."""

    @abstractmethod
    def mask(self, prepared: Any, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None) -> Tensor:
        """Return the masked latents (n, I, N, T') of I instruments.

        ``latent`` (n, N, T') belongs to the mixture. ``partial`` (n, I, N / 2, T') is the masked latent of the previous stage;
        None in the first stage. ``dropout`` (n, I, N) holds factors for the copy of the latent that the masking network reads;
        None for no dropout.
        """

    @abstractmethod
    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        """Decode latents (n, N, T') into signals (n, 1, T' W), for any n."""

    def repeat(
        self, prepared: Sequence[Any], job: Callable[..., tuple[Tensor, ...]], name: Hashable, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return ``job(*inputs)``. The job runs several of the backend's jobs without gradients, and is called repeatedly.

        A backend may record the job under ``name`` and the shapes of the inputs, and replay the record for other inputs of
        these shapes. ``prepared`` holds the prepared weights of the stages.
        """
        return job(*inputs)

    def stage_loss(
        self,
        estimate: Tensor,
        target: Tensor,
        mask: Tensor,
        latents: Tensor | None,
        mix_estimate: Tensor | None,
        mix: Tensor,
        weights: LossWeights,
        divisors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return loss and statistics of a stage, as :func:`metatasnet_fast.reference.stage_loss` does."""
        return reference.stage_loss(estimate, target, mask, latents, mix_estimate, mix, weights, divisors)


def check_device(tensor: Tensor, device: torch.device) -> None:
    """Raise :class:`ShapeError` unless the tensor is on ``device``, the device of the weights."""
    if tensor.device != device:
        raise ShapeError(f"A tensor is on {tensor.device}, the weights on {device}: move one of them.")


def exactly(method: Method) -> Method:
    """Decorate a method so that it runs without autocast, which would round the results of PyTorch's operations."""

    @functools.wraps(method)
    def run(*args: Any, **named: Any) -> Any:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return method(*args, **named)

    return cast(Method, run)


@dataclass(frozen=True)
class Availability:
    """The availability of a backend on this machine.

    ``reason`` is None if the backend can run; else it is a sentence that says what to do.
    """

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
    """Return the backend ``name``, even if it cannot run on this machine.

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
    """Return the availability of every backend, by name."""
    return {
        name: Availability(name, get_backend(name).summary, get_backend(name).unavailable()) for name in backend_names()
    }


def resolve(name: str, request: Request) -> Backend:
    """Return the backend that serves a request.

    Args:
        name: a backend's name, or ``auto`` for the fastest that supports the request.

    Raises:
        BackendUnavailableError: if the named backend cannot serve the request, or, for ``auto``, if no backend can. The message
            gives the reasons.
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
    """Log the choice of a backend, once for each kind of request.

    On a GPU the message is a warning if ``broken``: a backend that was passed over cannot run on this machine at all.
    """
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
