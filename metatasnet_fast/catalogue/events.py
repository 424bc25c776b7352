"""Events that a run reports while it goes on: to the live display, to ``--json``, to the report at the end.

Every event turns into one JSON object with ``event`` (its kind) and ``time`` (seconds since the epoch).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias

from .result import Outcome

__all__ = [
    "Event",
    "Listener",
    "Notice",
    "Progress",
    "RunEnded",
    "RunStarted",
    "SongEnded",
    "SongStarted",
    "SongsSkipped",
    "StageLoad",
    "WorkerLoad",
]


@dataclass(frozen=True)
class Event:
    kind: ClassVar[str] = ""
    time: float = field(default_factory=lambda: round(time.time(), 3), kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {"event": self.kind, **asdict(self)}


Listener: TypeAlias = Callable[[Event], object]


@dataclass(frozen=True)
class RunStarted(Event):
    kind = "run_started"
    run: str
    """Name of the run; its ledger and report are called so."""
    songs: int
    """In this shard."""
    expected_seconds: float
    """Seconds of audio, as far as the manifest tells; 0 if it does not."""
    destination: str
    engine: str
    shard: str
    """``i/n``."""


@dataclass(frozen=True)
class SongStarted(Event):
    kind = "song_started"
    id: str
    uri: str
    worker: int = 0


@dataclass(frozen=True)
class SongEnded(Event):
    kind = "song_ended"
    outcome: Outcome
    worker: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"event": self.kind, **self.outcome.to_dict(), "worker": self.worker, "time": self.time}


@dataclass(frozen=True)
class SongsSkipped(Event):
    """Songs that were done before the run, as one listing of the destination proves; they have no events of their own."""

    kind = "songs_skipped"
    songs: int
    audio_seconds: float


@dataclass(frozen=True)
class Notice(Event):
    """Something a person should know: a choice that was made, memory that ran out, a worker that was started again."""

    kind = "notice"
    text: str


@dataclass(frozen=True)
class StageLoad:
    """A stage of a worker: ``capacity`` songs can be in it at once, ``busy`` are, ``waiting`` wait for a place.

    ``seconds`` adds up the time that songs spent in it; divided by capacity and wall-clock time it is the share in which the
    stage was busy.
    """

    capacity: int
    busy: int
    waiting: int
    seconds: float


@dataclass(frozen=True)
class WorkerLoad(Event):
    """The activity of a worker, about once a second. Stages: ``read``, ``separate``, ``write``; the device is apart."""

    kind = "worker_load"
    worker: int
    wall_seconds: float
    stages: dict[str, StageLoad]
    device_busy_seconds: float
    windows_waiting: int
    """For the device."""
    windows_done: int
    batch_size: int
    cpu_seconds: float
    """CPU time of the worker's process, user and system, in seconds."""
    peak_memory: int
    """Bytes, of the worker's process."""


@dataclass(frozen=True)
class Progress(Event):
    """The whole run, about once a second and once at the end, summed over its workers."""

    kind = "progress"
    songs: int
    done: int
    skipped: int
    failed: int
    in_flight: int
    audio_seconds: float
    """Seconds of audio of the songs that this run separated."""
    wall_seconds: float
    device_busy_share: float
    """0 to 1, mean over the workers."""
    queues: dict[str, int]
    """Waiting: songs for ``read`` and ``write``, windows for ``device``."""
    stage_seconds: dict[str, float]
    """``read``, ``separate``, ``write``: summed over songs; ``device``: busy."""
    stage_busy_share: dict[str, float]
    """0 to 1: of each stage's capacity."""
    eta_seconds: float | None
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
    """``complete`` is false if the run was stopped; ``remaining`` songs were not tried then.

    ``reason`` says why the run stopped itself: too many songs in a row failed for a reason that is not theirs.
    """

    kind = "run_ended"
    run: str
    complete: bool
    remaining: int
    progress: Progress
    failures: dict[str, int]
    """Number of songs by type of failure."""
    cost: float | None = None
    """By ``--price-per-hour``, of all workers."""
    cost_per_1000_songs: float | None = None
    reason: str | None = None

    @property
    def exit_code(self) -> int:
        """0 if every song of the shard is done, 4 if the run stopped itself, else 3."""
        if self.reason is not None:
            return 4
        return 0 if self.complete and not self.failures else 3

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "progress": self.progress.to_json(), "exit_code": self.exit_code}
