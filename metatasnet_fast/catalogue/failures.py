"""From whatever was raised to a type of failure and a sentence."""

from __future__ import annotations

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
from .outcome import Failure

__all__ = ["SongError", "classify", "unreadable"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a full disk, a quota that is used up, or a file system that is read-only."""


class SongError(MetaTasNetError):
    """A song cannot be separated, for a known type of reason."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


def classify(error: BaseException) -> tuple[Failure, str]:
    """The type of failure that an exception means, and one sentence about it."""
    from ..separation.batches import is_out_of_memory  # not above: counting what is done needs no torch

    message = " ".join(str(error).split()) or type(error).__name__
    chain = _causes(error)
    if isinstance(error, SongError):
        return error.failure, message
    if any(is_out_of_memory(cause) for cause in chain):
        return Failure.out_of_memory, message
    if isinstance(error, EmptyAudioError):
        return Failure.empty, message
    if isinstance(error, NotAudioError):
        return Failure.not_audio, message
    if isinstance(error, (AudioReadError, ShapeError)):
        return Failure.decode, message
    if isinstance(error, AudioFormatError):
        return Failure.does_not_fit, message
    if isinstance(error, OutputError):
        return Failure.write, message
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Failure.write, message
    if isinstance(error, MetaTasNetError):
        return Failure.unknown, message
    return Failure.unknown, f"{type(error).__name__}: {message}"


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


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__
    return found
