"""Define the events that a run sends to the live display, to ``--json`` and to the report, and sum the events up.

Every event becomes one JSON object with ``event`` (the kind of the event) and ``time`` (seconds since 1970).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from .outcome import Failure, Outcome, Status

__all__ = [
    "Event", "Listener", "Notice", "Progress", "RunEnded", "RunStarted", "SongEnded", "SongStarted", "SongsSkipped",
    "StageLoad", "Tally", "WorkerLoad",
]  # fmt: skip


@dataclass(frozen=True)
class Event:
    time: float = field(default_factory=lambda: round(time.time(), 3), kw_only=True)

    @property
    def kind(self) -> str:
        """Return the name of the event's class as JSON has it, such as ``run_started``."""
        return re.sub("(?<=.)(?=[A-Z])", "_", type(self).__name__).lower()

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the kind in a form for ``json.dumps``."""
        return {**asdict(self), "event": self.kind}


Listener: TypeAlias = Callable[[Event], object]


@dataclass(frozen=True)
class RunStarted(Event):
    run: str
    """Name of the run, which its ledger and its report have, too."""
    songs: int
    """Number of songs in this shard."""
    expected_seconds: float
    """Seconds of audio of all songs, by the lengths and sizes in the manifest; 0 if a song has neither."""
    destination: str
    engine: str
    shard: str
    """The part of the manifest, as ``i/n``."""


@dataclass(frozen=True)
class SongStarted(Event):
    id: str
    uri: str
    worker: int = 0


@dataclass(frozen=True)
class SongEnded(Event):
    outcome: Outcome
    worker: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"event": self.kind, **self.outcome.to_dict(), "worker": self.worker, "time": self.time}


@dataclass(frozen=True)
class SongsSkipped(Event):
    """Songs that were done before the run, as a listing of the destination shows. They have no events of their own."""

    songs: int
    audio_seconds: float


@dataclass(frozen=True)
class Notice(Event):
    """A message for people, such as a choice that was made, memory that ran out, or a worker that was restarted."""

    text: str


@dataclass(frozen=True)
class StageLoad:
    """The load of a worker's stage: it holds ``capacity`` songs at once, and ``waiting`` songs wait for a place.

    ``seconds`` is the sum of the times that songs spent in the stage. Divided by the capacity and by the wall-clock
    time, it is the share of time in which the stage was busy. The stage ``device`` holds batches instead of songs, and
    windows wait for it.
    """

    capacity: int
    waiting: int
    seconds: float


@dataclass(frozen=True)
class WorkerLoad(Event):
    """The activity of a worker, about once a second."""

    worker: int
    wall_seconds: float
    stages: dict[str, StageLoad]
    """Loads of the stages ``read``, ``separate``, ``write`` and ``device``."""
    windows_done: int
    batch_size: int
    cpu_seconds: float
    """CPU time of the worker's process, user and system, in seconds."""
    peak_memory: int
    """Largest resident memory of the worker's process, in bytes."""


