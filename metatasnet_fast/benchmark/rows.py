"""One line of a record: an implementation's result on a case, and what it was measured on."""

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
from .cases import COMPILED
from .timing import Spread
from .workloads import PEERS

__all__ = ["Row", "read_rows", "write_rows"]

FORMAT = 1


@dataclass
class Row:
    """Times are seconds. ``samples`` is empty, and no speed can be had, unless the outputs passed (``reason`` is None)."""

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
        """Median time; None if there is no valid time."""
        return self.spread.median if self.spread else None

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of mono audio that one second processes."""
        return self.audio_seconds / self.seconds if self.audio_seconds and self.seconds else None

    @property
    def wrong(self) -> bool:
        """Return whether our own results failed. Failures of a compiler or another runtime appear in the table only."""
        foreign = self.implementation.startswith((COMPILED, *PEERS))
        return bool(self.reason) and not foreign and "parity failed" in str(self.reason)

    def refuse(self, reason: str) -> None:
        """Remove every time, and record why."""
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
        ConfigError: if there is nothing to read, or a line is not such a record.
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
