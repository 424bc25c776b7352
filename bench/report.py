"""Write the README's speed table and picture from the newest recorded runs.

    python -m bench.report          (or: make report)

The program reads bench/results/*.jsonl, which ``metatasnet-fast bench`` and the GPU script have written. It writes
docs/images/speed.png and the part of README.md between the markers: the largest case of each job, measured values only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from metatasnet_fast.benchmark import Row, read_rows
from metatasnet_fast.benchmark.results import device as device_of
from metatasnet_fast.benchmark.results import draw, duration
from metatasnet_fast.errors import MetaTasNetError

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
NOTHING = "Nothing has been measured yet."
JOBS = ("inference", "training step", "separation, fast mode")
"""Cases that the README shows, in this order."""
HEADINGS = ("case", "backend", "time", "x real time (mono)", "x eager", "x eager float32", "peak MiB", "error")
"""``x eager``: how many times faster than eager PyTorch in the same run, in the same precision and in float32."""


def newest(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows by device: of each job only the case with the most audio, of each backend only the newest
    measurement.

    Only the CPU and the GPU that were measured last are shown: runs on the others used older code.
    """
    latest: dict[tuple[str, ...], Row] = {}
    for row in sorted(rows, key=lambda row: str(row.machine.get("date"))):
        key = (device_of(row), *row.key)
        latest.pop(key, None)  # so that a newer row moves to the end
        latest[key] = row
    found: dict[str, list[Row]] = {}
    for row in latest.values():
        found.setdefault(device_of(row), []).append(row)
    last = {row.machine.get("device"): device_of(row) for row in latest.values()}  # in the order of their dates
    shown = {device: own for device, own in found.items() if device in last.values()}
    return {device: [row for job in JOBS for row in _largest(own, job)] for device, own in shown.items()}


def _largest(rows: Sequence[Row], job: str) -> list[Row]:
    own = [row for row in rows if row.job == job]
    most = max((row.audio_seconds or 0.0 for row in own), default=0.0)
    return [row for row in own if (row.audio_seconds or 0.0) == most]


def markdown(devices: dict[str, list[Row]]) -> str:
    """Return a table for each device."""
    parts = []
    for device, rows in devices.items():
        if rows:
            head = [f"**{device}**, {_provenance(rows)}", "", f"| {' | '.join(HEADINGS)} |"]
            parts.append("\n".join([*head, "|---" * len(HEADINGS) + "|", *map(_line, rows)]))
    return "\n\n".join(parts) or NOTHING


def _provenance(rows: Sequence[Row]) -> str:
    machines = {
        (str(row.machine.get("date"))[:10], str(row.machine.get("commit"))[:10], bool(row.machine.get("dirty")))
        for row in rows
    }
    return "; ".join(
        f"{date}, commit `{commit}`{' with changes' if dirty else ''}" for date, commit, dirty in sorted(machines)
    )


def _line(row: Row) -> str:
    cells = [row.case, row.label]
    if row.seconds is None:
        return f"| {' | '.join([*cells, str(row.reason), *[''] * (len(HEADINGS) - 3)])} |"
    speedup = {**row.speedup, row.label: 1.0}
    times = [speedup.get(name) for name in (f"reference {row.precision}", "reference float32")]
    cells += [duration(row.seconds), f"{row.real_time_factor:.3g}" if row.real_time_factor else ""]
    cells += ["" if value is None else f"{value:.2f}" for value in times]
    cells += ["" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}", f"{max(row.errors.values()):.1e}"]
    return f"| {' | '.join(cells)} |"


def insert(page: str, text: str) -> str:
    """Return ``page`` with ``text`` between the markers; raise ``ValueError`` if ``page`` has no markers."""
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
        devices = newest(read_rows(args.results) if list(args.results.glob("*.jsonl")) else [])
        text = markdown(devices)
        timed = {name: rows for name, rows in devices.items() if any(row.seconds for row in rows)}
        if timed:
            device = max(timed, key=lambda name: max(str(row.machine.get("date")) for row in timed[name]))
            draw(timed[device], args.picture)
            print(f"wrote {args.picture} for {device}")
            text = f"![Times faster than eager PyTorch, and the roofline]({_link(args.picture, args.readme)})\n\n{text}"
        args.readme.write_text(insert(args.readme.read_text(encoding="utf-8"), text), encoding="utf-8")
    except (MetaTasNetError, ValueError, OSError) as error:
        print(f"report: {args.readme.name} is as it was: {error}", file=sys.stderr)
        return 1
    print(f"wrote the table of {sum(map(len, devices.values()))} rows into {args.readme}")
    return 0


def _link(picture: Path, readme: Path) -> str:
    try:
        return picture.resolve().relative_to(readme.resolve().parent).as_posix()
    except ValueError:
        return picture.as_posix()


if __name__ == "__main__":
    sys.exit(main())
