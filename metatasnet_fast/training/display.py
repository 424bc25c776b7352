"""Messages of a run to its user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .validation import ValidationScore

__all__ = ["Display", "Summary"]


@dataclass(frozen=True)
class Summary:
    """The mean of the steps since the last line of the log."""

    step: int
    total: int | None
    loss: float
    sdr: dict[str, float]
    """SI-SDR in dB of the last stage's stems on training batches, by instrument; NaN for an instrument that no track
    counts."""
    learning_rate: float
    norm: float
    steps_per_second: float
    audio_per_second: float
    """Seconds of audio per second."""
    remaining: float | None
    """Seconds until the end."""


class Display:
    """Shows nothing of a run; subclasses override the methods whose events they show."""

    def preparing(self, what: str, done: int, total: int, unit: str) -> None:
        """Show that ``done`` of ``total`` units of a job before the first step are done."""

    def step(self, step: int, total: int | None, loss: float) -> None:
        """Show that a step was taken."""

    def summary(self, summary: Summary) -> None:
        """Show that a line of the log was written."""

    def validation(self, step: int, sdr: dict[str, float], score: ValidationScore, seconds: float, best: bool) -> None:
        """Show that the network was validated; ``sdr`` by instrument, in dB."""

    def note(self, text: str) -> None:
        """Show any other message, one sentence."""
