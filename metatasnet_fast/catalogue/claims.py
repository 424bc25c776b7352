"""Claims on songs, so that runs at the same time share the work instead of doing it twice.

A claim is a locked file in ``.claims`` of a local destination; the lock ends with its owner, however that ends. Object
stores have none: two runs there may separate a song twice, and the last one's stems stay.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .._io import try_lock
from .failures import SongError
from .outcome import Failure
from .storage import LocalStorage, Storage

__all__ = ["CLAIMS_NAME", "Claims"]

CLAIMS_NAME = ".claims"
POLL_SECONDS = 0.1


class Claims:
    """Claims of one worker; ``stop`` ends the waiting for those of others."""

    def __init__(self, storage: Storage, stop: threading.Event) -> None:
        self._folder = storage.path / CLAIMS_NAME if isinstance(storage, LocalStorage) else None
        self._stop = stop

    @contextlib.contextmanager
    def claim(self, name: str, wait: Callable[[], bool]) -> Iterator[bool]:
        """Keep a name for the block. False if somebody else has it and ``wait``, asked once, says no, or if ``stop`` comes."""
        if self._folder is None:
            yield True
            return
        path = self._folder / name
        handle = self._take(path, wait)
        if handle is None:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)

    def _take(self, path: Path, wait: Callable[[], bool]) -> int | None:
        waiting = False
        while True:
            try:
                path.parent.mkdir(exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise SongError(Failure.write, f"Nothing can be written to {path.parent} ({error}).") from error
            locked = try_lock(handle)
            # None: there are no locks here. The file may have been removed between opening and locking.
            if locked is None or (locked and _is_still(handle, path)):
                return handle
            os.close(handle)
            if not locked:
                waiting = waiting or wait()
                if not waiting or self._stop.wait(POLL_SECONDS):
                    return None


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
