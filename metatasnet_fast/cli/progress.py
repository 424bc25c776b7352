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

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix} [{elapsed}<{remaining}]"


class ProgressDisplay:
    """Shows one track's progress inside its ``with`` statement; call it with each :class:`Progress`."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = time.monotonic()
        self._next_line = self._began + LINE_SECONDS
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, progress: Progress) -> None:
        total = progress.seconds_total
        if total is None:
            return
        done = progress.fraction * total
        now = time.monotonic()
        speed = f"{done / max(now - self._began, 1e-3):.1f} x real time"
        if self._terminal and self._bar is None:
            self._bar = _bar(self._label, total)
            self._terminal = self._bar is not None
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            print(f"{self._label}: {done:.0f} of {total:.0f} s, {speed}", file=sys.stderr, flush=True)


def _bar(label: str, total: float) -> Any:
    """A bar in seconds of audio; None without tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(desc=label, total=total, bar_format=BAR, leave=False, file=sys.stderr)
