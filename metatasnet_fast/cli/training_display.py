"""A training run on the terminal: a bar where there is one, and a line for every line of the log where there is none."""

from __future__ import annotations

import contextlib
import math
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..config import INSTRUMENTS

if TYPE_CHECKING:
    from ..training.display import Summary
    from ..training.validation import ValidationScore

__all__ = ["TrainingDisplay"]


class TrainingDisplay:
    """Prints validations and notes; shows steps in a bar, on a terminal with tqdm. Output that nobody takes ends no run."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._wants_bar = sys.stderr.isatty()
        self._unheard = False

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, step: int, total: int | None, loss: float) -> None:
        if self._wants_bar and self._bar is None:
            self._bar = _bar(step - 1, total)
            self._wants_bar = self._bar is not None
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def summary(self, summary: Summary) -> None:
        speed = f"{summary.steps_per_second:.2f} steps/s, {summary.audio_per_second:.1f} audio-s/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {summary.loss:.1f}, {speed}")
            return
        total = "" if summary.total is None else f" of {summary.total}"
        left = "" if summary.remaining is None else f", {_duration(summary.remaining)} left"
        sdr = _stems(summary.sdr)
        self.note(f"step {summary.step}{total}: loss {summary.loss:.2f}, SI-SDR {sdr}, {speed}{left}")

    def validation(self, step: int, score: ValidationScore, seconds: float, best: bool) -> None:
        mark = ", best so far" if best else ""
        self.note(f"validation at step {step}: SDR {_stems(score.sdr)} ({score.tracks} tracks, {seconds:.0f} s){mark}")

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            return
        try:
            print(text, flush=True)
        except OSError as error:  # a full disk under the file it goes to, or a reader that left
            if not self._unheard:
                self._unheard = True
                reason = error.strerror or error
                with contextlib.suppress(OSError):
                    print(
                        f"standard output cannot be written ({reason}); training goes on", file=sys.stderr, flush=True
                    )


def _stems(values: list[float]) -> str:
    """Scores by name; a dash for a stem that does not count."""
    shown = ("-" if math.isnan(value) else f"{value:.2f}" for value in values)
    return ", ".join(f"{name} {value}" for name, value in zip(INSTRUMENTS, shown, strict=True)) + " dB"


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes}:{int(seconds) % 60:02d} min"


def _bar(done: int, total: int | None) -> Any:
    """A bar in steps; None without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(initial=done, total=total, unit="step", dynamic_ncols=True, file=sys.stderr)
