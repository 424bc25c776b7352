"""Separate whole catalogues of songs, named by a manifest. No song is lost, and no song is separated twice."""

from .events import (
    Event,
    Listener,
    Notice,
    Progress,
    RunEnded,
    RunStarted,
    SongEnded,
    SongsSkipped,
    SongStarted,
    WorkerLoad,
)
from .outcome import Failure, Outcome, Status
from .settings import Identity, Settings, Song

__all__ = [
    "Event", "Failure", "Identity", "Listener", "Notice", "Outcome", "Progress", "RunEnded", "RunStarted", "Settings", "Song",
    "SongEnded", "SongStarted", "SongsSkipped", "Status", "WorkerLoad",
]  # fmt: skip
