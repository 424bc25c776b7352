"""How far a separation has come, on standard error: a bar on a terminal that has tqdm, else now and then a line."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..separation import Progress

__all__ = ["ProgressDisplay"]

LINE_SECONDS = 10.0
"""Time between two lines where there is no bar."""

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s, {rate_fmt} [{elapsed}<{remaining}]"


class ProgressDisplay:
    """Shows one track's progress inside its ``with`` statement; call it with each :class:`Progress`."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar = _bar(label) if sys.stderr.isatty() else None
        self._next_line = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        if progress.seconds_total is None:
            return
        done = progress.fraction * progress.seconds_total
        if self._bar is not None:
            self._bar.total = progress.seconds_total
            self._bar.update(done - self._bar.n)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            percent = f"{100 * progress.fraction:.0f} %"
            print(
                f"{self._label}: {done:.0f} of {progress.seconds_total:.0f} s ({percent})", file=sys.stderr, flush=True
            )


def _bar(label: str) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=1.0, desc=label, unit=" x real time", bar_format=BAR, leave=False, file=sys.stderr)
