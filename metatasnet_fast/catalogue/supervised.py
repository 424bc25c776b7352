"""Run a worker in another process, which is restarted when it dies. So a crash makes one song fail, not the run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Protocol

from ..errors import MetaTasNetError
from .events import Event, Listener, Notice, SongEnded, SongStarted
from .outcome import Failure, Outcome, Status
from .settings import Settings, Song

__all__ = ["ChildProcess", "Gone", "Order", "Process", "SupervisedWorker", "WorkerLostError"]

LOG = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "metatasnet_fast.catalogue.worker"]

END_SECONDS = 10.0
"""Seconds that a process without songs gets to end by itself before it is killed."""

MOST_FAILED_STARTS = 3
"""Number of processes in a row that may end before they begin a song; such an end is not the fault of a song."""

MOST_LOSSES = 100
"""Number of lost machines after which a further loss counts as a crash of the songs."""

POLL_SECONDS = 0.2

DEFERRED_SECONDS = 1.0
"""Seconds after which a song that another run is working on is tried again."""


class WorkerLostError(MetaTasNetError):
    """Error: the worker's process ends again and again before it begins a song."""


@dataclass(frozen=True)
class Order:
    """The first message to a process. The other messages are songs. The last message is None: then the process begins
    no further song, finishes the songs in flight, and ends."""

    settings: Settings
    destination: str
    token: str | None = None
    """The mark of the destination, see :class:`Destination`."""
    number: int = 0
    """Number of the worker."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Folders of the contents that are done at the destination, see :class:`Contents`."""


@dataclass(frozen=True)
class Ready:
    """The first message from a process: it can take songs. A process that cannot work sends an error instead.

    The messages after this one are events, and songs that another run is working on.
    """

    capacity: int
    """Number of songs that the process takes at once."""
    key: str
    """Checksum of the model and the settings (``Identity.key``)."""


@dataclass(frozen=True)
class Gone:
    """The last message from a process: it has ended.

    ``signal`` is the number of the signal that ended the process, or None. ``machine_lost`` is True if the machine or
    the actor of the process was lost, which is not the fault of a song.
    """

    reason: str
    signal: int | None = None
    machine_lost: bool = False


class Process(Protocol):
    """A worker's process, on this machine or another one. It gets an :class:`Order` when it is started."""

    def send(self, message: Song | None) -> None:
        """Send a message to the process. Nothing is raised if it has ended: ``receive`` then returns :class:`Gone`."""

    def receive(self, seconds: float) -> object:
        """Return the next message of the process, or None if no message comes within ``seconds``."""

    def kill(self) -> None:
        """End the process at once, and release its resources."""


