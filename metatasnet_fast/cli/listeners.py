"""What becomes of output that nobody takes: the reader of a pipe has left, or the disk under a redirected file is full."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

__all__ = ["going_on_unheard", "silence"]

T = TypeVar("T")


def going_on_unheard(tell: Callable[[T], object], stream: TextIO) -> Callable[[T], None]:
    """``tell``, which writes to ``stream``, without its errors: the first is said on standard error, and the run goes on."""
    unheard = False

    def tell_if_possible(what: T) -> None:
        nonlocal unheard
        try:
            tell(what)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                silence(stream)
            if not unheard:
                unheard = True
                reason = error.strerror or error
                with contextlib.suppress(OSError):
                    print(f"metatasnet-fast: output cannot be written ({reason}); the run goes on.", file=sys.stderr)

    return tell_if_possible


def silence(stream: TextIO) -> None:
    """Drop what is written to a stream whose reader has left; the interpreter, too, writes what is left at its end."""
    with contextlib.suppress(OSError):  # not a file of the system
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
