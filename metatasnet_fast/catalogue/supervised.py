"""A worker in a process of its own, watched: what crashes there takes down one song, not the run."""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import MetaTasNetError
from .events import Event, Listener, Notice, SongEnded, SongStarted
from .outcome import Failure, Outcome, Status
from .settings import Identity, Settings
from .song import Song
from .trip import Trip

__all__ = ["SupervisedWorker", "WorkerLostError"]

LOG = logging.getLogger(__name__)
PACKAGE = Path(__file__).resolve().parents[2]
END_SECONDS = 10.0
"""For a process to end by itself when it has nothing left to do."""

MOST_BARREN = 3
"""Processes in a row that may end before any song has: then it is not the songs' fault."""

POLL_SECONDS = 0.2

PUT_OFF_SECONDS = 5.0
"""Until a song that another run has in hand is looked at again, as long as there are others."""


class WorkerLostError(MetaTasNetError):
    """The worker's process ends again and again, whatever song it gets."""


@dataclass(frozen=True)
class Order:
    """The first message to a child."""

    settings: Settings
    destination: str
    token: str | None
    number: int


@dataclass(frozen=True)
class Task:
    """A song for a child; if another run has it in hand and ``wait`` is false, it comes back."""

    song: Song
    wait: bool


class Stop(enum.Enum):
    """To a child: begin no further song (``now``), or there is none (``at_end``)."""

    now = enum.auto()
    at_end = enum.auto()


@dataclass(frozen=True)
class Ready:
    """A child can take songs."""

    description: str
    capacity: int
    identity: Identity


@dataclass(frozen=True)
class Refused:
    """A child cannot work, and why."""

    reason: str


@dataclass(frozen=True)
class PutOff:
    """A song comes back."""

    id: str


@dataclass(frozen=True)
class Gone:
    """A child has ended; how, and the signal that ended it, if one did."""

    reason: str
    signal: int | None = None


