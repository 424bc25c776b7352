"""The README's speed table and picture, from the newest recorded run of every device.

    python -m bench.report          (or: make report)

Reads bench/results/*.jsonl (files of ``metatasnet-fast bench`` and of the GPU script), writes docs/images/speed.png and what is
between the markers in README.md. What was not measured is called that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metatasnet_fast.benchmark import Row, read_rows
from metatasnet_fast.benchmark.plots import draw
from metatasnet_fast.benchmark.table import duration
from metatasnet_fast.errors import MetaTasNetError

ROOT = Path(__file__).resolve().parents[1]

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
NOT_MEASURED = "not measured"
JOBS = ("inference", "training step", "separation, fast mode", "preparation")
"""What the README shows, in this order."""

HEADINGS = (
    "case",
    "contender",
    "time",
    "x real time (mono)",
    "x eager",
    "x eager float32",
    "x torch.compile",
    "peak MiB",
    "error",
)
"""``x`` a baseline: how many times faster, in the same run, eager and compiled in the same precision."""


def newest(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by device's name: of every contender on every case the one that was measured last."""
    latest: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda row: str(row.machine.get("date"))):
        device = str(row.machine.get("device_name"))
        latest[(device, str(row.machine.get("threads")), *row.key)] = row
    found: dict[str, list[Row]] = {}
    for row in latest.values():
        found.setdefault(_device(row), []).append(row)
    return found


def _device(row: Row) -> str:
    threads = f", {row.machine.get('threads')} threads" if row.machine.get("device") == "cpu" else ""
    return f"{row.machine.get('device_name')}{threads}"


def markdown(devices: dict[str, list[Row]]) -> str:
    """A table for each device, and one that says so if there is none."""
    if not devices:
        return f"| case | time |\n|---|---|\n| inference, training | {NOT_MEASURED} |"
    parts = []
    for device, rows in devices.items():
        lines = [
            f"**{device}**, {_provenance(rows)}",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|" + "---|" * len(HEADINGS),
        ]
        for job in JOBS:
            found = [row for row in rows if row.job == job]
            lines += [_line(row) for row in found] or [f"| {job} | {' | '.join([NOT_MEASURED] * 8)} |"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _provenance(rows: Sequence[Row]) -> str:
    machines = {
        (str(row.machine.get("date"))[:10], str(row.machine.get("commit"))[:10], bool(row.machine.get("dirty")))
        for row in rows
    }
    return "; ".join(
        f"{date}, commit `{commit}`{' with changes' if dirty else ''}" for date, commit, dirty in sorted(machines)
    )


def _line(row: Row) -> str:
    if row.seconds is None:
        return f"| {row.case} | {row.label} | {' | '.join([row.reason or NOT_MEASURED] + [NOT_MEASURED] * 6)} |"
    baselines = (f"reference {row.precision}", "reference float32", f"torch.compile {row.precision}")
    times = ["1" if name == row.label else _number(row.speedup.get(name), ".2f") for name in baselines]
    speed = "-" if row.audio_seconds is None else _number(row.real_time_factor, ".3g")
    peak = None if row.peak_bytes is None else row.peak_bytes / 2**20
    cells = [
        row.case,
        row.label,
        duration(row.seconds),
        speed,
        *times,
        _number(peak, ".0f"),
    ]
    return f"| {' | '.join([*cells, f'{max(row.errors.values()):.1e}'])} |"


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def insert(page: str, text: str) -> str:
    """``page`` with ``text`` between the markers; raises ``ValueError`` where they are not."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no place for the table: put {BEGIN} and {END} there")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "speed.png")
    args = parser.parse_args(arguments)
    try:
        rows = read_rows(args.results) if list(args.results.glob("*.jsonl")) else []
        devices = newest(rows)
        shown = [row for found in devices.values() for row in found if row.job in JOBS]
        text = markdown(devices)
        if any(row.seconds for row in shown):
            device = max(devices, key=lambda name: max(str(row.machine.get("date")) for row in devices[name]))
            draw([row for row in devices[device] if row.job in JOBS], args.picture)
            print(f"wrote {args.picture} for {device}")
            text = f"![Times faster than eager PyTorch, and the roofline]({_link(args.picture, args.readme)})\n\n{text}"
        args.readme.write_text(insert(args.readme.read_text(encoding="utf-8"), text), encoding="utf-8")
    except (MetaTasNetError, ValueError, OSError) as error:
        print(f"report: {args.readme.name} is as it was: {error}", file=sys.stderr)
        return 1
    print(f"wrote the table of {len(shown)} rows into {args.readme}")
    return 0


def _link(picture: Path, readme: Path) -> str:
    try:
        return picture.resolve().relative_to(readme.resolve().parent).as_posix()
    except ValueError:
        return picture.as_posix()


if __name__ == "__main__":
    sys.exit(main())
