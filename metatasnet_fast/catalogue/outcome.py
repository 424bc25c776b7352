"""Define how a song ends: with a result or with a failure, and in each case with an outcome, a row of the ledger.

The result of a song is a file, written last, that says for which input, model and settings the song is done. Its name is
enough to decide whether the song is done, so that a listing of the destination is the index of all songs:

    result-KEY-CONTENT-STAMP-FILES-MILLISECONDS.json

    KEY            first 16 digits of the checksum of the model and settings (``Identity.key``)
    CONTENT        first 16 digits of the input's SHA-256
    STAMP          first 10 digits of the SHA-256 of the input's stamp (``Stamp.text``)
    FILES          first 10 digits of the SHA-256 of the names and sizes of all files
    MILLISECONDS   duration of the song

The file holds this:

    {"format_version": 1, "id": ..., "uri": ...,
     "input":    {"sha256", "stamp", "bytes", "codec"},
     "identity": {"model_name", "model_sha256", "settings": {...}}, "key": ...,
     "audio":    {"duration", "sample_rate", "channels", "samples"},
     "files":    {"drums": {"path", "bytes", "sha256", "clipped"}, ...},
     "gains":    {"drums": [per channel], ...},
     "seconds":  {"fetch", "read", "separate", "write"},
     "made_by":  {"version", "backend", "device", "precision"},
     "warnings": [...], "finished": "2026-01-01T00:00:00Z"}

Paths are relative to the file itself. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import datetime
import enum
import errno
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..errors import (
    AudioFormatError,
    AudioReadError,
    EmptyAudioError,
    MetaTasNetError,
    MissingDependencyError,
    NotAudioError,
    OutputError,
    ShapeError,
)
from .settings import Identity, digest, song_folder

__all__ = [
    "Failure", "Listed", "Outcome", "Result", "SongError", "Status", "StemFile", "classify", "is_result", "utc_now",
]  # fmt: skip

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers of a full disk, a quota that is used up, or a file system that is read-only."""

LASTING, RETRIED = "lasting", "retried"


class Failure(str, enum.Enum):
    """Why a song failed.

    Attributes:
        hint: what the owner of the catalogue can do.
        lasting: whether the same file would fail again. The song is retried only if its file changes, or on request.
        worth_retrying: whether another attempt in the same run may succeed.
        most_in_a_row: number of songs in a row with this failure after which the run stops. Then the cause lies outside
            the songs, and further songs would fail, too. None if the cause lies in the songs.
    """

    hint: str
    lasting: bool
    worth_retrying: bool
    most_in_a_row: int | None

    def __new__(cls, name: str, hint: str = "", kind: str | None = None, most_in_a_row: int | None = None) -> Failure:
        member = str.__new__(cls, name)
        member._value_, member.hint, member.most_in_a_row = name, hint, most_in_a_row
        member.lasting, member.worth_retrying = kind == LASTING, kind == RETRIED
        return member

    not_found = "not_found", "Check the address in the manifest.", None, 100
    forbidden = "forbidden", "Change the file's permissions, or the credentials of this machine.", None, 100
    not_audio = "not_audio", "Leave the file out of the manifest; it holds no audio.", LASTING
    empty = "empty", "Fetch or export the file again; it holds no samples.", LASTING
    too_long = "too_long", "Raise --max-hours and add --retry-failed, or cut the file.", LASTING
    decode = (
        "decode",
        "Fetch or export the file again, it is damaged or in a format that cannot be decoded here; of a file that is cut off, "
        "--partial with --retry-failed separates what is there.",
        LASTING,
    )
    does_not_fit = "does_not_fit", "Choose another --format for this song: the message says which holds it."
    out_of_memory = (
        "out_of_memory", "Use a smaller --batch-size or fewer --songs-in-flight, or a machine with more memory.", RETRIED, 16
    )  # fmt: skip
    missing_package = "missing_package", "Install what the message names, then run the same command again.", None, 16
    write = (
        "write",
        "Check the free space of the destination and of the folder for temporary files (TMPDIR), the permissions and the "
        "connection, then run the same command again.",
        None,
        16,
    )
    gone = "gone", "Bring the destination back (mount it again), then run the same command again.", None, 1
    taken = (
        "taken", "Use another DEST, or a table that gives each song an id of its own; --overwrite replaces the other song."
    )  # fmt: skip
    unknown = "unknown", "Run the same command again; if it fails again, report it with the message.", RETRIED, 16


