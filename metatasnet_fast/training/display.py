"""What a run tells its user, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .validation import ValidationScore

__all__ = ["Display", "Silence", "Summary"]


@dataclass(frozen=True)
class Summary:
    """The mean of the steps since the last line of the log."""

    step: int
    total: int | None
    loss: float
    sdr: dict[str, float]
    """SI-SDR of the last stage's stems on training batches, dB, by instrument; NaN for one that no track counts."""
    learning_rate: float
    norm: float
    steps_per_second: float
    audio_per_second: float
    """Seconds of audio per second."""
    remaining: float | None
    """Seconds until the end."""


class Display(Protocol):
    """What shows a run to its user."""

    def step(self, step: int, total: int | None, loss: float) -> None: ...

    def summary(self, summary: Summary) -> None: ...

    def validation(
        self, step: int, sdr: dict[str, float], score: ValidationScore, seconds: float, best: bool
    ) -> None: ...

    def note(self, text: str) -> None: ...


class Silence:
    """Shows nothing."""

    def step(self, step: int, total: int | None, loss: float) -> None:
        pass

    def summary(self, summary: Summary) -> None:
        pass

    def validation(self, step: int, sdr: dict[str, float], score: ValidationScore, seconds: float, best: bool) -> None:
        pass

    def note(self, text: str) -> None:
        pass
