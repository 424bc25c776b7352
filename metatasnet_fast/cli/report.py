"""The report of a command about each file: sentences, or one JSON object per file."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._terminal import say
from ..errors import MetaTasNetError
from .inputs import Track

if TYPE_CHECKING:
    from ..separation import Separation

__all__ = ["Report", "print_result", "sentence_of"]

logger = logging.getLogger("metatasnet_fast")


def print_result(args: argparse.Namespace, text: str, **fields: Any) -> None:
    """Print the result of a command: a sentence, or with ``--json`` one object of ``fields`` instead."""
    print(json.dumps(fields) if args.json else text)


def sentence_of(error: Exception) -> str:
    """Return what went wrong in one sentence, also for what should not have been possible."""
    if isinstance(error, MetaTasNetError):
        return str(error)
    if isinstance(error, OSError):
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        reason = error.strerror or error
        return f"The system refuses{where} ({reason}): check the path, its permissions and the disk's room."
    logger.debug("unexpected", exc_info=error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__} ({text}): this is a fault of metatasnet-fast; please report it with the file."


class Report:
    """Results go to standard output, errors and warnings to standard error; where neither can be written, work goes on.

    With ``as_json`` standard output holds one object per file and line: ``status`` (``done``, ``skipped`` or ``failed``),
    ``input``, ``track``; ``files`` by stem and ``kept`` (stems that were there before) unless it failed; everything in
    ``Separation.report()`` if it is done; ``error`` (None, or a sentence).
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._counts = {"done": 0, "skipped": 0, "failed": 0}
        self._audio = self._time = 0.0

    @property
    def exit_code(self) -> int:
        return 3 if self._counts["failed"] else 0

    def say(self, line: str) -> None:
        """For people only."""
        if not self._as_json:
            say(_one_line(line), sys.stdout)

    def warn(self, text: str) -> None:
        """On standard error."""
        say(f"metatasnet-fast: warning: {_one_line(text)}", sys.stderr)

    def done(self, track: Track, separation: Separation, files: Mapping[str, Path]) -> None:
        self._audio += separation.duration
        self._time += separation.seconds
        kept = [stem for stem in files if stem not in separation.files]
        for warning in separation.warnings:
            self.warn(f"{track.label}: {warning}")
        first = next(iter(separation.files.values()))
        self.say(
            f"{track.label}: {', '.join(separation.files)} in {first.parent}; "
            f"{_speed(separation.duration, separation.seconds)}" + (f"; {', '.join(kept)} kept" if kept else "")
        )
        self._emit("done", track, **{**separation.report(), "files": _text(files)}, kept=kept)

    def skipped(self, track: Track, files: Mapping[str, Path]) -> None:
        folder = next(iter(files.values())).parent
        self.say(f"{track.label}: skipped, its stems are in {folder}; --overwrite makes them again")
        self._emit("skipped", track, files=_text(files), kept=list(files))

    def failed(self, track: Track, reason: str) -> None:
        say(f"metatasnet-fast: error: {_one_line(reason)}", sys.stderr)
        self._emit("failed", track, error=reason)

    def finish(self, engine: str) -> None:
        """One line about all files, if they are several; ``engine`` says what they were separated with."""
        if sum(self._counts.values()) < 2:
            return
        counts = ", ".join(f"{count} {status}" for status, count in self._counts.items())
        self.say(counts + (f"; {_speed(self._audio, self._time)} ({engine})" if self._time else ""))

    def _emit(self, status: str, track: Track, **more: Any) -> None:
        self._counts[status] += 1
        if self._as_json:
            entry = {
                "status": status,
                "input": track.input or str(track.path),
                "track": track.name,
                "error": None,
                **more,
            }
            say(json.dumps(entry), sys.stdout)


def _one_line(text: str) -> str:
    """Escape the line breaks of a text: names of files may contain them."""
    return text.replace("\n", "\\n")


def _speed(audio: float, time: float) -> str:
    return f"{audio:.1f} s of audio in {time:.1f} s, {audio / time:.1f} x real time"


def _text(files: Mapping[str, Path]) -> dict[str, str]:
    return {stem: str(path) for stem, path in files.items()}