FAILURES = {
    EmptyAudioError: Failure.empty,
    NotAudioError: Failure.not_audio,
    AudioReadError: Failure.decode,
    ShapeError: Failure.decode,
    MissingDependencyError: Failure.missing_package,
    AudioFormatError: Failure.does_not_fit,
    OutputError: Failure.write,
}
"""The failure that an exception of each type means. The first row that fits decides."""


class SongError(MetaTasNetError):
    """An error of a song that cannot be separated, with its :class:`Failure`."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


def classify(error: BaseException) -> tuple[Failure, str]:
    """Return the failure that an exception means, and one sentence about it."""
    from ..separation.devices import is_out_of_memory  # imported here: other users of this module need no torch

    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SongError):
        return error.failure, message
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    if any(map(is_out_of_memory, causes)):
        return Failure.out_of_memory, message
    for kind, failure in FAILURES.items():
        if isinstance(error, kind):
            return failure, message
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Failure.write, message
    return Failure.unknown, message if isinstance(error, MetaTasNetError) else f"{type(error).__name__}: {message}"


FORMAT_VERSION = 1
NAME = re.compile(r"result-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{10})-([0-9a-f]{10})-(\d+)\.json")
LONG, SHORT = 16, 10
"""Numbers of hexadecimal digits of the checksums in a name."""


def utc_now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Listed(NamedTuple):
    """The result in a song's folder, by the names and sizes of the files. If there is no result, the texts are empty."""

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
    """True if there is a result, and all files have the names and sizes that they had when it was written."""

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Listed:
        """Describe the result in a folder by the names and sizes of the folder's files, without reading a file."""
        found = {name: match for name in sizes if (match := NAME.fullmatch(name))}
        # Programs that display folders leave hidden files in them; a stem is never hidden.
        stems = {path: size for path, size in sizes.items() if path not in found and not path.startswith(".")}
        size = sum(stems.values())
        # Several results count as none. Only a killed run can leave these, on an object store.
        if len(found) != 1:
            return cls("", "", "", "", 0.0, size, False)
        [(name, match)] = found.items()
        key, content, stamp, files, milliseconds = match.groups()
        is_whole = files == _files_checksum(stems, sizes[name])
        return cls(name, sys.intern(key), content, stamp, int(milliseconds) / 1000, size, is_whole)

    def is_done(self, key: str) -> bool:
        """Return whether the song is done for a key, even if its input has changed since."""
        return self.is_whole and self.key == key[:LONG]

    def proves(self, key: str, stamp: str) -> bool:
        """Return whether the song is done for a key and an input with this stamp."""
        return self.is_done(key) and self.stamp == digest(stamp)[:SHORT]


def is_result(name: str) -> bool:
    """Return whether a file of this name is the result of a song."""
    return NAME.fullmatch(name) is not None


def _files_checksum(stems: Mapping[str, int], result: int) -> str:
    return digest(f"{result} " + " ".join(f"{name}:{size}" for name, size in sorted(stems.items())))[:SHORT]


@dataclass(frozen=True)
class StemFile:
    """The file of a stem; ``path`` is relative to the song's folder."""

    path: str
    bytes: int
    sha256: str
    clipped: int = 0
    """Number of samples that an integer format had to clip."""


@dataclass(frozen=True)
class Result:
    """The contents of a result; the top of this module describes the fields."""

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
        """Return the outcome of a song with this result: its row of the ledger."""
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
            # A result that lacks what a later run needs is not valid.
            complete = result.key == key and result.content and result.files and "stamp" in result.input
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return result if complete else None


class Status(str, enum.Enum):
    done = "done"
    """The song was separated in this run, and all its files are at the destination."""
    skipped = "skipped"
    """The song was done before, for this content, model and settings."""
    failed = "failed"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a song: a row of the ledger. Times are in seconds, sizes in bytes."""

    id: str
    uri: str
    status: Status
    key: str
    """Checksum of the model and settings of the attempt (``Identity.key``)."""
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
    """Wall-clock seconds in each stage: ``fetch``, ``read``, ``separate``, ``write``, ``publish``."""
    warnings: tuple[str, ...] = ()
    finished: str = field(default_factory=utc_now)
    """Time at which the song ended: UTC, ISO 8601."""

    @property
    def hint(self) -> str | None:
        return self.failure.hint if self.failure else None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, and the hint of the failure, for JSON."""
        return {**asdict(self), "hint": self.hint}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """Make an outcome from what :meth:`to_dict` returned. Unknown keys, as a newer version may write, are left
        out."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        known["status"] = Status(known["status"])
        known["failure"] = Failure(known["failure"]) if known.get("failure") else None
        known["warnings"] = tuple(known.get("warnings", ()))
        return cls(**known)
