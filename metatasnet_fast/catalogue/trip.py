"""Facts about a song, collected while it is separated, and the outcome made of them."""

from __future__ import annotations

import datetime
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._io import sha256_file
from .destination import Destination, song_folder
from .outcome import Failure, Outcome, Status
from .result import Result
from .song import Song
from .source import Stamp

__all__ = ["Trip", "Twins", "utc_now"]

MOST = 100_000
"""Contents that a worker remembers, the latest ones: some 20 MB."""


class Twins:
    """Which song of this worker has which content, for one model and settings."""

    def __init__(self, destination: Destination, key: str) -> None:
        self._destination = destination
        self._key = key
        self._ids: OrderedDict[str, str] = OrderedDict()
        self._begun: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self, content: str) -> threading.Event | None:
        """Take a content in hand until :meth:`end`; if another song has it, an event that is set when that has ended."""
        with self._lock:
            other = self._begun.get(content)
            if other is None:
                self._begun[content] = threading.Event()
        return other

    def end(self, content: str) -> None:
        """The song that took this content in hand is done, or failed."""
        with self._lock:
            self._begun.pop(content).set()

    def remember(self, content: str, id: str) -> None:
        """A song with this content is done."""
        with self._lock:
            self._ids[content] = id
            self._ids.move_to_end(content)
            while len(self._ids) > MOST:
                self._ids.popitem(last=False)

    def copy(self, content: str, staged: Path) -> Result | None:
        """Put the stems of a done song with this content into a folder; its result, or None if there is none."""
        with self._lock:
            id = self._ids.get(content)
        result = None if id is None else self._destination.result(id)
        if result is None or result.key != self._key or result.content != content:
            return None
        for file in result.files.values():
            with self._destination.storage.local(f"{song_folder(result.id)}/{file.path}") as path:
                try:
                    shutil.copyfile(path, staged / file.path)
                except FileNotFoundError:
                    return None
            if sha256_file(staged / file.path) != file.sha256:
                return None
        return result


def utc_now() -> str:
    """ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Trip:
    """One attempt at a song. Times in seconds, sizes in bytes."""

    song: Song
    key: str
    attempt: int
    stamp: Stamp | None = None
    content: str | None = None
    is_new: bool = False
    """True if the destination holds no valid result for the song."""
    copy: Path | None = None
    """The local copy of a remote input, once there is one."""
    codec: str = ""
    duration: float = 0.0
    samples: int = 0
    sample_rate: int = 0
    channels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def remember(self, result: Result) -> None:
        """Take over what a song that was done before says about itself."""
        self.content = result.content
        self.duration = float(result.audio["duration"])
        self.sample_rate, self.channels = int(result.audio["sample_rate"]), int(result.audio["channels"])
        self.bytes_in = int(result.input["bytes"])
        self.bytes_out = sum(file.bytes for file in result.files.values())
        self.warnings = list(result.warnings)

    def input(self, codec: str) -> dict[str, Any]:
        """Return the entry about the input in ``result.json``."""
        stamp = self.stamp.text if self.stamp else ""
        return {"sha256": self.content, "stamp": stamp, "bytes": self.bytes_in, "codec": codec}

    def outcome(self, status: Status, failure: Failure | None = None, error: str | None = None) -> Outcome:
        return Outcome(
            id=self.song.id,
            uri=self.song.uri,
            status=status,
            key=self.key,
            failure=failure,
            error=error,
            attempts=self.attempt,
            folder=None if status is Status.failed else song_folder(self.song.id),
            content=self.content,
            stamp=self.stamp.text if self.stamp else None,
            duration=self.duration,
            sample_rate=self.sample_rate,
            channels=self.channels,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            seconds={name: round(value, 4) for name, value in self.seconds.items()},
            warnings=tuple(self.warnings),
            finished=utc_now(),
        )