class ChildProcess:
    """A :class:`Process` on this machine, at the other end of a pipe. Its output goes to the log at level debug."""

    def __init__(self, order: Order) -> None:
        paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._pipe, other_end = Pipe()
        self._process = subprocess.Popen(
            [*COMMAND, str(other_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[other_end.fileno()],
            # glibc's allocator keeps memory for every thread, and there are many threads.
            env={"MALLOC_ARENA_MAX": "2", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # only the parent handles Ctrl-C
        )
        other_end.close()
        self.pid = self._process.pid
        self._printed: deque[str] = deque(maxlen=20)
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()
        self.send(order)

    def send(self, message: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(message)

    def receive(self, seconds: float) -> object:
        with contextlib.suppress(EOFError, OSError):  # the end of the process may cut off a message
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        code = self._process.wait()
        self._reader.join()
        if code < 0:
            known = -code in set(signal.Signals)
            return Gone(signal.Signals(-code).name if known else f"signal {-code}", -code)
        last = next((line.strip() for line in reversed(self._printed) if line.strip()), "")
        return Gone(f"exit code {code}" + (f": {last[:200]}" if last else ""))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._pipe.close()

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._printed.append(line.decode(errors="backslashreplace"))
                LOG.debug("worker %d: %s", self.pid, self._printed[-1].rstrip())


class SupervisedWorker:
    """A worker whose songs are separated in another process, which is restarted when it dies.

    The songs of a dead process are tried one by one, each alone in the new process. So the song that crashes is found:
    it fails, and the others are done. The other process ends with this one in any case.

    Args:
        order: the first message to each process.
        listener: function that gets every event of the process.
        stop: when set, no further song is begun.
        grace: seconds that songs in flight have after ``stop`` is set. Then the process is ended.
        start: function that starts a process.

    Raises:
        MetaTasNetError: if the model cannot be loaded, or the device or backend cannot be used.
        WorkerLostError: if the process cannot be kept alive.
    """

    def __init__(
        self,
        order: Order,
        listener: Listener = lambda event: None,
        stop: threading.Event | None = None,
        grace: float = 60.0,
        start: Callable[[Order], Process] = ChildProcess,
    ) -> None:
        self.grace = grace
        self.child: Process | None = None
        self.capacity = 0
        """Number of songs that the process takes at once; 0 while no process is ready."""
        self._order = order
        self._most_crashes = max(2, order.settings.attempts)
        self._listener = listener
        self._stop = stop or threading.Event()
        self._new_process = start
        self._failed_starts = self._losses = 0
        self._key = ""
        self._sent: dict[str, Song] = {}
        self._waiting: deque[tuple[float, Song]] = deque()
        """Songs to try again, each with the earliest time at which it may be tried, ordered by these times."""
        self._crashes: Counter[str] = Counter()
        """For each song that has to be tried alone, by its id: how many processes ended while they had the song."""
        while not self.capacity and not self._stop.is_set():
            self._receive()

    def process(self, songs: Iterable[Song]) -> Iterator[Outcome]:
        """Separate songs, and yield their outcomes. Songs that are still in flight when ``grace`` is over have no
        outcome."""
        source = iter(songs)
        while not self._stop.is_set():
            self._feed(source)
            if self.capacity and not self._sent and not self._waiting:
                return
            yield from self._receive()
        if self._sent and self.child is not None:
            self.child.send(None)
        stopped = time.monotonic()
        while self._sent and self.child is not None:
            if time.monotonic() > stopped + self.grace:  # another thread may shorten ``grace`` meanwhile
                self._listener(Notice(f"Songs in flight were given up after {self.grace:g} s: {len(self._sent)}."))
                self._kill()
            else:
                yield from self._receive()

    def __enter__(self) -> SupervisedWorker:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Let the process end, so that its last events reach the listener. After END_SECONDS, or after an error, kill
        it."""
        if kind is None and self.child is not None and self.capacity:
            self.child.send(None)
            deadline = time.monotonic() + END_SECONDS
            while self.capacity and time.monotonic() < deadline:
                self._receive()
        self._kill()

    def _feed(self, source: Iterator[Song]) -> None:
        """Send as many songs as the process takes at once. A song that a process had when it crashed is sent alone."""
        while len(self._sent) < self.capacity and not self._crashes.keys() & self._sent.keys():
            if self._waiting and self._waiting[0][0] <= time.monotonic():
                if self._sent and self._waiting[0][1].id in self._crashes:
                    return
                song: Song | None = self._waiting.popleft()[1]
            else:
                song = next(source, None)
            if song is None:
                return
            if song.id in self._sent:  # a list may name a song twice
                self._waiting.append((time.monotonic() + DEFERRED_SECONDS, song))
            else:
                assert self.child is not None
                self._sent[song.id] = song
                self.child.send(song)

    def _receive(self) -> list[Outcome]:
        """Start a process if none is running, wait up to POLL_SECONDS for its next message, and act on the message.

        Return a list with the outcome that the message brings, or an empty list.
        """
        if self.child is None:
            self.child = self._new_process(self._order)
        message = self.child.receive(POLL_SECONDS)
        if isinstance(message, Ready):
            self.capacity, self._key = message.capacity, message.key
        elif isinstance(message, MetaTasNetError):
            self._kill()
            raise message
        elif isinstance(message, Event):
            self._listener(message)
            if isinstance(message, SongStarted):
                self._failed_starts = -1  # when this process ends, the counter returns to 0: it was no failed start
            elif isinstance(message, SongEnded):
                del self._sent[message.outcome.id]
                self._crashes.pop(message.outcome.id, None)
                return [message.outcome]
        elif isinstance(message, Song):
            self._waiting.append((time.monotonic() + DEFERRED_SECONDS, self._sent.pop(message.id)))
            self._crashes.pop(message.id, None)  # the other run tries it now
        elif isinstance(message, Gone):
            idle = self.capacity and not self._sent
            self._kill()
            if not idle and not self._stop.is_set():
                return self._after_exit(message)
        return []

    def _after_exit(self, gone: Gone) -> list[Outcome]:
        """Arrange that each song of a dead process is tried alone.

        Return a list with the outcome of a song that was alone in the process and crashed too often, or an empty list.
        """
        self._failed_starts += 1
        if self._failed_starts >= MOST_FAILED_STARTS:
            raise WorkerLostError(
                f"The worker's process ended {self._failed_starts} times before any song was begun ({gone.reason}): "
                "try `metatasnet-fast selftest` with the same device and backend."
            )
        lost = list(self._sent.values())
        self._sent.clear()
        if gone.machine_lost and self._losses < MOST_LOSSES:
            self._losses += 1
            self._listener(Notice(f"A worker was lost ({gone.reason}); its {len(lost)} songs are tried again."))
            for song in lost:
                self._crashes.pop(song.id, None)
        else:
            self._crashes.update(song.id for song in lost)
            if len(lost) > 1:
                text = f"The worker's process ended ({gone.reason}); started again, {len(lost)} songs are tried one by one."
                self._listener(Notice(text))
        if len(lost) == 1 and self._crashes[lost[0].id] >= self._most_crashes:
            song = lost.pop()
            outcome = _crashed(song, gone, self._crashes.pop(song.id), self._key)
            self._listener(SongEnded(outcome, self._order.number))
            return [outcome]
        self._waiting.extendleft((0.0, song) for song in reversed(lost))
        return []

    def _kill(self) -> None:
        if self.child is not None:
            self.child.kill()
        self.child, self.capacity = None, 0


def _crashed(song: Song, gone: Gone, crashes: int, key: str) -> Outcome:
    if gone.signal is None:
        failure, guess = Failure.unknown, "see the log"
    elif gone.signal == signal.SIGKILL:
        failure, guess = Failure.out_of_memory, "most likely because memory ran out"
    else:
        failure, guess = Failure.decode, "most likely a fault of the decoder"
    text = f"The song ended its process, alone, {crashes} times ({gone.reason}), {guess}."
    return Outcome(song.id, song.uri, Status.failed, key, failure, text, crashes)
