"""The unit that everything else is made of: songs in, outcomes out, with the model loaded once."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

import torch

from ..errors import BackendUnavailableError, MetaTasNetError
from .batcher import DeviceEngine, song_stream
from .cores import CorePlan
from .destination import Destination
from .events import Listener, Notice, WorkerLoad
from .pipeline import SongPipeline
from .resources import Resources
from .result import Outcome
from .settings import Settings, Song
from .supervised import Order, Ready, Stop

__all__ = ["Worker", "main"]

DEFERRED_SECONDS = 0.1
"""Pause before songs that another run has in hand are tried again."""

LOAD_SECONDS = 1.0
"""Time between two reports of the load, and looks at whether the device is still there."""


class Worker:
    """Separates songs in this process, many at once. A codec that crashes takes the process with it: see ``SupervisedWorker``.

    Use it in a ``with`` statement; ``run`` may be called again and again.

    Args:
        settings: all options.
        destination: a folder or fsspec URI.
        engine: takes the network's place, for tests; it has ``config`` and ``separate(mixes, wanted)``.
        cores: how the cores are shared, for tests; None: as suits the device.
        contents: what is done at the destination, see :class:`Contents`.
        listener: gets ``SongStarted``, ``SongEnded``, ``Notice`` and ``WorkerLoad``, from several threads.
        stop: when set, no further song is begun; those in flight are finished.
        number: of this worker, in its events.

    Raises:
        MetaTasNetError: if the model cannot be loaded or the device or backend cannot serve.
    """

    def __init__(
        self,
        settings: Settings,
        destination: str | Destination,
        engine: DeviceEngine | None = None,
        listener: Listener = lambda event: None,
        stop: threading.Event | None = None,
        number: int = 0,
        cores: CorePlan | None = None,
        contents: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.number = number
        self._listen = listener
        self._stop = stop or threading.Event()
        self._threads_before = torch.get_num_threads()
        target = Destination(destination) if isinstance(destination, str) else destination
        self.resources = Resources(settings, target, engine, lambda text: listener(Notice(text)), cores, contents)
        self._pipeline = SongPipeline(self.resources, self._stop, listener, number)
        self._began = time.perf_counter()

    @property
    def capacity(self) -> int:
        """Return the largest number of songs in flight."""
        return self.resources.cores.songs

    def process(self, songs: Iterable[Song]) -> list[Outcome]:
        """Separate songs as :meth:`run` does, those that another run has in hand last; returns the outcomes in the order of
        their ends."""
        outcomes: list[Outcome] = []
        deferred: list[Song] = []
        self.run(songs, deferred.append, outcomes.append)
        while deferred and not self._stop.wait(DEFERRED_SECONDS):
            songs, deferred = deferred, []
            self.run(songs, deferred.append, outcomes.append)
        return outcomes

    def run(
        self,
        songs: Iterable[Song],
        defer: Callable[[Song], object],
        ended: Callable[[Outcome], object] = lambda outcome: None,
    ) -> None:
        """Separate songs until none is left or the worker is stopped.

        Args:
            songs: read as places become free, from several threads, one at a time.
            defer: takes back a song that another run has in hand; it has no outcome here.
            ended: gets every outcome, from several threads.

        Raises:
            BackendUnavailableError: if the device takes no further work from this process; songs in flight have no outcome.
        """
        source, reading = iter(songs), threading.Lock()
        batcher = self.resources.batcher
        errors: list[BaseException] = []
        leave = threading.Event()

        def work() -> None:
            try:
                self.resources.cores.enter_thread(network=False)
                with song_stream(self.resources.device):
                    while True:
                        with reading:
                            left = leave.is_set() or self._stop.is_set() or batcher.lost is not None
                            song = None if left else next(source, None)
                        if song is None:
                            return
                        outcome = self._pipeline.run(song, defer)
                        if outcome is not None:
                            ended(outcome)
            except BaseException as error:
                errors.append(error)
                leave.set()

        threads = [threading.Thread(target=work, name=f"song-{i}", daemon=True) for i in range(self.capacity)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive() and batcher.lost is None:
                    self._listen(self.load())
                    thread.join(LOAD_SECONDS)
        finally:
            leave.set()
            for thread in threads if batcher.lost is None else ():
                thread.join()
        if batcher.lost is not None:
            raise BackendUnavailableError(f"The device takes no further work ({batcher.lost}): start another process.")
        if errors:
            raise errors[0]
        batcher.clock.settle()
        self._listen(self.load())

    def load(self) -> WorkerLoad:
        """Return the worker's present activity."""
        resources = self.resources
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return WorkerLoad(
            worker=self.number,
            wall_seconds=round(time.perf_counter() - self._began, 3),
            stages={name: getattr(resources, name).load() for name in ("read", "separate", "write")},
            device_busy_seconds=round(resources.batcher.clock.busy_seconds, 3),
            windows_waiting=resources.batcher.windows_waiting,
            windows_done=resources.batcher.windows_done,
            batch_size=resources.batcher.batch_size,
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            peak_memory=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )

    def close(self) -> None:
        """End the device thread and remove what was being written."""
        self.resources.close()
        torch.set_num_threads(self._threads_before)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def main() -> int:
    """Serve as a process of its own below ``SupervisedWorker``; the last argument is the descriptor of the pipe to it.

        in:  Order; then Song again and again; Stop
        out: Ready, or the error that keeps it from working; then events, and songs that another run has in hand

    When the pipe ends without ``Stop``, the parent has ended: so does this process, at once. What it was writing lies in its
    staging folder, which the next run removes.
    """
    faulthandler.enable()
    pipe, sending, stop = Connection(int(sys.argv[-1])), threading.Lock(), threading.Event()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(message: object) -> None:
        try:
            with sending:
                pipe.send(message)
        except OSError:
            os._exit(1)

    def read() -> None:
        try:
            while not isinstance(message := pipe.recv(), Stop):
                inbox.put(message)
        except (EOFError, OSError):
            os._exit(1)
        stop.set()

    def songs() -> Iterator[Song]:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                yield inbox.get(timeout=0.1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which says what to do
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    threading.Thread(target=read, name="inbox", daemon=True).start()  # notices the parent's end from now on
    order: Order = inbox.get()
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
        worker.run(songs(), send)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; to take the interpreter and its libraries down would cost half a second
