"""A worker in a process of its own, watched: what crashes there takes down one song, not the run."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..errors import MetaTasNetError
from .events import Listener, Notice, SongEnded, SongStarted
from .outcome import Failure, Outcome, Status
from .process import ChildProcess, unpack
from .settings import Identity, Settings
from .song import Song
from .trip import Trip

__all__ = ["SupervisedWorker", "WorkerLostError"]

MOST_BARREN = 3
"""Processes in a row that may end before any song has: then it is not the songs' fault."""

POLL_SECONDS = 0.2

PUT_OFF_SECONDS = 5.0
"""Until a song that another run has in hand is looked at again, as long as there are others."""


class WorkerLostError(MetaTasNetError):
    """The worker's process ends again and again, whatever song it gets."""


@dataclass
class _Suspect:
    """A song that was in flight when the process ended; ``deaths`` counts how often."""

    song: Song
    deaths: int = 1


class SupervisedWorker:
    """As :class:`Worker`, with the songs in a child process, which is started anew when it dies.

    The songs that it had in flight then are tried one by one, each alone in the process, so that the guilty one is known: it
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
        self._order = {"settings": settings.to_dict(), "destination": destination, "token": token, "number": number}
        self._attempts = max(1, settings.attempts - 1)
        self._listener = listener
        self._stop = stop or threading.Event()
        self.grace = grace
        self._child: ChildProcess | None = None
        self._ready: dict[str, Any] = {}
        self._barren = 0
        self._start()

    @property
    def identity(self) -> Identity:
        return Identity.from_dict(self._ready["identity"])

    @property
    def capacity(self) -> int:
        return int(self._ready["capacity"])

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._child.pid if self._child else None

    def describe(self) -> str:
        """As :meth:`Worker.describe`; empty if the run was stopped before the process was ready."""
        return str(self._ready.get("description", ""))

    def process(self, songs: Iterable[Song]) -> Iterator[Outcome]:
        """As :meth:`Worker.process`; songs that are still in flight when the grace is over have no outcome."""
        source = iter(songs)
        again: deque[Song] = deque()
        put_off: deque[tuple[float, Song]] = deque()
        suspects: deque[_Suspect] = deque()
        sent: dict[str, Song] = {}
        begun: set[str] = set()
        stopped: float | None = None
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
                self._child.ask_to_stop()
                # Somebody may have shortened the grace in the meantime.
                if stopped is not None and time.monotonic() > stopped + self.grace:
                    self._say(f"Songs in flight were given up after {self.grace:g} s: {len(begun)}.")
                    self._drop_child()
                    return
            child = self._child
            message = child.receive(POLL_SECONDS) if child else None
            if message is None or child is None:
                continue
            if "event" in message:
                event = unpack(message["event"])
                if isinstance(event, SongStarted):
                    begun.add(event.id)
                if self._listener is not None:
                    self._listener(event)
                if isinstance(event, SongEnded):
                    self._barren = 0
                    sent.pop(event.outcome.id, None)
                    begun.discard(event.outcome.id)
                    if suspects and suspects[0].song.id == event.outcome.id:
                        suspects.popleft()
                    yield event.outcome
            elif "put_off" in message:
                put_off.append((time.monotonic() + PUT_OFF_SECONDS, sent.pop(message["put_off"])))
            elif "gone" in message:
                reason = child.obituary()
                self._drop_child()
                if stopping:
                    return
                yield from self._after_death(reason, child.signal, again, suspects, sent, begun)
                sent.clear()
                begun.clear()

    def close(self) -> None:
        """Let the process end, or end it; its last events reach the listener."""
        if self._child is not None:
            for message in self._child.end():
                if "event" in message and self._listener is not None:
                    self._listener(unpack(message["event"]))
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
            elif "ready" in message:
                self._ready = message["ready"]
                return
            elif "refused" in message:
                self._drop_child()
                raise MetaTasNetError(message["refused"])
            elif "gone" in message:
                reason = self._child.obituary()
                self._drop_child()
                self._count_barren(reason)
                self._child = ChildProcess(self._order, self.command)
            elif "event" in message and self._listener is not None:
                self._listener(unpack(message["event"]))

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
        self._child.send({"song": song.to_dict(), "wait": wait})

    def _after_death(
        self,
        reason: str,
        number: int | None,
        again: deque[Song],
        suspects: deque[_Suspect],
        sent: dict[str, Song],
        begun: set[str],
    ) -> Iterator[Outcome]:
        """Sort the songs that were on their way; yields the outcome of one that was alone and died too often."""
        if not begun:
            self._count_barren(reason)
        if suspects and suspects[0].song.id in begun:
            suspect = suspects.popleft()
            suspect.deaths += 1
            if suspect.deaths > self._attempts:
                outcome = _died(suspect, reason, number, self.identity.key)
                if self._listener is not None:
                    self._listener(SongEnded(outcome, self.number))
                yield outcome
            else:
                suspects.append(suspect)
            return
        if suspects:
            return
        self._say(f"The worker's process ended ({reason}); started anew, {len(begun)} songs are tried one by one.")
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
        if self._listener is not None:
            self._listener(Notice(text))


def _died(suspect: _Suspect, reason: str, number: int | None, key: str) -> Outcome:
    trip = Trip(suspect.song, key, suspect.deaths)
    if number == getattr(signal, "SIGKILL", None) and number is not None:
        failure, guess = Failure.out_of_memory, "most likely because memory ran out"
    elif number is not None:
        failure, guess = Failure.decode, "most likely a fault of the decoder"
    else:
        failure, guess = Failure.unknown, "see the log"
    return trip.outcome(
        Status.failed, failure, f"The song ended its process, alone, {suspect.deaths} times ({reason}), {guess}."
    )
