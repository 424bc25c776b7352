"""Write the six result files of a call. Each is replaced as a whole, so a reader always finds a complete file."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FILES", "publish", "read_rows", "problem_of"]

FILES = ("summary.txt", "results.jsonl", "kernels.csv", "junit.xml", "ncu.csv", "logs.tar.gz")
ALLOWED_SKIPS = ("there is no second GPU",)
"""Reasons for which a test may be skipped; any other skip is a failure."""
KERNEL_COLUMNS = (
    "backend", "kind", "kernel", "launches", "milliseconds", "predicted_ms", "over_predicted", "gb_per_s", "tflop_per_s",
)  # fmt: skip
PART = "unfinished.part"


def publish(out: Path, work: Path, summary: str, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Write all files into ``out`` from the steps' records and from what steps have left in ``work`` so far."""
    rows = {name: read_rows(work / f"{name}.jsonl") for name in state}
    records = [{"step": name, **record} for name, record in state.items()]
    results = [*records, *({"row_of": name, **row} for name, found in rows.items() for row in found)]
    makers: dict[str, Callable[[], bytes]] = {
        "summary.txt": summary.encode,
        "results.jsonl": lambda: "".join(json.dumps(line) + "\n" for line in results).encode(),
        "kernels.csv": lambda: _csv(rows.get("kernels", [])),
        "junit.xml": lambda: _junit(work),
        "ncu.csv": lambda: (work / "ncu.csv").read_bytes() if (work / "ncu.csv").exists() else b"",
        "logs.tar.gz": lambda: _logs(work),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        content = makers[name]()
        if not (out / name).exists() or (out / name).read_bytes() != content:
            (out / PART).write_bytes(content)
            (out / PART).replace(out / name)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, without a last line that is still being written."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def problem_of(path: Path) -> str | None:
    """Return what is wrong with a run of pytest according to its report: no test ran, one failed, or one was skipped
    needlessly."""
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return "it left no report"
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [
        skip.get("message", "")
        for case in cases
        if (skip := case.find("skipped")) is not None and not any(r in skip.get("message", "") for r in ALLOWED_SKIPS)
    ]
    if failed:
        return f"{len(failed)} of {len(cases)} tests failed, first {failed[0].get('name')}"
    if skipped:
        return f"{len(skipped)} of {len(cases)} tests were skipped: {skipped[0][:100]}"
    return None if cases else "no test ran"


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, KERNEL_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in rows if "kernel" in row)
    return text.getvalue().encode()


def _junit(work: Path) -> bytes:
    """Return all reports as one, without those that are not complete yet."""
    suites = ElementTree.Element("testsuites")
    for path in sorted(work.glob("*.xml")):
        try:
            suites.extend(ElementTree.parse(path).getroot().iter("testsuite"))
        except ElementTree.ParseError:
            continue
    return ElementTree.tostring(suites)


def _logs(work: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for file in sorted(work.glob("*.log")):
            archive.add(file, file.name)
    return content.getvalue()
