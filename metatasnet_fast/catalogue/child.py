"""A worker as a process of its own: ``python -m metatasnet_fast.catalogue.child``, started by ``SupervisedWorker``.

Pickled objects on both pipes.

    in:  Order; then Song again and again; Stop
    out: Ready, or the error that keeps it from working; then events and Deferred

When the pipe ends without ``Stop``, the parent has ended: so does this process, at once. What it was writing lies in its
staging folder, which the next run removes.
"""

from __future__ import annotations

import contextlib
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
from .events import Notice
from .settings import Song
from .supervised import Deferred, Order, Ready, Stop
from .worker import Worker

__all__ = ["main"]

ORPHANED = 75


def main() -> int:
    """Serve until the parent says ``Stop``, or dies."""
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
        destination = Destination(order.destination, token=order.token)
        worker = Worker(
            order.settings, destination, listener=send, stop=stop, number=order.number, contents=order.contents
        )
    except (MetaTasNetError, OSError) as error:
        send(MetaTasNetError(str(error)))
        return 1
    with worker:
        send(Ready(worker.capacity, worker.resources.identity.key))
        send(Notice(worker.resources.describe()))
        for _ in worker.process(_songs(stop), lambda song: send(Deferred(song.id))):
            pass  # the outcome has gone out as an event
    return 0


def _songs(stop: threading.Event) -> Iterator[Song]:
    """Yield songs as the parent sends them, until it says ``Stop`` or ``stop`` is set."""
    inbox: queue.SimpleQueue[Song] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                message = pickle.load(sys.stdin.buffer)
            except (EOFError, pickle.UnpicklingError):
                if not stop.is_set():
                    os._exit(ORPHANED)
                return
            if isinstance(message, Stop):
                stop.set()
            else:
                inbox.put(message)

    threading.Thread(target=read, name="inbox", daemon=True).start()
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            yield inbox.get(timeout=0.1)


def _sender() -> Callable[[object], None]:
    """Return a function that writes to the parent; what libraries print goes to standard error instead."""
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
    code = main()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; to take the interpreter and its libraries down would cost half a second
