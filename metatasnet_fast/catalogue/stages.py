"""Places in the stages of a worker: how many songs may be in each at once, how many wait, and how long they were in."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from .busy import profiled
from .events import StageLoad

__all__ = ["Place", "Stage"]


class Stage:
    """``capacity`` places; whoever finds none waits, which holds the song back and all that would come after it."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self._places = threading.Semaphore(capacity)
        self._lock = threading.Lock()
        self._waiting = 0
        self._inside: dict[int, float] = {}
        self._seconds = 0.0

    def load(self) -> StageLoad:
        now = time.perf_counter()
        with self._lock:
            seconds = self._seconds + sum(now - began for began in self._inside.values())
            return StageLoad(self.capacity, len(self._inside), self._waiting, round(seconds, 3))

    @contextlib.contextmanager
    def enter(self) -> Iterator[Place]:
        """Wait for a place and keep it for the block, or until :meth:`Place.leave`."""
        with self._lock:
            self._waiting += 1
        try:
            self._places.acquire()
        finally:
            with self._lock:
                self._waiting -= 1
        place = Place(self)
        try:
            yield place
        finally:
            place.leave()

    def _begin(self, place: Place) -> None:
        with self._lock:
            self._inside[id(place)] = time.perf_counter()

    def _end(self, place: Place) -> float:
        with self._lock:
            seconds = time.perf_counter() - self._inside.pop(id(place))
            self._seconds += seconds
        self._places.release()
        return seconds


class Place:
    """A place that is held; ``seconds`` is how long it was, once it has been left."""

    def __init__(self, stage: Stage) -> None:
        self.seconds = 0.0
        self._stage = stage
        self._held = True
        self._range = contextlib.ExitStack()
        self._range.enter_context(profiled(stage.name))
        stage._begin(self)

    def leave(self) -> None:
        """Give the place to the next, in the thread that entered; a second call does nothing."""
        if self._held:
            self._held = False
            self._range.close()
            self.seconds = self._stage._end(self)
