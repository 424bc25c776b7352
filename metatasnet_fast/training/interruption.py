"""SIGTERM and Ctrl-C as a request that is answered between two steps."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType

from .._terminal import handling

__all__ = ["Interruption"]


class Interruption(contextlib.ExitStack):
    """Inside its ``with`` statement the first SIGTERM or SIGINT sets :attr:`signal`; a second SIGINT interrupts at once.

    Signals can be handled in the main thread only; elsewhere nothing is installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None

    def __enter__(self) -> Interruption:
        self.enter_context(handling({signal.SIGTERM: self._note, signal.SIGINT: self._note}))
        return self

    def __bool__(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
