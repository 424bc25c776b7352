"""Rows of a record, each an implementation's result on a case, and the comparison of two records.

Times are compared relative to eager PyTorch in the same rounds of the same run: a slower machine or a lower clock does not
change this ratio. Eager's own times are compared in seconds, if both runs used the same machine and number of threads.
Seconds count as a regression only on request, because the spreads do not show other load that was present in one run
only.

The noise of a run is the width from its 20th to its 80th percentile, relative to the median, times ``1 + 4 / n`` for n
samples, times the load per core if that is above 1. A change is reported only if it exceeds the root of the sum of both
squares, and 5 %. Two runs of the same code are then called different less than once in a hundred times (tested with
synthetic samples, outliers included).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._io import to_json, write_atomically
from ..errors import ConfigError
from .cases import COMPILED, EAGER
from .machine import Spread
from .workloads import PEERS

__all__ = ["LEAST", "Change", "Row", "compare", "comparison_table", "noise_band", "read_rows", "write_rows"]

FORMAT = 1

LEAST = 0.05
"""A change up to this is never reported, as quiet runs have almost no noise."""

MEMORY = 0.10
"""Growth of the peak memory that is reported, if it is also at least this much:"""
MEMORY_BYTES = 16 << 20


@dataclass
class Row:
    """An implementation's result on a case; times in seconds. If there is a ``reason``, ``samples`` is empty."""

    case: str
    job: str
    implementation: str
    precision: str
    sizes: dict[str, Any] = field(default_factory=dict)
    audio_seconds: float | None = None
    reason: str | None = None
    """Why there are no times: a failed parity check, or an implementation that cannot be built or run."""
    samples: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)
    """Time divided by that of eager PyTorch in the same precision and round."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative L2 error of every output against float64."""
    limits: dict[str, float] = field(default_factory=dict)
    make_seconds: float | None = None
    first_call_seconds: float | None = None
    """Seconds of the first call, which includes compilation and preparation."""
    peak_bytes: int | None = None
    peak_method: str | None = None
    flops: float | None = None
    bytes: float | None = None
    of_compute: float | None = None
    of_memory: float | None = None
    speedup: dict[str, float] = field(default_factory=dict)
    """Ratios of medians: how many times faster than each baseline, ``name precision``, in the same run."""
    timing: str = ""
    peaks: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    clocks_before: dict[str, Any] = field(default_factory=dict)
    clocks_after: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.implementation} {self.precision}"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case, self.implementation, self.precision

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.samples) if self.samples and self.reason is None else None

    @property
    def seconds(self) -> float | None:
        """Median time in seconds; None if there is no valid time."""
        return self.spread.median if self.spread else None

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of mono audio processed per second; None if there is no audio or no valid time."""
        return self.audio_seconds / self.seconds if self.audio_seconds and self.seconds else None

    @property
    def wrong(self) -> bool:
        """Return whether our own results failed. Failures of a compiler or another runtime appear in the table only."""
        foreign = self.implementation.startswith((COMPILED, *PEERS))
        return bool(self.reason) and not foreign and "parity failed" in str(self.reason)

    def refuse(self, reason: str) -> None:
        """Remove every time, and record the reason."""
        self.reason = reason
        self.samples, self.relative, self.speedup = [], [], {}
        self.of_compute = self.of_memory = self.first_call_seconds = None

    def to_json(self) -> str:
        spread = self.spread
        summary = dataclasses.asdict(spread) if spread else None
        return to_json({"format": FORMAT, **dataclasses.asdict(self), "seconds": summary})


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Replace the file as a whole, so that the rows written before survive if the program is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(row.to_json() + "\n" for row in rows).encode())


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, or of all ``*.jsonl`` files of a folder in the order of their names.

    Raises:
        ConfigError: if there is no file to read, or a line is not a row.
    """
    files: Sequence[Path] = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(
            f"{path} holds no recorded run: name a .jsonl file of `metatasnet-fast bench`, or its folder."
        )
    names = {f.name for f in dataclasses.fields(Row)}
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = json.loads(line)
                if values["format"] != FORMAT:
                    raise ValueError(f"format {values['format']}")
                row = Row(**{name: value for name, value in values.items() if name in names})
                row.errors = {name: math.inf if error is None else error for name, error in row.errors.items()}
                rows.append(row)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{file}, line {number}, is no record of a benchmark: {error!r}.") from error
    return rows


