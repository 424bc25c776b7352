"""Memory that the songs in flight share, so that their number times their length cannot exceed it."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from ..separation.spool import Budget

__all__ = ["MemoryPool", "Room", "SongBudget"]


class MemoryPool:
    """``limit`` bytes, taken and given back by many threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._left = limit
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._left += size

    @property
    def taken(self) -> int:
        return self.limit - self._left


class SongBudget(Budget):
    """One song's part of a pool; ``close`` gives back what the song, however it ended, did not."""

    def __init__(self, pool: MemoryPool) -> None:
        super().__init__(None)
        self._pool = pool
        self._taken = 0

    def take(self, size: int) -> bool:
        if not self._pool.take(size):
            return False
        self._taken += size
        return True

    def give_back(self, size: int) -> None:
        self._taken -= size
        self._pool.give_back(size)

    def close(self) -> None:
        self.give_back(self._taken)


class Room:
    """Memory that a song needs all at once while it is separated: it waits until that fits, or until no other has any.

    In the order of asking, so that a large song is not passed for ever.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def enter(self, size: int) -> Iterator[None]:
        """Have ``size`` bytes for the block."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._fits(size))
            self._waiting.popleft()
            self._taken += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self.limit