class ChildProcess:
    """A running ``catalogue.child``: pickled objects to it and from it. Its standard error goes to the log (level debug)."""

    def __init__(self, order: Order, command: list[str] | None = None) -> None:
        paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "metatasnet_fast.catalogue.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Every thread of glibc's allocator keeps memory of its own, and there are many threads.
            env={"MALLOC_ARENA_MAX": "2", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the parent to deal with
        )
        self.pid = self._process.pid
        self._messages: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._tail: deque[str] = deque(maxlen=20)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)]
        for thread in self._threads:
            thread.start()
        self.send(order)

    def send(self, message: object) -> None:
        """A process that has ended takes nothing: that is learnt from ``receive``."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()

    def receive(self, seconds: float) -> object:
        """The next message, :class:`Gone` after the last; None if there is none for so many seconds."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def end(self) -> Iterator[object]:
        """Let the process end, as it has no song in flight, and end it if it does not; yields its last messages."""
        self.send(Stop.at_end)
        deadline = time.monotonic() + END_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if isinstance(message, Gone):
                break
            if message is not None:
                yield message
        else:
            LOG.warning("The worker's process did not end by itself and was killed.")
        self.kill()

    def kill(self) -> None:
        """End the process at once, and release everything."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()

    def exit_reason(self) -> Gone:
        """Return how the process ended."""
        code = self._process.wait()
        if code < 0:
            try:
                return Gone(signal.Signals(-code).name, -code)
            except ValueError:
                return Gone(f"signal {-code}", -code)
        self._threads[1].join()
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        return Gone(f"exit code {code}" + (f": {last.strip()[:200]}" if last else ""))

    def _read(self) -> None:
        assert self._process.stdout is not None
        # Its end may cut a message off.
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                self._messages.put(pickle.load(self._process.stdout))
        self._messages.put(Gone(""))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._tail.append(line.decode(errors="backslashreplace"))
            LOG.debug("worker %d: %s", self.pid, self._tail[-1].rstrip())


@dataclass
class _Suspect:
    """A song that was in flight when the process ended; ``deaths`` counts how often."""

    song: Song
    deaths: int = 1


class SupervisedWorker:
    """A :class:`Worker` whose songs are separated in a child process, which is restarted when it dies.

    The songs that it had in flight then are tried one by one, each alone in the process, so that the crashing one is known: it
    fails, the others are done. The process ends with this one, however that ends.

    Args:
        token: of the destination, see :class:`Destination`.
        grace: seconds that songs in flight have after ``stop`` is set; then the process is ended.

    Raises:
        MetaTasNetError: if the model cannot be loaded or the device or backend cannot serve.
        WorkerLostError: if the process cannot be kept alive.
    """

    command: list[str] | None = None
    """Starts the process; for tests."""

    def __init__(
        self,
        settings: Settings,
        destination: str,
        listener: Listener | None = None,
        stop: threading.Event | None = None,
        number: int = 0,
        grace: float = 60.0,
        token: str | None = None,
    ) -> None:
        self.number = number
        self._order = Order(settings, destination, token, number)
        self._attempts = max(1, settings.attempts - 1)
        self._listener = listener
        self._stop = stop or threading.Event()
        self.grace = grace
        self._child: ChildProcess | None = None
        self._ready: Ready | None = None
        self._barren = 0
        self._start()

    @property
    def identity(self) -> Identity:
        assert self._ready is not None
        return self._ready.identity

    @property
    def capacity(self) -> int:
        return self._ready.capacity if self._ready else 0

    @property
    def pid(self) -> int | None:
        """Return the process number of the child, or None."""
        return self._child.pid if self._child else None

    def describe(self) -> str:
        """Return the same as :meth:`Worker.describe`; empty if the run was stopped before the process was ready."""
        return self._ready.description if self._ready else ""

    def process(self, songs: Iterable[Song]) -> Iterator[Outcome]:
        """Do the same as :meth:`Worker.process`; songs that are still in flight when the grace is over have no outcome."""
        source = iter(songs)
        again: deque[Song] = deque()
        put_off: deque[tuple[float, Song]] = deque()
        suspects: deque[_Suspect] = deque()
        sent: dict[str, Song] = {}
        begun: set[str] = set()
        stopped: float | None = None
        asked = False
        while True:
            stopping = self._stop.is_set()
            if stopping and stopped is None:
                stopped = time.monotonic()
            if stopping and not (sent and self._child):
                return
            if not stopping:
                if self._child is None:
                    self._start()
                    continue
                self._feed(source, again, put_off, suspects, sent)
                if not sent:
                    return
            elif self._child is not None:
                if not asked:
                    asked = True
                    self._child.send(Stop.now)
                # Somebody may have shortened the grace in the meantime.
                if stopped is not None and time.monotonic() > stopped + self.grace:
                    self._say(f"Songs in flight were given up after {self.grace:g} s: {len(begun)}.")
                    self._drop_child()
                    return
            child = self._child
            message = child.receive(POLL_SECONDS) if child else None
            if message is None or child is None:
                continue
            if isinstance(message, Event):
                if isinstance(message, SongStarted):
                    begun.add(message.id)
                self._hear(message)
                if isinstance(message, SongEnded):
                    self._barren = 0
                    sent.pop(message.outcome.id, None)
                    begun.discard(message.outcome.id)
                    if suspects and suspects[0].song.id == message.outcome.id:
                        suspects.popleft()
                    yield message.outcome
            elif isinstance(message, PutOff):
                put_off.append((time.monotonic() + PUT_OFF_SECONDS, sent.pop(message.id)))
            elif isinstance(message, Gone):
                gone = child.exit_reason()
                self._drop_child()
                if stopping:
                    return
                yield from self._after_death(gone, again, suspects, sent, begun)
                sent.clear()
                begun.clear()

    def close(self) -> None:
        """Let the process end, or end it; its last events reach the listener."""
        if self._child is not None:
            for message in self._child.end():
                if isinstance(message, Event):
                    self._hear(message)
            self._child = None

    def __enter__(self) -> SupervisedWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._drop_child()
        self.close()

    def _start(self) -> None:
        self._child = ChildProcess(self._order, self.command)
        while True:
            message = self._child.receive(POLL_SECONDS)
            if message is None:
                if self._stop.is_set():
                    self._drop_child()
                    return
            elif isinstance(message, Ready):
                self._ready = message
                return
            elif isinstance(message, Refused):
                self._drop_child()
                raise MetaTasNetError(message.reason)
            elif isinstance(message, Gone):
                gone = self._child.exit_reason()
                self._drop_child()
                self._count_barren(gone.reason)
                self._child = ChildProcess(self._order, self.command)
            elif isinstance(message, Event):
                self._hear(message)

    def _feed(
        self,
        source: Iterator[Song],
        again: deque[Song],
        put_off: deque[tuple[float, Song]],
        suspects: deque[_Suspect],
        sent: dict[str, Song],
    ) -> None:
        """Send what there is a place for: a suspect alone, else as many songs as can be in flight, and a few more.

        What other runs have in hand is waited for only when nothing else is left.
        """
        assert self._child is not None
        if suspects:
            if not sent:
                self._send(suspects[0].song, sent, wait=True)
            return
        while len(sent) < self.capacity + 2:
            if put_off and put_off[0][0] <= time.monotonic():
                self._send(put_off.popleft()[1], sent)
            elif (song := again.popleft() if again else next(source, None)) is not None:
                self._send(song, sent)
            elif put_off:
                self._send(put_off.popleft()[1], sent, wait=True)
            else:
                return

    def _send(self, song: Song, sent: dict[str, Song], wait: bool = False) -> None:
        assert self._child is not None
        sent[song.id] = song
        self._child.send(Task(song, wait))

    def _after_death(
        self,
        gone: Gone,
        again: deque[Song],
        suspects: deque[_Suspect],
        sent: dict[str, Song],
        begun: set[str],
    ) -> Iterator[Outcome]:
        """Sort the songs that were on their way; yields the outcome of one that was alone and died too often."""
        if not begun:
            self._count_barren(gone.reason)
        if suspects and suspects[0].song.id in begun:
            suspect = suspects.popleft()
            suspect.deaths += 1
            if suspect.deaths > self._attempts:
                outcome = _died(suspect, gone, self.identity.key)
                self._hear(SongEnded(outcome, self.number))
                yield outcome
            else:
                suspects.append(suspect)
            return
        if suspects:
            return
        self._say(
            f"The worker's process ended ({gone.reason}); started again, {len(begun)} songs are tried one by one."
        )
        suspects.extend(_Suspect(sent[id]) for id in sent if id in begun)
        again.extendleft(reversed([song for id, song in sent.items() if id not in begun]))

    def _count_barren(self, reason: str) -> None:
        self._barren += 1
        if self._barren >= MOST_BARREN:
            raise WorkerLostError(
                f"The worker's process ended {self._barren} times before any song was done ({reason}): "
                "try `metatasnet-fast selftest` with the same device and backend."
            )

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _say(self, text: str) -> None:
        self._hear(Notice(text))

    def _hear(self, event: Event) -> None:
        if self._listener is not None:
            self._listener(event)


def _died(suspect: _Suspect, gone: Gone, key: str) -> Outcome:
    trip = Trip(suspect.song, key, suspect.deaths)
    if gone.signal is not None and gone.signal == getattr(signal, "SIGKILL", None):
        failure, guess = Failure.out_of_memory, "most likely because memory ran out"
    elif gone.signal is not None:
        failure, guess = Failure.decode, "most likely a fault of the decoder"
    else:
        failure, guess = Failure.unknown, "see the log"
    return trip.outcome(
        Status.failed, failure, f"The song ended its process, alone, {suspect.deaths} times ({gone.reason}), {guess}."
    )
