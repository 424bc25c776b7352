"""The live display: a progress bar on a terminal, elsewhere a line now and then, and what a person should know."""

from __future__ import annotations

import sys
from collections import Counter

from .._terminal import ProgressBar
from .events import Event, Notice, Progress, RunEnded, RunStarted, SongEnded, SongsSkipped
from .failures import Failure
from .result import Outcome, Status

__all__ = ["LiveDisplay", "clock_text", "progress_note", "summary_lines"]

SHOWN = 20
"""Failures of each type, and warnings; further ones are only counted."""


class LiveDisplay:
    """Listens to a run and says on standard error how far it is, what failed and, at the end, what came of it."""

    def __init__(self) -> None:
        self._bar = ProgressBar("catalogue", "songs")
        self._said: Counter[str] = Counter()

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            shard = "" if event.shard == "1/1" else f" in shard {event.shard}"
            self._say(f"{event.songs} song{'' if event.songs == 1 else 's'}{shard} to {event.destination}")
        elif isinstance(event, SongsSkipped):
            self._say(f"{event.songs} of them are done, by their names and sizes at the destination")
        elif isinstance(event, Notice):
            self._say(event.text)
        elif isinstance(event, SongEnded):
            self._song(event.outcome)
        elif isinstance(event, Progress):
            self._bar.update(event.done + event.skipped + event.failed, progress_note(event), event.songs)
        elif isinstance(event, RunEnded):
            self._bar.close()
            for line in summary_lines(event):
                self._say(line)

    def _song(self, outcome: Outcome) -> None:
        if outcome.status is Status.failed:
            failure = (outcome.failure or Failure.unknown).value
            self._limited(failure, f"error: {outcome.id}: {outcome.error or failure} [{failure}]")
        elif outcome.status is Status.done:
            for warning in outcome.warnings:
                self._limited("warning", f"warning: {outcome.id}: {warning}")

    def _limited(self, kind: str, text: str) -> None:
        self._said[kind] += 1
        if self._said[kind] <= SHOWN:
            self._say(text)
        elif self._said[kind] == SHOWN + 1:
            self._say(f"more of the kind {kind} are in the ledger and counted in the report")

    def _say(self, text: str) -> None:
        self._bar.write(f"metatasnet-fast: {text}", sys.stderr)


def progress_note(progress: Progress) -> str:
    """Hours of audio, real-time factor, device busy share, queue depths, failures, time left."""
    parts = [
        f"{progress.audio_seconds / 3600:.2f} h of audio",
        f"{progress.real_time_factor:.1f} x real time",
        f"device {progress.device_busy_share:.0%} busy",
        "waiting " + " ".join(f"{name} {depth}" for name, depth in progress.queues.items()),
        f"{progress.failed} failed",
    ]
    if progress.skipped:
        parts.insert(0, f"{progress.skipped} done before")
    if progress.eta_seconds:
        parts.append(f"{clock_text(progress.eta_seconds)} left")
    return " · ".join(parts)


def summary_lines(end: RunEnded) -> list[str]:
    """Return the summary that is shown at the end of a run."""
    progress = end.progress
    lines = [
        f"{progress.done} done, {progress.skipped} done before, {progress.failed} failed"
        + (f", {end.remaining} not tried" if end.remaining else "")
        + f": {progress.audio_seconds / 3600:.2f} h of audio in {clock_text(progress.wall_seconds)}, "
        f"{progress.real_time_factor:.1f} x real time, device {progress.device_busy_share:.0%} busy"
    ]
    if end.cost is not None and end.cost_per_1000_songs is not None:
        lines.append(f"cost {end.cost:.2f}, {end.cost_per_1000_songs:.2f} per 1,000 songs")
    lines += [f"{count} x {name}: {Failure(name).hint}" for name, count in sorted(end.failures.items())]
    if end.reason is not None:
        lines.append(f"The run stopped itself: {end.reason}")
    if not end.complete:
        lines.append("Stopped before the end; the same command goes on with what is missing.")
    return lines


def clock_text(seconds: float) -> str:
    """``1:02:03``, with days where there are some."""
    days, rest = divmod(round(seconds), 86400)
    text = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {text}" if days else text
