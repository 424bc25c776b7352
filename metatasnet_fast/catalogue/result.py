"""The result of a song: a file, written last, that says for which input, model and settings the song is done.

Its name is enough to decide whether the song is done, so that a listing of the destination is the index of all songs:

    result-KEY-CONTENT-STAMP-FILES-MILLISECONDS.json

KEY and CONTENT are the first 16 digits of the key and of the input's SHA-256, STAMP and FILES the first 10 digits of the
SHA-256 of the input's stamp and of the names and sizes of all files, MILLISECONDS is the duration.

    {"format_version": 1, "id": ..., "uri": ...,
     "input":    {"sha256", "stamp", "bytes", "codec"},
     "identity": {"model_name", "model_sha256", "settings": {...}}, "key": ...,
     "audio":    {"duration", "sample_rate", "channels", "samples"},
     "files":    {"drums": {"path", "bytes", "sha256", "clipped"}, ...},
     "gains":    {"drums": [per channel], ...},
     "seconds":  {"fetch", "read", "separate", "write"},
     "made_by":  {"version", "backend", "device", "precision"},
     "warnings": [...], "finished": "2026-01-01T00:00:00Z"}

Paths are relative to the file itself; sizes in bytes, times in seconds.
"""

from __future__ import annotations

import datetime
import enum
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .failures import Failure
from .settings import Identity, digest, song_folder

__all__ = ["Listed", "Outcome", "Result", "Status", "StemFile", "is_result", "utc_now"]

FORMAT_VERSION = 1
NAME = re.compile(r"result-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{10})-([0-9a-f]{10})-(\d+)\.json")
LONG, SHORT = 16, 10
"""Numbers of hexadecimal digits of the checksums in a name."""


def utc_now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Listed(NamedTuple):
    """A result as the names and sizes in a song's folder describe it; if there is no result, texts are empty."""

    name: str
    """Name of the result's file."""
    key: str
    """Beginning of ``Identity.key``."""
    content: str
    """Beginning of the SHA-256 of the input."""
    stamp: str
    """Checksum of the input's stamp."""
    duration: float
    """Duration of the song, in seconds."""
    bytes: int
    """Bytes of the stems together."""
    is_whole: bool
    """True if there is a result, and the files have the names and sizes that it was written for."""

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Listed:
        """Return the result that a folder with these files holds, without reading a file."""
        found = {name: match for name in sizes if (match := NAME.fullmatch(name))}
        # Programs that show folders leave hidden files there; a stem is never hidden.
        stems = {path: size for path, size in sizes.items() if path not in found and not path.startswith(".")}
        size = sum(stems.values())
        # Several results, which only a killed run can leave on an object store, count as no result.
        if len(found) != 1:
            return cls("", "", "", "", 0.0, size, False)
        [(name, match)] = found.items()
        key, content, stamp, files, milliseconds = match.groups()
        is_whole = files == _files_checksum(stems, sizes[name])
        return cls(name, sys.intern(key), content, stamp, int(milliseconds) / 1000, size, is_whole)

    def is_done(self, key: str) -> bool:
        """Return whether the song is done for a key, whatever the content of the song's input is now."""
        return self.is_whole and self.key == key[:LONG]

    def proves(self, key: str, stamp: str) -> bool:
        """Return whether the song is done for a key, and for an input with this stamp."""
        return self.is_done(key) and self.stamp == digest(stamp)[:SHORT]


def is_result(name: str) -> bool:
    """Return whether a file of this name is the result of a song."""
    return NAME.fullmatch(name) is not None


def _files_checksum(stems: Mapping[str, int], result: int) -> str:
    return digest(f"{result} " + " ".join(f"{name}:{size}" for name, size in sorted(stems.items())))[:SHORT]


@dataclass(frozen=True)
class StemFile:
    """A file of stems: ``path`` relative to the song's folder."""

    path: str
    bytes: int
    sha256: str
    clipped: int = 0
    """Number of samples that an integer format had to clip."""


