"""What a report says about a run: numbers from its end, examples from its ledger, in memory that does not grow with it."""

from __future__ import annotations

import datetime
import heapq
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .events import RunEnded
from .outcome import Failure, Outcome, Status

__all__ = ["LedgerFacts", "Timeline", "bottleneck", "facts"]

EXAMPLES = 10
"""Failed songs of each type, and warnings, that are named."""

STEPS = 120
"""Of the timeline, at most."""

PICTURED_SECONDS = 2.0
"""Shorter songs make no picture worth looking at."""

FORMAT_VERSION = 1


@dataclass
class Timeline:
    """Seconds of audio by the time at which their songs were finished; the steps grow with the run."""

    step: float = 1.0
    """Seconds."""
    sums: dict[int, float] = field(default_factory=dict)
    """By number of the step since the epoch."""

    def add(self, time: float, audio: float) -> None:
        number = int(time // self.step)
        self.sums[number] = self.sums.get(number, 0.0) + audio
        while max(self.sums) - min(self.sums) >= STEPS:
            self.step *= 2
            coarse: dict[int, float] = {}
            for old, value in self.sums.items():
                coarse[old // 2] = coarse.get(old // 2, 0.0) + value
            self.sums = coarse

    def values(self) -> list[float]:
        """Of every step from the first to the last."""
        if not self.sums:
            return []
        return [round(self.sums.get(i, 0.0), 3) for i in range(min(self.sums), max(self.sums) + 1)]


@dataclass
class LedgerFacts:
    """Examples and a timeline from the rows of a run."""

    pictured: int = 3
    failures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    warnings: int = 0
    warning_examples: list[dict[str, Any]] = field(default_factory=list)
    timeline: Timeline = field(default_factory=Timeline)
    _samples: list[tuple[int, str, Outcome]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Iterable[Outcome], pictured: int = 3) -> LedgerFacts:
        result = cls(pictured)
        for row in rows:
            result.add(row)
        return result

    def add(self, row: Outcome) -> None:
        if row.status is Status.failed:
            examples = self.failures.setdefault((row.failure or Failure.unknown).value, [])
            if len(examples) < EXAMPLES:
                examples.append({"id": row.id, "uri": row.uri, "error": row.error, "attempts": row.attempts})
            return
        if row.status is Status.skipped:
            return
        for warning in row.warnings:
            self.warnings += 1
            if len(self.warning_examples) < EXAMPLES:
                self.warning_examples.append({"id": row.id, "uri": row.uri, "warning": warning})
        if row.finished:
            self.timeline.add(_epoch(row.finished), row.duration)
        if row.duration >= PICTURED_SECONDS:
            # The smallest checksums: any song is as likely as another, and the same run has the same samples.
            heapq.heappush(self._samples, (-zlib.crc32(row.id.encode()), row.id, row))
            if len(self._samples) > self.pictured:
                heapq.heappop(self._samples)

    @property
    def samples(self) -> list[Outcome]:
        """Songs to look at."""
        return [row for _, _, row in sorted(self._samples, reverse=True)]


def bottleneck(stage_busy_share: dict[str, float]) -> str | None:
    """The stage that is busiest: the others wait for it. ``separate`` is songs with the device, which is judged itself."""
    shares = {
        name: share for name, share in stage_busy_share.items() if name != "separate" or len(stage_busy_share) == 1
    }
    return max(shares, key=lambda name: shares[name]) if any(shares.values()) else None


def facts(ended: RunEnded, ledger: LedgerFacts, price_per_hour: float | None = None) -> dict[str, Any]:
    """Everything that the report says, ready for JSON."""
    progress = ended.progress
    hours = progress.wall_seconds / 3600
    shares = {**progress.stage_busy_share, "device": progress.device_busy_share}
    return {
        "format_version": FORMAT_VERSION,
        "run": ended.run,
        "complete": ended.complete,
        "songs": {
            "listed": progress.songs,
            "done": progress.done,
            "done_before": progress.skipped,
            "failed": progress.failed,
            "not_tried": ended.remaining,
        },
        "audio_hours": progress.audio_seconds / 3600,
        "wall_seconds": progress.wall_seconds,
        "real_time_factor": progress.real_time_factor,
        "songs_per_hour": progress.done / hours if hours > 0 else 0.0,
        "device_busy_share": progress.device_busy_share,
        "stages": {
            name: {"busy_share": share, "seconds": progress.stage_seconds.get(name, 0.0)}
            for name, share in shares.items()
        },
        "bottleneck": bottleneck(shares),
        "cpu_seconds": progress.cpu_seconds,
        "peak_memory": progress.peak_memory,
        "bytes_in": progress.bytes_in,
        "bytes_out": progress.bytes_out,
        "cost": None
        if ended.cost is None
        else {"price_per_hour": price_per_hour, "total": ended.cost, "per_1000_songs": ended.cost_per_1000_songs},
        "failures": {
            name: {"songs": count, "hint": Failure(name).hint, "examples": ledger.failures.get(name, [])}
            for name, count in sorted(ended.failures.items(), key=lambda item: (-item[1], item[0]))
        },
        "warnings": {"number": ledger.warnings, "examples": ledger.warning_examples},
        "timeline": {"step_seconds": ledger.timeline.step, "audio_seconds": ledger.timeline.values()},
        "samples": [row.id for row in ledger.samples],
    }


def _epoch(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
