"""A case of a measurement: one job, one set of inputs, and every implementation of the job."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..backends import Backend, Request, available_backends, get_backend
from ..config import MetaTasNetConfig
from ..precision import Precision
from .roofline import Work

__all__ = [
    "AUTOTUNED", "COMPILED", "EAGER", "GRADIENTS", "Call", "Case", "Implementation", "Outputs", "Participants",
    "compiled", "default_precisions",
]  # fmt: skip

EAGER = "reference"
"""The implementation that all others are compared with: the backend of plain PyTorch."""
COMPILED = "torch.compile"
"""Prefix of the names of implementations that torch compiles."""
AUTOTUNED = "max-autotune"
"""The mode in which torch.compile measures several kernels for every product."""

Outputs: TypeAlias = Mapping[str, Sequence[Tensor]]
"""Outputs of a call by name; the tensors of one name are checked together."""
GRADIENTS = "gradients"
"""Name of the output that holds the gradients of a whole network."""

Call: TypeAlias = Callable[[], Outputs]


@dataclass(frozen=True)
class Implementation:
    """One way to do a case's job.

    ``make`` builds the implementation, and returns the call that is timed. The call reads the case's ``inputs``, whose
    contents change from round to round, and returns its outputs, complete once the device is synchronised.
    """

    name: str
    precision: Precision
    make: Callable[[], Call]

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision.value}"


@dataclass
class Case:
    """A job with its inputs, its oracle and its implementations.

    Args:
        name: identifies the case in records, with the sizes: ``inference 1x16s``.
        job: what is done, in the words of the documentation.
        sizes: shapes and lengths, for the record.
        audio_seconds: seconds of mono audio that one call processes, for the real-time factor; None without audio.
        inputs: tensors on the device that every call reads.
        draw: function from the number of a round to that round's values of ``inputs``, which differ in every round.
        expected: function from values that ``draw`` returned to the outputs in float64.
        work: function from a precision to the arithmetic and the bytes of one call.
        implementations: all implementations; eager PyTorch in every precision is among them.
        whole_process: whether every call is a process of its own. The host's clock times such a call, and its memory is
            not measured.
    """

    name: str
    job: str
    sizes: dict[str, Any]
    audio_seconds: float | None
    inputs: Sequence[Tensor]
    draw: Callable[[int], Sequence[Tensor]]
    expected: Callable[[Sequence[Tensor]], Outputs]
    work: Callable[[Precision], Work]
    implementations: Sequence[Implementation]
    whole_process: bool = False

    def fill(self, number: int) -> Sequence[Tensor]:
        """Write the values of round ``number`` into ``inputs``, and return these values as drawn."""
        values = self.draw(number)
        for tensor, value in zip(self.inputs, values, strict=True):
            tensor.copy_(value)
        return values


@dataclass(frozen=True)
class Participants:
    """The participants of a run: the device, the precisions, the backends, and whether eager is compiled too.

    Args:
        backends: names of backends; eager PyTorch always takes part, as the baseline of every check and comparison.
        autotuned: compile eager a second time with ``max-autotune``, which takes many minutes.
        peers: other runtimes take part in inference on a CPU, see :mod:`.workloads`.
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
    def of(cls, device: torch.device, compiled: bool = True, precisions: Sequence[Precision] = ()) -> Participants:
        """Return participants with every backend that can run here."""
        names = [name for name, entry in available_backends().items() if entry.available and name != EAGER]
        return cls(device, precisions or default_precisions(device), names, compiled)

    @property
    def modes(self) -> list[tuple[str, str | None]]:
        """The name and the mode of each variant that torch compiles; the mode None is torch's default."""
        found: list[tuple[str, str | None]] = [(COMPILED, None)] if self.compiled else []
        return found + ([(f"{COMPILED} {AUTOTUNED}", AUTOTUNED)] if self.autotuned else [])

    def backend(self, name: str) -> Backend:
        return self.extra[name] if name in self.extra else get_backend(name)

    def serving(self, config: MetaTasNetConfig, training: bool) -> Iterable[tuple[str, Backend, Precision]]:
        """Yield eager and every other backend, in every precision that it supports; eager first."""
        for precision in self.precisions:
            request = Request(self.device, precision, training, config)
            for name in (EAGER, *self.backends, *self.extra):
                if self.backend(name).supports(request) is None:
                    yield name, self.backend(name), precision


def default_precisions(device: torch.device) -> list[Precision]:
    if device.type == "cuda":
        return [Precision.float32, Precision.tf32, Precision.bfloat16]
    return [Precision.float32, Precision.bfloat16]


def compiled(function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """Wrap a function in ``torch.compile`` for fixed shapes; raise ``RuntimeError`` if there is no C++ compiler."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise RuntimeError("torch.compile needs a C++ compiler; install g++")
    made: Callable[..., Any] = torch.compile(function, dynamic=False, mode=mode)
    return made
