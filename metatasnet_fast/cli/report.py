"""What a command that works through files says about each: sentences, or one JSON object per file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .inputs import Track

if TYPE_CHECKING:
    from ..separation import Separation

__all__ = ["Report"]


class Report:
    """Results go to standard output, errors and warnings to standard error.

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
            print(line, flush=True)

    def done(self, track: Track, separation: Separation, files: Mapping[str, Path]) -> None:
        self._audio += separation.duration
        self._time += separation.seconds
        kept = [stem for stem in files if stem not in separation.files]
        for warning in separation.warnings:
            print(f"metatasnet-fast: warning: {track.path}: {warning}", file=sys.stderr, flush=True)
        first = next(iter(separation.files.values()))
        self.say(
            f"{track.path}: {', '.join(separation.files)} in {first.parent}; "
            f"{_speed(separation.duration, separation.seconds)}" + (f"; {', '.join(kept)} kept" if kept else "")
        )
        self._emit("done", track, **{**separation.report(), "files": _text(files)}, kept=kept)

    def skipped(self, track: Track, files: Mapping[str, Path]) -> None:
        folder = next(iter(files.values())).parent
        self.say(f"{track.path}: skipped, its stems are in {folder}; --overwrite makes them anew")
        self._emit("skipped", track, files=_text(files), kept=list(files))

    def failed(self, track: Track, reason: str) -> None:
        print(f"metatasnet-fast: error: {reason}", file=sys.stderr, flush=True)
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
            entry = {"status": status, "input": str(track.path), "track": track.name, "error": None, **more}
            print(json.dumps(entry), flush=True)


def _speed(audio: float, time: float) -> str:
    return f"{audio:.1f} s of audio in {time:.1f} s, {audio / time:.1f} x real time"


def _text(files: Mapping[str, Path]) -> dict[str, str]:
    return {stem: str(path) for stem, path in files.items()}
