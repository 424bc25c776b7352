"""Progress of a separation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Progress", "ProgressCallback", "Reporter"]


@dataclass(frozen=True)
class Progress:
    """A moment of a separation. ``fraction`` lies in [0, 1], never falls, and ends at 1.0."""

    fraction: float
    seconds_done: float
    """Seconds of audio that ``stage`` has worked through."""
    seconds_total: float | None
    """Seconds of the recording; None while a file of unknown length is being read."""
    stage: str
    """``read``, ``separate`` or ``write``."""


ProgressCallback: TypeAlias = Callable[[Progress], object]

_SPANS = {"read": (0.0, 0.05), "separate": (0.05, 0.9), "write": (0.9, 1.0)}
"""Share of the whole that each stage has in ``fraction``; most of the time goes into the network."""


class Reporter:
    """Calls back with :class:`Progress`, if there is anybody to call."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self.total: float | None = None
        self._callback = callback
        self._fraction = 0.0

    def report(self, stage: str, seconds: float) -> None:
        """``seconds`` of audio are through ``stage``."""
        if self._callback is None:
            return
        first, last = _SPANS[stage]
        part = min(1.0, seconds / self.total) if self.total else 0.0
        self._fraction = max(self._fraction, first + (last - first) * part)
        self._callback(Progress(self._fraction, seconds, self.total, stage))

    def finish(self) -> None:
        """Report the end: the last call, with fraction 1.0."""
        if self._callback is not None and self._fraction < 1.0:
            self._fraction = 1.0
            self._callback(Progress(1.0, self.total or 0.0, self.total, "write"))