@dataclass(frozen=True)
class Result:
    """The contents of a result."""

    id: str
    uri: str
    input: dict[str, Any]
    identity: Identity
    audio: dict[str, Any]
    files: dict[str, StemFile]
    gains: dict[str, list[float]]
    seconds: dict[str, float]
    made_by: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    finished: str = field(default_factory=utc_now)

    @property
    def key(self) -> str:
        return self.identity.key

    @property
    def content(self) -> str:
        """Return the SHA-256 of the input."""
        return str(self.input["sha256"])

    @property
    def name(self) -> str:
        """Return the name of the result's file."""
        files = _files_checksum({file.path: file.bytes for file in self.files.values()}, len(self.to_json()))
        milliseconds = round(1000 * float(self.audio["duration"]))
        parts = (self.key[:LONG], self.content[:LONG], digest(self.input["stamp"])[:SHORT], files, milliseconds)
        return f"result-{'-'.join(map(str, parts))}.json"

    def outcome(self, status: Status, attempts: int = 1) -> Outcome:
        """Return the row of the ledger for this result."""
        return Outcome(
            self.id,
            self.uri,
            status,
            self.key,
            attempts=attempts,
            folder=song_folder(self.id),
            content=self.content,
            stamp=self.input["stamp"],
            duration=float(self.audio["duration"]),
            sample_rate=int(self.audio["sample_rate"]),
            channels=int(self.audio["channels"]),
            bytes_in=int(self.input["bytes"]),
            bytes_out=sum(file.bytes for file in self.files.values()),
            seconds=self.seconds,
            warnings=tuple(self.warnings),
        )

    def to_json(self) -> str:
        values = {"format_version": FORMAT_VERSION, **asdict(self), "key": self.key}
        return json.dumps(values, indent=1, ensure_ascii=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Result | None:
        """Read a result; return None if the text is not a complete result of a known version."""
        try:
            values = json.loads(text)
            if values.pop("format_version") != FORMAT_VERSION:
                return None
            key = values.pop("key")
            values["identity"] = Identity(**values["identity"])
            values["files"] = {name: StemFile(**entry) for name, entry in values["files"].items()}
            result = cls(**values)
            # A result without the entries that a later run needs is not valid.
            complete = result.key == key and result.content and result.files and "stamp" in result.input
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return result if complete else None


class Status(str, enum.Enum):
    done = "done"
    """Separated in this run; all files are at the destination."""
    skipped = "skipped"
    """The song was done before, for this content, model and settings."""
    failed = "failed"


@dataclass(frozen=True)
class Outcome:
    """A row of the ledger. Times in seconds, sizes in bytes."""

    id: str
    uri: str
    status: Status
    key: str
    """Checksum of the model and settings for which the outcome holds (``Identity.key``)."""
    failure: Failure | None = None
    error: str | None = None
    """One sentence about the failure; None if there is none."""
    attempts: int = 1
    folder: str | None = None
    """Folder of the outputs, relative to the destination."""
    content: str | None = None
    """SHA-256 of the input, if it was read."""
    stamp: str | None = None
    """Size and version of the input when it was opened (``Stamp.text``)."""
    duration: float = 0.0
    sample_rate: int = 0
    channels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time in each stage: ``fetch``, ``read``, ``separate``, ``write``, ``publish``."""
    warnings: tuple[str, ...] = ()
    finished: str = field(default_factory=utc_now)
    """Time of the end: UTC, ISO 8601."""

    @property
    def hint(self) -> str | None:
        return self.failure.hint if self.failure else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the failure's hint, for JSON."""
        return {**asdict(self), "hint": self.hint}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """Read what :meth:`to_dict` returned; leave unknown keys out, as a newer version may have written them."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        known["status"] = Status(known["status"])
        known["failure"] = Failure(known["failure"]) if known.get("failure") else None
        known["warnings"] = tuple(known.get("warnings", ()))
        return cls(**known)
