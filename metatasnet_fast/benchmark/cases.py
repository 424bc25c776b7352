"""A case of a measurement: one job, one set of inputs, and every implementation of the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from ..precision import Precision
from .costs import Work
from .parity import Outputs

__all__ = ["EAGER", "Call", "Case", "Contender"]

EAGER = "reference"
"""The contender that all others are compared with: the backend of plain PyTorch."""

Call: TypeAlias = Callable[[], Outputs]


@dataclass(frozen=True)
class Contender:
    """One way to do a case's job.

    ``make`` builds it and returns the call that is timed. The call reads the case's ``inputs``, whose contents change from
    round to round, and returns its outputs, complete once the device is synchronised.
    """

    name: str
    precision: Precision
    make: Callable[[], Call]

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision.value}"


@dataclass
class Case:
    """A job with its inputs, its oracle and its contenders.

    Args:
        name: identifies the case in records, with the sizes: ``inference 1x16s``.
        job: what is done, in the words of the documentation.
        sizes: shapes and lengths, for the record.
        audio_seconds: seconds of mono audio that one call works through, for the real-time factor; None where there is none.
        inputs: tensors on the device that every call reads.
        draw: fresh values for ``inputs`` by round; no two rounds get the same.
        expected: the outputs in float64 for values as ``draw`` gives them.
        work: arithmetic and bytes by precision.
        contenders: eager of every precision among them.
        whole_process: every call is a process of its own, so the host's clock times it and its memory is not ours.
    """

    name: str
    job: str
    sizes: dict[str, Any]
    audio_seconds: float | None
    inputs: Sequence[Tensor]
    draw: Callable[[int], Sequence[Tensor]]
    expected: Callable[[Sequence[Tensor]], Outputs]
    work: Callable[[Precision], Work]
    contenders: Sequence[Contender]
    whole_process: bool = False

    def fill(self, number: int) -> Sequence[Tensor]:
        """Write the values of a round into ``inputs``; returns them as drawn."""
        values = self.draw(number)
        for tensor, value in zip(self.inputs, values, strict=True):
            tensor.copy_(value)
        return values
