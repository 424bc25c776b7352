"""Show rows as a table, for a terminal or a Markdown page, and as a picture: how many times faster than eager PyTorch,
and how far below the roof.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._extras import require
from .rows import Row

__all__ = ["device", "draw", "duration", "text_table", "title"]

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


_COLOURS = ("#8c8c8c", "#c9a227", "#1f77b4", "#d1495b", "#2a9d8f", "#6a4c93")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw bars of the speed relative to eager in float32 on the left, and the roofline on the right, from all rows
    with times.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    matplotlib, Figure = require("matplotlib", "A plot"), require("matplotlib.figure", "A plot").Figure
    timed = [row for row in rows if row.seconds is not None]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, max(3.6, 0.9 + 0.22 * len(timed))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        labels = list(dict.fromkeys(row.label for row in timed))
        colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(labels)}
        _bars(left, timed, colours)
        _roofline(right, timed, colours)
        figure.suptitle(title(rows))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def title(rows: Sequence[Row]) -> str:
    """Return the name of the rows' device, with the date and commit of each run."""
    runs = {f"{str(row.machine.get('date', ''))[:10]} {_commit(row)}" for row in rows}
    return f"{device(rows[0]) if rows else 'unknown device'}; {', '.join(sorted(runs))}"


def device(row: Row) -> str:
    """Return the name of a row's device, with the number of threads of a CPU."""
    threads = f", {row.machine.get('threads')} threads" if row.machine.get("device") == "cpu" else ""
    return f"{row.machine.get('device_name', 'unknown device')}{threads}"


def _commit(row: Row) -> str:
    return (row.machine.get("commit") or "no commit")[:10] + (" (modified)" if row.machine.get("dirty") else "")


def _bars(axes: Any, rows: Sequence[Row], colours: dict[str, str]) -> None:
    names = list(dict.fromkeys(row.case for row in rows))
    position, ticks = 0.0, []
    for name in names:
        group = [row for row in rows if row.case == name]
        ticks.append((position + (len(group) - 1) / 2, name))
        for row in group:
            times = 1.0 if row.label == "reference float32" else row.speedup.get("reference float32")
            if times is not None:
                axes.barh(position, times, color=colours[row.label], height=0.85)
                axes.annotate(
                    f"{times:.2f}", (times, position), (3, 0), textcoords="offset points", va="center", fontsize=7
                )
            position += 1
        position += 0.8
    for label, colour in colours.items():
        axes.barh(0, 0, color=colour, label=label)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    axes.invert_yaxis()
    axes.set_xlabel("times faster than eager PyTorch in float32, same run (ratio of medians)")
    axes.legend(fontsize=7, frameon=False)


def _roofline(axes: Any, rows: Sequence[Row], colours: dict[str, str]) -> None:
    placed = [row for row in rows if row.flops and row.bytes and row.seconds]
    if not placed:
        axes.set_axis_off()
        return
    intensity = [row.flops / row.bytes for row in placed if row.flops and row.bytes]
    low, high = min(intensity) / 4, max(intensity) * 4
    peaks = placed[0].peaks
    copy = peaks["copy_bytes_per_s"]
    for number, (precision, rate) in enumerate(peaks["mm_flop_per_s"].items()):
        ridge = rate / copy
        points = sorted({low, min(max(ridge, low), high), high})
        style = ("-", "--", ":")[number % 3]
        axes.plot(
            points, [min(x * copy, rate) for x in points], color="black", linestyle=style, linewidth=1, label=precision
        )
    for row, x in zip(placed, intensity, strict=True):
        assert row.flops and row.seconds
        axes.plot(x, row.flops / row.seconds, "o", color=colours[row.label], markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte (model)")
    axes.set_ylabel("FLOP/s")
    axes.set_title("roof: copy and torch.mm in the same run", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