@dataclass(frozen=True)
class Change:
    """One implementation on one case in both runs."""

    key: tuple[str, str, str]
    what: str
    """The quantity that was compared, ``time over eager`` or ``seconds``; or the reason why no times were compared."""
    ratio: float | None
    """Time of the second run over that of the first; above 1 the second is slower."""
    band: float | None
    """Relative change that noise explains."""
    problem: str | None
    """A sentence about the regression; None if the row has no regression."""


def noise_band(first: Spread, second: Spread, crowding: float = 1.0) -> float:
    """Return the relative change that the recorded spreads explain; ``crowding`` is the load per core, 1 on a quiet
    machine."""
    return max(LEAST, crowding * math.hypot(*(spread.noise * (1 + 4 / spread.count) for spread in (first, second))))


def _crowding(*rows: Row) -> float:
    """Return the largest recorded load average per core, at least 1."""
    loads = [
        clocks["load"] / row.machine["cores"]
        for row in rows
        for clocks in (row.clocks_before, row.clocks_after)
        if clocks.get("load") and row.machine.get("cores")
    ]
    return max(1.0, *loads) if loads else 1.0


def compare(first: Sequence[Row], second: Sequence[Row], count_seconds: bool = False) -> list[Change]:
    """Compare every row of the first run with the same row of the second; ignore rows that only the second has.

    ``count_seconds``: report slower seconds too, not only slower ratios to eager; for machines that run nothing else.
    """
    others = {row.key: row for row in second}
    return [_change(row, others.get(row.key), count_seconds) for row in first]


def _change(a: Row, b: Row | None, count_seconds: bool) -> Change:
    if b is None:
        return Change(a.key, "not in the second run", None, None, None)
    if a.spread is None:
        return Change(a.key, "no times in the first run", None, None, None)
    if b.spread is None:
        return Change(a.key, "no times in the second run", None, None, b.reason or "no times")
    grown = _memory(a, b)
    relative = bool(a.relative and b.relative) and a.implementation != EAGER
    if relative:
        what, x, y = "time over eager", Spread.of(a.relative), Spread.of(b.relative)
    elif _machine(a) == _machine(b):
        what, x, y = "seconds", a.spread, b.spread
    else:
        return Change(a.key, "measured on different machines", None, None, grown)
    ratio, band = y.median / x.median, noise_band(x, y, _crowding(a, b))
    slower = (
        f"{100 * (ratio - 1):.0f} % slower, noise explains {100 * band:.0f} %"
        if ratio > 1 + band and (relative or count_seconds)
        else None
    )
    return Change(a.key, what, ratio, band, "; ".join(filter(None, [slower, grown])) or None)


def _memory(a: Row, b: Row) -> str | None:
    if a.peak_bytes is None or b.peak_bytes is None or a.peak_method != b.peak_method:
        return None
    if b.peak_bytes - a.peak_bytes <= max(MEMORY_BYTES, MEMORY * a.peak_bytes):
        return None
    return f"peak memory grew from {a.peak_bytes / 2**20:.0f} to {b.peak_bytes / 2**20:.0f} MiB"


def _machine(row: Row) -> tuple[object, ...]:
    return tuple(row.machine.get(name) for name in ("device_name", "cpu", "cores", "threads"))


def comparison_table(changes: Sequence[Change]) -> str:
    """Return one line per row with the regressions marked, and a verdict."""
    lines = []
    for change in changes:
        case, implementation, precision = change.key
        name = f"{case}, {implementation} {precision}"
        if change.ratio is None or change.band is None:
            lines.append(f"  {name:<58} {change.what}" + (f": REGRESSION: {change.problem}" if change.problem else ""))
            continue
        verdict = f"REGRESSION: {change.problem}" if change.problem else _within(change.ratio, change.band)
        lines.append(f"  {name:<58} {change.ratio:6.3f} x {change.what} (noise {100 * change.band:.0f} %)  {verdict}")
    count = sum(change.problem is not None for change in changes)
    lines.append(f"{count} regression{'' if count == 1 else 's'} in {len(changes)} measurements")
    return "\n".join(lines)


def _within(ratio: float, band: float) -> str:
    return "faster" if ratio < 1 / (1 + band) else "same" if ratio <= 1 + band else "slower, not counted"
