"""The unit that everything else is made of: songs in, outcomes out, with the model loaded once."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import torch

from ..errors import BackendUnavailableError, MetaTasNetError, OutputError
from .batcher import DeviceEngine, song_stream
from .cores import CorePlan
from .destination import Destination
from .events import Listener, Notice, WorkerLoad
from .pipeline import SongPipeline
from .resources import Resources
from .result import Outcome
from .settings import Settings, Song
from .staging import Contents, Staging
from .supervised import Order, Ready, Stop

__all__ = ["Worker", "main"]

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
        try:
            self._staging = Staging(target.storage)
        except OSError as error:
            raise OutputError(
                f"Nothing can be written to {target.uri} ({error.strerror or error}): "
                "choose another destination, or change its permissions."
            ) from error
        try:
            self.resources = Resources(settings, engine, lambda text: listener(Notice(text)), cores)
        except BaseException:
            self._staging.close()
            raise
        self._pipeline = SongPipeline(
            self.resources, target, self._staging, Contents(contents), self._stop, listener, number
        )
        self._began = time.perf_counter()

    @property
    def capacity(self) -> int:
        """Return the largest number of songs in flight."""
        return self.resources.cores.songs

    def process(self, songs: Iterable[Song]) -> list[Outcome]:
        """Separate songs as :meth:`run` does; returns each one's outcome, in the order of their ends."""
        outcomes: list[Outcome] = []
        self.run(songs, ended=outcomes.append)
        return outcomes

    def run(
        self,
        songs: Iterable[Song],
        defer: Callable[[Song], object] | None = None,
        ended: Callable[[Outcome], object] = lambda outcome: None,
    ) -> None:
        """Separate songs until none is left or the worker is stopped.

        Args:
            songs: read as places become free, from several threads, one at a time.
            defer: takes back a song that another run has in hand; it has no outcome here. None: the song waits in its place
                until the other run has ended it.
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
                self.resources.cores.enter_song_thread()
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
        times = os.times()
        return WorkerLoad(
            worker=self.number,
            wall_seconds=round(time.perf_counter() - self._began, 3),
            stages={stage.name: stage.load() for stage in (resources.read, resources.separate, resources.write)},
            device_busy_seconds=round(resources.batcher.clock.busy_seconds, 3),
            windows_waiting=resources.batcher.windows_waiting,
            windows_done=resources.batcher.windows_done,
            batch_size=resources.batcher.batch_size,
            cpu_seconds=round(times.user + times.system, 3),
            peak_memory=_peak_memory(),
        )

    def close(self) -> None:
        """End the device thread and remove what was being written."""
        self.resources.batcher.close()
        self._staging.close()
        torch.set_num_threads(self._threads_before)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _peak_memory() -> int:
    """Return the bytes that this process had in memory at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


ORPHANED = 75
"""Exit code of a process whose parent has ended."""


def main() -> int:
    """Serve as a process of its own below ``SupervisedWorker``: ``python -m metatasnet_fast.catalogue.worker``.

    Pickled objects on both pipes.

        in:  Order; then Song again and again; Stop
        out: Ready, or the error that keeps it from working; then events, and songs that another run has in hand

    When the pipe ends without ``Stop``, the parent has ended: so does this process, at once. What it was writing lies in its
    staging folder, which the next run removes.
    """
    faulthandler.enable()
    send = _sender()
    try:
        order: Order = pickle.load(sys.stdin.buffer)
    except EOFError:
        return ORPHANED
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which says what to do
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    songs = _inbox(stop)  # now, so that the parent's end is noticed while the model is loaded
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
        worker.run(songs, send)
    return 0


def _inbox(stop: threading.Event) -> Iterator[Song]:
    """Return the songs as the parent sends them, until it says ``Stop`` or ``stop`` is set."""
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

    def songs() -> Iterator[Song]:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                yield inbox.get(timeout=0.1)

    threading.Thread(target=read, name="inbox", daemon=True).start()
    return songs()


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
