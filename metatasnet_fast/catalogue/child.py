"""A worker as a process of its own: ``python -m metatasnet_fast.catalogue.child``, started by ``SupervisedWorker``.

Pickled objects on both pipes.

    in:  Order; then Task again and again; Stop
    out: Refused or Ready; then events and PutOff

When the pipe ends without ``Stop.at_end``, the parent has died: so does this process, at once. What it was writing lies in its
staging folder, which the next run removes.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from ..errors import MetaTasNetError
from .destination import Destination
from .song import Song
from .supervised import Order, PutOff, Ready, Refused, Stop, Task
from .worker import Worker

__all__ = ["main"]

ORPHANED = 75


def main() -> int:
    """Serve until the parent says ``end`` or ``stop``, or dies."""
    faulthandler.enable()
    send = _sender()
    try:
        order: Order = pickle.load(sys.stdin.buffer)
    except EOFError:
        return ORPHANED
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which says what to do
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        worker = Worker(
            order.settings,
            Destination(order.destination, token=order.token),
            listener=send,
            stop=stop,
            number=order.number,
        )
    except (MetaTasNetError, OSError) as error:
        send(Refused(str(error)))
        return 1
    with worker:
        send(Ready(worker.describe(), worker.capacity, worker.identity))
        songs = _Inbox(stop)

        def put_off(song: Song) -> bool:
            if song.id in songs.awaited:
                return False
            send(PutOff(song.id))
            return True

        for outcome in worker.process(songs, put_off):
            songs.awaited.discard(outcome.id)  # it has gone out as an event
    return 0


class _Inbox(Iterator[Song]):
    """Songs as the parent sends them."""

    def __init__(self, stop: threading.Event) -> None:
        self._songs: queue.SimpleQueue[Song | None] = queue.SimpleQueue()
        self.awaited: set[str] = set()
        """Songs that are not to be put off."""
        self._stop = stop
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def __next__(self) -> Song:
        while not self._stop.is_set():
            try:
                song = self._songs.get(timeout=0.1)
            except queue.Empty:
                continue
            if song is None:
                break
            return song
        self._songs.put(None)
        raise StopIteration

    def _read(self) -> None:
        while True:
            try:
                message = pickle.load(sys.stdin.buffer)
            except (EOFError, pickle.UnpicklingError):
                break
            if isinstance(message, Task):
                if message.wait:
                    self.awaited.add(message.song.id)
                self._songs.put(message.song)
            elif message is Stop.now:
                self._stop.set()
            else:
                self._songs.put(None)
                return
        if not self._stop.is_set():
            os._exit(ORPHANED)


def _sender() -> Callable[[object], None]:
    """Writes to the parent; what libraries print goes to standard error instead."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message: object) -> None:
        with lock:
            try:
                pickle.dump(message, pipe)
                pipe.flush()
            except BrokenPipeError:
                os._exit(ORPHANED)

    return send


if __name__ == "__main__":
    sys.exit(main())
