"""What is learnt about a song on its way, and the outcome that it makes."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .destination import song_folder
from .outcome import Failure, Outcome, Status
from .result import Result
from .song import Song
from .source import Stamp

__all__ = ["Trip", "utc_now"]


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
        """What a ``result.json`` says about the input."""
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
