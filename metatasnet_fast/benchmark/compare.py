"""Comparison of two runs: which cases are slower in the second beyond the noise of both.

Times are compared relative to eager PyTorch in the same rounds of the same run: a slower machine or a lower clock does not
change this ratio. Eager's own times are compared in seconds, if both runs used the same machine and number of threads. They
count only on request, because the spreads do not show other load that was present in one run only.

The noise of a run is the width from its 20th to its 80th percentile, widened by ``1 + 4 / n`` for the few samples that it is
known from, and by the load per core if others kept the machine busy; a change must exceed the root of both squares, and
5 %. Two runs of the same code are then called different less than once in a hundred times (tested with synthetic samples,
outliers included).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .cases import EAGER
from .rows import Row
from .timing import Spread

__all__ = ["LEAST", "Change", "compare", "comparison_table", "noise_band"]

LEAST = 0.05
"""A change up to this is never reported, as quiet runs have almost no noise."""

MEMORY = 0.10
"""Growth of the peak memory that is reported, if it is also at least this much:"""
MEMORY_BYTES = 16 << 20


@dataclass(frozen=True)
class Change:
    """One implementation on one case in both runs."""

    key: tuple[str, str, str]
    what: str
    """``time over eager``, ``seconds``, or why nothing was compared."""
    ratio: float | None
    """Second over first: above 1 is slower."""
    band: float | None
    """Relative change that noise explains."""
    problem: str | None
    """A regression, in words; None if there is none."""


def noise_band(first: Spread, second: Spread, crowding: float = 1.0) -> float:
    """Return the relative change that the recorded spreads explain; ``crowding`` is the load per core, 1 on a quiet
    machine."""
    return max(LEAST, crowding * math.hypot(*(spread.noise * (1 + 4 / spread.count) for spread in (first, second))))


def _crowding(*rows: Row) -> float:
    """Load average per core, the largest that was recorded, at least 1."""
    loads = [
        clocks["load"] / row.machine["cores"]
        for row in rows
        for clocks in (row.clocks_before, row.clocks_after)
        if clocks.get("load") and row.machine.get("cores")
    ]
    return max(1.0, *loads) if loads else 1.0


def compare(first: Sequence[Row], second: Sequence[Row], count_seconds: bool = False) -> list[Change]:
    """Return every row of the first run with its counterpart; rows of the second run alone are no regressions.

    ``count_seconds``: eager PyTorch's own seconds count too; for machines that do nothing else.
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
