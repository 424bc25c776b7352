"""A worker as a process of its own: ``python -m metatasnet_fast.catalogue.child``, started by ``SupervisedWorker``.

JSON lines on both pipes.

    in:  {"settings", "destination", "token", "number"}; then {"song", "wait": bool} again and again; {"stop"} or {"end"}: true
    out: {"refused": sentence} or {"ready": {"description", "capacity", "identity"}}; then {"event": ...}, {"put_off": id}

A song is put off if another run has it in hand and ``wait`` is false: it is given back.

When the pipe ends without ``end``, the parent has died: so does this process, at once. What it was writing lies in its staging
folder, which the next run removes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from ..errors import MetaTasNetError
from .destination import Destination
from .settings import Settings
from .song import Song
from .worker import Worker

__all__ = ["main"]

ORPHANED = 75


def main() -> int:
    """Serve until the parent says ``end`` or ``stop``, or dies."""
    faulthandler.enable()
    send = _sender()
    first = json.loads(sys.stdin.readline() or "null")
    if first is None:
        return ORPHANED
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which says what to do
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        worker = Worker(
            Settings.from_dict(first["settings"]),
            Destination(first["destination"], token=first["token"]),
            listener=lambda event: send({"event": event.to_json()}),
            stop=stop,
            number=first["number"],
        )
    except (MetaTasNetError, OSError) as error:
        send({"refused": str(error)})
        return 1
    with worker:
        send(
            {
                "ready": {
                    "description": worker.describe(),
                    "capacity": worker.capacity,
                    "identity": worker.identity.to_dict(),
                }
            }
        )
        songs = _Inbox(stop)

        def put_off(song: Song) -> bool:
            if song.id in songs.awaited:
                return False
            send({"put_off": song.id})
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
        for line in sys.stdin:
            message = json.loads(line)
            if "song" in message:
                song = Song.from_dict(message["song"])
                if message["wait"]:
                    self.awaited.add(song.id)
                self._songs.put(song)
            elif "stop" in message:
                self._stop.set()
            else:
                self._songs.put(None)
                return
        if not self._stop.is_set():
            os._exit(ORPHANED)


def _sender() -> Callable[[dict[str, Any]], None]:
    """Writes lines to the parent; what libraries print goes to standard error instead."""
    pipe: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            try:
                pipe.write(json.dumps(message) + "\n")
                pipe.flush()
            except BrokenPipeError:
                os._exit(ORPHANED)

    return send


if __name__ == "__main__":
    sys.exit(main())
