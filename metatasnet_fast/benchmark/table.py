"""Rows as text: one table for a terminal, and the same for a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row

__all__ = ["HEADINGS", "cells", "text_table"]

HEADINGS = (
    "case",
    "implementation",
    "median",
    "p20-p80",
    "x real time",
    "x eager",
    "x eager f32",
    "x compile",
    "peak MiB",
    "of mm",
    "of copy",
    "error",
    "allowed",
)

NONE = "-"


def cells(row: Row) -> list[str]:
    """Return one row under :data:`HEADINGS`. A row without times shows its reason in their place."""
    spread = row.spread
    worst = max(row.errors, key=lambda name: row.errors[name] / row.limits.get(name, 1.0), default=None)
    error = f"{row.errors[worst]:.1e}" if worst else NONE
    allowed = f"{row.limits[worst]:.1e}" if worst in row.limits else NONE
    if spread is None:
        return [row.case, row.label, row.reason or "not measured", *[""] * (len(HEADINGS) - 5), error, allowed]
    return [
        row.case,
        row.label,
        duration(spread.median),
        f"{duration(spread.p20)}-{duration(spread.p80)}",
        f"{row.real_time_factor:.3g}" if row.real_time_factor else NONE,
        _times(row, f"reference {row.precision}"),
        _times(row, "reference float32"),
        _times(row, f"torch.compile {row.precision}"),
        f"{row.peak_bytes / 2**20:.0f}" if row.peak_bytes is not None else NONE,
        percent(row.of_compute),
        percent(row.of_memory),
        error,
        allowed,
    ]


def _times(row: Row, baseline: str) -> str:
    if baseline == row.label:
        return "1"
    return f"{row.speedup[baseline]:.2f}" if baseline in row.speedup else NONE


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """Format seconds with three digits, in a unit that fits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def text_table(rows: Sequence[Row]) -> str:
    """Return rows as aligned columns; a reason takes the place of the columns without values."""
    table = [list(HEADINGS), *(cells(row) for row in rows)]
    timed = [line for line, row in zip(table[1:], rows, strict=True) if row.spread is not None]
    widths = [max(len(line[i]) for line in [table[0], *(table[1:] if i < 2 else timed)]) for i in range(len(HEADINGS))]
    lines = []
    for number, line in enumerate(table):
        if number and rows[number - 1].spread is None:
            head = "  ".join(cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False))
            lines.append(f"{head}  {line[2]}")
            continue
        lines.append(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
        )
    return "\n".join(lines)
