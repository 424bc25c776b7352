"""Show and compare results: rows, each with the result of an implementation on a case; their file, table and picture.

The picture shows how many times faster than eager PyTorch each implementation is, and how far below the roof.

Two runs are compared by their times relative to eager PyTorch in the same rounds: a slower machine or a lower clock
does not change this ratio. Eager's own times are compared in seconds, if both runs used the same machine and number of
threads. Slower seconds count as a regression only on request, because spreads do not show other load that was present
in one run only.

The noise of a run is the distance between the 20th and 80th percentile of its samples, divided by their median, times
``1 + 4 / n`` for n samples, times the load per core if that is above 1. A change is reported only if it exceeds 5 % and
the root of the sum of the squares of both runs' noise. Two runs of the same code are then called different less than
once in a hundred times (tested with synthetic samples, outliers included).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._extras import require
from .._io import to_json, write_atomically
from ..errors import ConfigError
from .cases import COMPILED, EAGER
from .machine import Spread
from .workloads import PEERS

__all__ = [
    "LEAST", "Change", "Row", "compare", "comparison_table", "device", "draw", "duration", "noise_band", "read_rows",
    "text_table", "title", "write_rows",
]  # fmt: skip

FORMAT = 1

LEAST = 0.05
"""A change up to this is never reported, as quiet runs have almost no noise."""

MEMORY = 0.10
MEMORY_BYTES = 16 << 20
"""A growth of the peak memory is reported if it is above both limits: MEMORY, a share of the first run's peak, and
MEMORY_BYTES."""


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
    """For each round, the time divided by the time of eager PyTorch in the same precision and round."""
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
    """Write rows as JSON lines. The file is replaced as a whole, so that killed programs lose no row written before."""
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
    """The comparison of one implementation on one case in two runs."""

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
    """Return the cells of a row under :data:`HEADINGS`. A row without times shows its reason instead of times."""
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