@dataclass(frozen=True)
class Progress(Event):
    """The state of the whole run, summed over its workers, about once a second and once at the end."""

    songs: int
    done: int
    skipped: int
    failed: int
    in_flight: int
    audio_seconds: float
    """Seconds of audio of the songs that this run separated."""
    wall_seconds: float
    device_busy_share: float
    """Share of time in which the devices were busy, 0 to 1, averaged over the workers."""
    queues: dict[str, int]
    """Number of songs that wait for ``read`` and ``write``, and of windows that wait for ``device``."""
    stage_seconds: dict[str, float]
    """Seconds that songs spent in ``read``, ``separate`` and ``write``, added up; and seconds in which ``device`` was
    busy."""
    stage_busy_share: dict[str, float]
    """Share of each stage's capacity that was in use, 0 to 1."""
    eta_seconds: float | None
    """Estimated seconds until the end; None before the first song of this run has ended."""
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio separated per second."""
        return self.audio_seconds / self.wall_seconds if self.wall_seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "real_time_factor": self.real_time_factor}


@dataclass(frozen=True)
class RunEnded(Event):
    """The end of a run. If the run was stopped, ``complete`` is false, and ``remaining`` songs were not tried.

    ``reason`` says why the run stopped itself: too many songs in a row failed for a cause outside the songs. It is None
    if the run did not stop itself.
    """

    run: str
    complete: bool
    remaining: int
    progress: Progress
    failures: dict[str, int]
    """Number of songs by type of failure."""
    cost: float | None = None
    """Cost of all machines, in the currency of ``--price-per-hour``; None without a price."""
    cost_per_1000_songs: float | None = None
    reason: str | None = None

    @property
    def exit_code(self) -> int:
        """Return 0 if every song of the shard is done, 4 if the run stopped itself, else 3."""
        if self.reason is not None:
            return 4
        return 0 if self.complete and not self.failures else 3

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "progress": self.progress.to_json(), "exit_code": self.exit_code}


class Tally:
    """The state of a run, summed from the events of all workers; call this object with one event at a time.

    Args:
        songs: number of songs in this run.
        expected_seconds: seconds of audio in all these songs; 0 if unknown.
    """

    def __init__(self, songs: int, expected_seconds: float = 0.0) -> None:
        self.songs = songs
        self.expected_seconds = expected_seconds
        self.failures: Counter[str] = Counter()
        self.reason: str | None = None
        """Why the run has to stop: too many songs in a row failed for one cause outside the songs. None if it may go
        on."""
        self._began = time.perf_counter()
        self._counts: Counter[Status] = Counter()
        self._audio = self._passed = 0.0
        self._bytes_in = self._bytes_out = 0
        self._in_flight: set[tuple[int, str]] = set()
        self._loads: dict[int, list[WorkerLoad]] = {}
        """The last load of every process of each worker, by the worker's number."""
        self._row: tuple[Failure | None, set[str]] = (None, set())
        """The failure that the last songs had, all in a row, and the ids of these songs."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, SongStarted):
            self._in_flight.add((event.worker, event.id))
        elif isinstance(event, SongEnded):
            self._in_flight.discard((event.worker, event.outcome.id))
            self._count(event.outcome)
        elif isinstance(event, SongsSkipped):
            self._counts[Status.skipped] += event.songs
            self._passed += event.audio_seconds
        elif isinstance(event, WorkerLoad):
            loads = self._loads.setdefault(event.worker, [])
            if loads and event.wall_seconds >= loads[-1].wall_seconds:
                loads.pop()  # an older load of the same process
            loads.append(event)

    def progress(self) -> Progress:
        wall = time.perf_counter() - self._began
        now = [loads[-1] for loads in self._loads.values()]
        loads = [load for loads in self._loads.values() for load in loads]
        stages = list(now[0].stages) if now else []
        seconds = {name: sum(load.stages[name].seconds for load in loads) for name in stages}
        places = {name: sum(load.stages[name].capacity * load.wall_seconds for load in loads) for name in stages}
        shares = {name: min(1.0, seconds[name] / places[name]) if places[name] else 0.0 for name in stages}
        queued = ("read", "device", "write")
        return Progress(
            songs=self.songs,
            done=self._counts[Status.done],
            skipped=self._counts[Status.skipped],
            failed=self._counts[Status.failed],
            in_flight=len(self._in_flight),
            audio_seconds=self._audio,
            wall_seconds=wall,
            device_busy_share=shares.get("device", 0.0),
            queues={name: sum(load.stages[name].waiting for load in now) for name in queued},
            stage_seconds=seconds,
            stage_busy_share=shares,
            eta_seconds=self._eta(wall),
            cpu_seconds=sum(load.cpu_seconds for load in loads),
            peak_memory=sum(max(load.peak_memory for load in each) for each in self._loads.values()),
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
        )

    def finish(self, run: str, price_per_hour: float | None, workers: int = 1) -> RunEnded:
        """Return the last event of the run.

        Args:
            run: name of the run.
            price_per_hour: price of each machine; None if there is no price.
            workers: number of machines.
        """
        progress, remaining = self.progress(), self.songs - sum(self._counts.values())
        cost = None if price_per_hour is None else price_per_hour * workers * progress.wall_seconds / 3600
        per_song = cost / progress.done if cost is not None and progress.done else None
        return RunEnded(
            run=run,
            complete=remaining == 0,
            remaining=remaining,
            progress=progress,
            failures=dict(sorted(self.failures.items())),
            reason=self.reason,
            cost=cost,
            cost_per_1000_songs=None if per_song is None else 1000 * per_song,
        )

    def _count(self, outcome: Outcome) -> None:
        self._counts[outcome.status] += 1
        self._passed += outcome.duration
        if outcome.status is Status.done:
            self._audio += outcome.duration
            self._bytes_in += outcome.bytes_in
            self._bytes_out += outcome.bytes_out
        elif outcome.failure is not None:
            self.failures[outcome.failure.value] += 1
        # Failures of one type in a row, of different songs, stop the run.
        failure, ids = self._row
        if outcome.failure is None or outcome.failure != failure:
            failure, ids = self._row = outcome.failure, set()
        ids.add(outcome.id)
        most = None if failure is None else failure.most_in_a_row
        if most is not None and failure is not None and len(ids) >= most and self.reason is None:
            times = f"{len(ids)} songs in a row failed" if most > 1 else "A song failed"
            self.reason = f"{times} with [{failure.value}], the last one so: {outcome.error} {failure.hint}"

    def _eta(self, wall: float) -> float | None:
        """Return the estimated seconds until the end; None before the first song of this run has ended.

        The estimate goes by the speed so far: in seconds of audio if the lengths of the songs are known, else in songs.
        """
        remaining = self.songs - sum(self._counts.values())
        worked = self._counts[Status.done] + self._counts[Status.failed]
        if remaining <= 0:
            return 0.0
        if worked == 0:
            return None
        if self.expected_seconds > 0 and self._audio > 0:
            return max(0.0, self.expected_seconds - self._passed) * wall / self._audio
        return remaining * wall / worked
