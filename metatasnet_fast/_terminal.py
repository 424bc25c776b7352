"""Print lines and a progress bar (which needs the package tqdm) on a terminal, and handle signals such as Ctrl-C.

Output that cannot be written never stops the work: a closed or full standard output is reported once on standard error.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, TextIO, TypeVar

__all__ = ["Interruption", "ProgressBar", "discard", "escape", "handling", "say"]

CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

LINE_SECONDS = 10.0
"""Seconds between two lines of progress if there is no bar."""

Bar = TypeVar("Bar", bound="ProgressBar")

_reported = False


def escape(text: str) -> str:
    """Escape the control characters of a text, except line breaks: file names must not control a terminal."""
    return CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def say(text: str, stream: TextIO | None) -> None:
    """Print one line at once, without control characters.

    If ``stream`` is None, nothing is printed. If it is closed or full, nothing is raised; the first time, one line on
    standard error tells the reason.
    """
    global _reported
    try:
        print(escape(text), file=stream, flush=True) if stream is not None else None
    except (OSError, ValueError) as error:  # a full disk, a reader that has ended, a closed file
        if stream is not None:
            discard(stream) if isinstance(error, BrokenPipeError) else _drop_buffer(stream)
        if not _reported and stream is not sys.stderr:
            _reported = True
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            say(f"metatasnet-fast: output cannot be written ({reason}); the work goes on.", sys.stderr)


def _drop_buffer(stream: TextIO) -> None:
    """Drop the text that a stream could not write: the interpreter would write it again on exit, and fail."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor, or a closed one
        kept = os.dup(stream.fileno())
        discard(stream)
        stream.flush()
        os.dup2(kept, stream.fileno())
        os.close(kept)


def discard(stream: TextIO) -> None:
    """Redirect a stream whose reader is gone to the null device, since the interpreter flushes the stream on exit."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor, or a closed one
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Set signal handlers for the block. Outside the main thread, where they cannot be set, change nothing."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interruption(contextlib.ExitStack):
    """A record of the first SIGTERM or SIGINT inside a ``with`` statement, in :attr:`signal`.

    A SIGINT after it interrupts at once. Signals can be handled in the main thread only; in other threads this object
    changes nothing.
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


class ProgressBar:
    """Progress on standard error: a bar on a terminal if tqdm is installed, else a line every LINE_SECONDS.

    Args:
        label: stands before the bar and in every line.
        unit: unit of the counts, such as ``s`` or ``step``.
        total: count at the end; None if it is unknown. :meth:`update` may set it later.
        initial: count at the start.
        lines: whether progress is printed as lines if there is no bar; if not, only :meth:`write` prints.
    """

    def __init__(
        self, label: str, unit: str, total: float | None = None, *, initial: float = 0, lines: bool = True
    ) -> None:
        self._label, self._unit, self._total, self._done = label, unit, total, initial
        self._next_line = time.monotonic() + LINE_SECONDS
        self._lines, self._bar = lines, None
        try:
            terminal = sys.stderr is not None and sys.stderr.isatty()
        except ValueError:  # standard error is closed
            terminal = False
        if terminal:
            self._bar = _make_bar(escape(label), unit, total, initial)

    @property
    def is_bar(self) -> bool:
        """Return whether a bar is shown."""
        return self._bar is not None

    def update(self, done: float, note: str = "", total: float | None = None) -> None:
        """Show a count, with a note after it."""
        self._done, self._total = done, total or self._total
        if self._bar is not None:
            self._bar.total = self._total
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._lines and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            of = "" if self._total is None else f" of {self._total:.0f}"
            say(f"{self._label}: {done:.0f}{of} {self._unit}{', ' + note if note else ''}", sys.stderr)

    def write(self, text: str, stream: TextIO | None) -> None:
        """Print a line above the bar."""
        if self._bar is not None and stream is not None:
            self._bar.clear()
            say(text, stream)
            self._bar.refresh()
        else:
            say(text, stream)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self: Bar) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _make_bar(label: str, unit: str, total: float | None, initial: float) -> Any:
    """Return tqdm's bar; None if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    shape = f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n:.0f}} of {{total:.0f}} {unit}{{postfix}} [{{elapsed}}<{{remaining}}]"
    fixed = {} if total is None else {"bar_format": shape}
    return tqdm(
        desc=label, total=total, initial=initial, unit=unit, leave=False, dynamic_ncols=True, file=sys.stderr, **fixed
    )
