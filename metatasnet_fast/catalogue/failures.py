"""Types of failures, and the type of an exception."""

from __future__ import annotations

import enum
import errno
from pathlib import Path

from ..errors import (
    AudioFormatError,
    AudioReadError,
    EmptyAudioError,
    MetaTasNetError,
    NotAudioError,
    OutputError,
    ShapeError,
)

__all__ = ["Failure", "SongError", "classify", "unreadable"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a full disk, a quota that is used up, or a file system that is read-only."""


class Failure(str, enum.Enum):
    """Why a song failed."""

    not_found = "not_found"
    forbidden = "forbidden"
    not_audio = "not_audio"
    empty = "empty"
    too_long = "too_long"
    decode = "decode"
    does_not_fit = "does_not_fit"
    out_of_memory = "out_of_memory"
    write = "write"
    gone = "gone"
    taken = "taken"
    unknown = "unknown"

    @property
    def lasting(self) -> bool:
        """Return whether the same file would fail again: such a song is retried only when its file changes or on request."""
        return self in (Failure.not_audio, Failure.empty, Failure.too_long, Failure.decode)

    @property
    def worth_retrying(self) -> bool:
        """Return whether another attempt in the same run may succeed."""
        return self in (Failure.out_of_memory, Failure.unknown)

    @property
    def most_in_a_row(self) -> int | None:
        """Number of songs in a row that may fail in this way before the run stops; None where only the songs are the cause."""
        return MOST_IN_A_ROW.get(self)

    @property
    def hint(self) -> str:
        """Return a sentence that tells the owner of the catalogue what to do."""
        return HINTS[self]


HINTS = {
    Failure.not_found: "Check the address in the manifest.",
    Failure.forbidden: "Change the file's permissions, or the credentials of this machine.",
    Failure.not_audio: "Leave the file out of the manifest; it holds no audio.",
    Failure.empty: "Fetch or export the file again; it holds no samples.",
    Failure.too_long: "Raise --max-hours and add --retry-failed, or cut the file.",
    Failure.decode: "Fetch or export the file again; it is damaged, or in a format that cannot be decoded here.",
    Failure.does_not_fit: "Choose another --format for this song: the message says which holds it.",
    Failure.out_of_memory: "Use a smaller --batch-size or fewer --songs-in-flight, or a machine with more memory.",
    Failure.write: "Check the destination's free space, permissions and connection, then run the same command again.",
    Failure.gone: "Bring the destination back (mount it again), then run the same command again.",
    Failure.taken: "Use another DEST, or a table that gives each song an id of its own; --overwrite replaces the other song.",
    Failure.unknown: "Run the same command again; if it fails again, report it with the message.",
}

MOST_IN_A_ROW = {
    Failure.gone: 1,
    Failure.write: 16,
    Failure.unknown: 16,
    Failure.out_of_memory: 16,
    Failure.forbidden: 100,
    Failure.not_found: 100,
}
"""Separating a million songs that cannot be stored, or finding no file a million times, helps no one."""


FAILURES: tuple[tuple[tuple[type[Exception], ...], Failure], ...] = (
    ((EmptyAudioError,), Failure.empty),
    ((NotAudioError,), Failure.not_audio),
    ((AudioReadError, ShapeError), Failure.decode),
    ((AudioFormatError,), Failure.does_not_fit),
    ((OutputError,), Failure.write),
)
"""Errors and the failure that they stand for; the first row that fits counts."""


class SongError(MetaTasNetError):
    """A song cannot be separated, for a known type of reason."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


def classify(error: BaseException) -> tuple[Failure, str]:
    """The type of failure that an exception means, and one sentence about it."""
    from ..separation.batches import is_out_of_memory  # not above: counting what is done needs no torch

    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SongError):
        return error.failure, message
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    if any(map(is_out_of_memory, causes)):
        return Failure.out_of_memory, message
    for kinds, failure in FAILURES:
        if isinstance(error, kinds):
            return failure, message
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Failure.write, message
    return Failure.unknown, message if isinstance(error, MetaTasNetError) else f"{type(error).__name__}: {message}"


def unreadable(path: Path, error: AudioReadError) -> SongError:
    """Return what it means that a decoder finds nothing in a file that is not empty.

    If it does not begin as audio files do, it is no audio, whatever a decoder took it for; else it is damaged, or without
    samples.
    """
    from ..audio.headers import RECOGNISED_BY, recognise

    try:
        with open(path, "rb") as file:
            start = file.read(RECOGNISED_BY)
    except OSError:
        start = b""
    if recognise(start) is None:
        return SongError(Failure.not_audio, f"{path} does not begin as audio files do. ({error})")
    return SongError(Failure.empty if isinstance(error, EmptyAudioError) else Failure.decode, str(error))
