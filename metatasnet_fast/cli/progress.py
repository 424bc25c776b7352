"""Progress of a separation or a training on the terminal."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from .._terminal import ProgressBar, say
from ..training.display import Display

if TYPE_CHECKING:
    from ..separation import Progress
    from ..training.display import Summary
    from ..training.validation import ValidationScore

__all__ = ["ProgressDisplay", "TrainingDisplay"]


class ProgressDisplay(ProgressBar):
    """Shows one track's progress inside its ``with`` statement; call it with each :class:`Progress`."""

    def __init__(self, label: str) -> None:
        super().__init__(label, "s")
        self._began = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        total = progress.seconds_total
        if total is None:
            return
        done = progress.fraction * total
        self.update(done, f"{done / max(time.monotonic() - self._began, 1e-3):.1f} x real time", total)


class TrainingDisplay(Display):
    """Prints validations and notes of a training; shows its steps in a bar on a terminal with tqdm, else in lines."""

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def preparing(self, what: str, done: int, total: int, unit: str) -> None:
        if self._bar is None:
            self._bar = ProgressBar(what, unit, total)
        self._bar.update(done)
        if done >= total:
            self._bar.close()
            self._bar = None

    def step(self, step: int, total: int | None, loss: float) -> None:
        if self._bar is None:
            self._bar = ProgressBar("training", "step", total, initial=step - 1, lines=False)
        self._bar.update(step)

    def summary(self, summary: Summary) -> None:
        speed = f"{summary.steps_per_second:.2f} steps/s, {summary.audio_per_second:.1f} audio-s/s"
        if self._bar is not None and self._bar.is_bar:
            self._bar.update(summary.step, f"loss {summary.loss:.1f}, {speed}")
            return
        total = "" if summary.total is None else f" of {summary.total}"
        left = "" if summary.remaining is None else f", {_duration(summary.remaining)} left"
        sdr = _stems(summary.sdr)
        self.note(f"step {summary.step}{total}: loss {summary.loss:.2f}, SI-SDR {sdr}, {speed}{left}")

    def validation(self, step: int, sdr: dict[str, float], score: ValidationScore, seconds: float, best: bool) -> None:
        mark = ", best so far" if best else ""
        self.note(f"validation at step {step}: SDR {_stems(sdr)} ({score.tracks} tracks, {seconds:.0f} s){mark}")

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, sys.stdout)
        else:
            say(text, sys.stdout)


def _stems(values: dict[str, float]) -> str:
    """Scores by name; a dash for a stem that does not count."""
    return ", ".join(f"{name} {'-' if math.isnan(value) else f'{value:.2f}'}" for name, value in values.items()) + " dB"


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes}:{int(seconds) % 60:02d} min"
