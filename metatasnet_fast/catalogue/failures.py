"""Types of failures, and the failure that an exception means."""

from __future__ import annotations

import enum
import errno

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

__all__ = ["Failure", "SongError", "classify"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a full disk, a quota that is used up, or a file system that is read-only."""


LASTING, RETRIED = "lasting", "retried"


class Failure(str, enum.Enum):
    """Why a song failed.

    Attributes:
        hint: what the owner of the catalogue can do.
        lasting: whether the same file would fail again. The song is retried only if its file changes, or on request.
        worth_retrying: whether another attempt in the same run may succeed.
        most_in_a_row: number of songs in a row with this failure that stops the run, since separating songs that cannot
            be stored is useless; None if only the songs are the cause.
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
"""Errors and the failures that they mean; the first row that fits decides."""


class SongError(MetaTasNetError):
    """An error of a song that cannot be separated, with its :class:`Failure`."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


def classify(error: BaseException) -> tuple[Failure, str]:
    """Return the type of failure that an exception means, and one sentence about it."""
    from ..separation.devices import is_out_of_memory  # here, as other parts of a catalogue need no torch

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
