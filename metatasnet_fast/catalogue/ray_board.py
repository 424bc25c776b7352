"""The board of a Ray run: workers pin their events on it, the driver takes them off, and says there when to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from .events import Event, Notice, SongStarted, WorkerLoad

__all__ = ["Board", "Pinner"]

LOG = logging.getLogger(__name__)

EXCHANGE_SECONDS = 1.0

MOST_EVENTS = 10_000
"""That wait for the driver; older ones are dropped. They are for display only, outcomes go another way."""


class Board:
    """Becomes a Ray actor that needs no CPU."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._joined = self._left = 0
        self._stopping = False

    def join(self) -> int:
        """A number for a worker, never given twice."""
        self._joined += 1
        return self._joined - 1

    def leave(self) -> None:
        """A worker has pinned its last event."""
        self._left += 1

    def exchange(self, events: list[Event]) -> bool:
        """Pin events; whether to stop."""
        self._events = (self._events + events)[-MOST_EVENTS:]
        return self._stopping

    def take(self) -> tuple[list[Event], int, int]:
        """All events since the last time, how many workers have come so far, and how many have left."""
        events, self._events = self._events, []
        return events, self._joined, self._left

    def stop(self) -> None:
        self._stopping = True


class Pinner:
    """A worker's listener: gathers what is for the driver's display and exchanges it about once a second.

    Args:
        exchange: calls :meth:`Board.exchange` and waits for the answer.
        stop: is set when the driver says so, or is gone.
    """

    def __init__(self, exchange: Callable[[list[Event]], bool], stop: threading.Event) -> None:
        self._exchange = exchange
        self._stop = stop
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        if isinstance(event, (SongStarted, Notice, WorkerLoad)):
            with self._lock:
                self._events.append(event)

    def close(self) -> None:
        """Exchange what is left."""
        self._leave.set()
        self._thread.join()

    def flush(self) -> None:
        """Exchange now: a worker may end without notice when it has returned its last outcomes."""
        with self._lock:
            events, self._events = self._events, []
        try:
            if self._exchange(events):
                self._stop.set()
        except Exception as error:  # whatever Ray raises: the board is gone, and so is the driver
            LOG.info("The board of the run is gone (%s): no further song is begun.", error)
            self._stop.set()

    def _work(self) -> None:
        leaving = False
        while not leaving:
            leaving = self._leave.wait(EXCHANGE_SECONDS)
            self.flush()


def board_exchange(board: Any) -> Callable[[list[Event]], bool]:
    """For a handle of the board's actor."""
    import ray

    def exchange(events: list[Event]) -> bool:
        return bool(ray.get(board.exchange.remote(events), timeout=60))

    return exchange
