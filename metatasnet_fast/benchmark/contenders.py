"""Implementations of a job on this machine: eager PyTorch, ``torch.compile`` of it, and every other backend."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..backends import Backend, Request, available_backends, backend_names, get_backend
from ..config import MetaTasNetConfig
from ..precision import Precision
from .cases import EAGER

__all__ = ["AUTOTUNED", "COMPILED", "Entrants", "compiled", "default_precisions"]

COMPILED = "torch.compile"
"""Names of what torch compiles begin with this."""
AUTOTUNED = "max-autotune"
"""torch.compile's mode that measures several kernels for every product."""


@dataclass(frozen=True)
class Entrants:
    """The participants of a run: the device, the precisions, the backends, and whether eager is compiled too.

    Args:
        backends: names; eager is always there, since nothing is judged or compared without it.
        autotuned: compile it a second time with ``max-autotune``, which takes many minutes.
        peers: other runtimes take part in inference on a CPU, see :mod:`.peers`.
        extra: backends by name that are not registered, for tests of the measurement itself.
    """

    device: torch.device
    precisions: Sequence[Precision]
    backends: Sequence[str] = ()
    compiled: bool = True
    autotuned: bool = False
    peers: bool = False
    extra: dict[str, Backend] = field(default_factory=dict)

    @classmethod
    def of(cls, device: torch.device, compiled: bool = True, precisions: Sequence[Precision] = ()) -> Entrants:
        """Every backend that can run here at all."""
        names = [name for name, entry in available_backends().items() if entry.available and name != EAGER]
        return cls(device, precisions or default_precisions(device), names, compiled)

    @property
    def modes(self) -> list[tuple[str, str | None]]:
        """Names and modes of what torch compiles."""
        found: list[tuple[str, str | None]] = [(COMPILED, None)] if self.compiled else []
        return found + ([(f"{COMPILED} {AUTOTUNED}", AUTOTUNED)] if self.autotuned else [])

    def backend(self, name: str) -> Backend:
        return self.extra[name] if name in self.extra else get_backend(name)

    def serving(self, config: MetaTasNetConfig, training: bool) -> Iterable[tuple[str, Backend, Precision]]:
        """Eager and every other backend, in every precision that it supports; eager first."""
        for precision in self.precisions:
            request = Request(self.device, precision, training, config)
            for name in (EAGER, *self.backends, *self.extra):
                if self.backend(name).supports(request) is None:
                    yield name, self.backend(name), precision


def default_precisions(device: torch.device) -> list[Precision]:
    if device.type == "cuda":
        return [Precision.float32, Precision.tf32, Precision.bfloat16]
    return [Precision.float32, Precision.bfloat16]


def known(name: str) -> bool:
    """Return whether a user can ask for that backend by name."""
    return name in backend_names()


def compiled(function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """``torch.compile`` in a mode, for the shapes at hand; raises ``RuntimeError`` without a C++ compiler."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise RuntimeError("torch.compile needs a C++ compiler; install g++")
    made: Callable[..., Any] = torch.compile(function, dynamic=False, mode=mode)
    return made
