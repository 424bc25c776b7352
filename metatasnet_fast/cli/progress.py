"""Progress of a separation on standard error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .._terminal import ProgressBar

if TYPE_CHECKING:
    from ..separation import Progress

__all__ = ["ProgressDisplay"]


class ProgressDisplay(ProgressBar):
    """Shows one track's progress inside its ``with`` statement; call it with each :class:`Progress`."""

    def __init__(self, label: str) -> None:
        super().__init__(label, "s")
        self._began = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        total = progress.seconds_total
        if total is None:
            return
        done = progress.fraction * total
        self.update(done, f"{done / max(time.monotonic() - self._began, 1e-3):.1f} x real time", total)
