"""Memory that the songs in flight share, so that their number times their length cannot exceed it."""

from __future__ import annotations

import threading

from ..separation.spool import Budget

__all__ = ["MemoryPool", "SongBudget"]


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
