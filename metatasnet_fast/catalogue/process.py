"""The parent's end of a worker's process: lines to it, lines from it, and what its end means."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .events import Event, Notice, SongEnded, SongStarted, StageLoad, WorkerLoad
from .outcome import Outcome

__all__ = ["ChildProcess", "unpack"]

LOG = logging.getLogger(__name__)
END_SECONDS = 10.0
"""For the process to end by itself when it has nothing left to do."""

PACKAGE = Path(__file__).resolve().parents[2]


class ChildProcess:
    """A running ``catalogue.child``. Its standard error goes to the log (level debug); the last lines are kept."""

    def __init__(self, order: dict[str, Any], command: list[str] | None = None) -> None:
        paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "metatasnet_fast.catalogue.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Every thread of glibc's allocator keeps memory of its own, and there are many threads.
            env={"MALLOC_ARENA_MAX": "2", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the parent to deal with
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self.pid = self._process.pid
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._tail: deque[str] = deque(maxlen=20)
        self._asked = False
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send(order)

    def send(self, message: dict[str, Any]) -> None:
        """A process that has ended takes nothing: that is learnt from ``receive``."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message, ``{"gone": true}`` after the last; None if there is none for so many seconds."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def ask_to_stop(self) -> None:
        """Begin no further song; a second call does nothing."""
        if not self._asked:
            self._asked = True
            self.send({"stop": True})

    def end(self) -> Iterator[dict[str, Any]]:
        """Let the process end, as it has no song in flight, and end it if it does not; yields its last messages."""
        self.send({"end": True})
        deadline = time.monotonic() + END_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if message is not None:
                if "gone" in message:
                    break
                yield message
        else:
            LOG.warning("The worker's process did not end by itself and was killed.")
        self.kill()

    def kill(self) -> None:
        """End the process at once, and release everything."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._errors.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()

    @property
    def signal(self) -> int | None:
        """The signal that ended the process, if one did."""
        code = self._process.returncode
        return -code if code is not None and code < 0 else None

    def obituary(self) -> str:
        """How the process ended, in a few words."""
        code = self._process.wait()
        if code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
            return f"signal {-code}"
        self._errors.join()
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        return f"exit code {code}" + (f": {last.strip()[:200]}" if last else "")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._messages.put(json.loads(line))
            except ValueError:
                break  # cut off by the process's end
        self._messages.put({"gone": True})

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._tail.append(line)
            LOG.debug("worker %d: %s", self.pid, line.rstrip())


def unpack(values: dict[str, Any]) -> Event:
    """The event that a child sent as JSON."""
    values = dict(values)
    kind = values.pop("event")
    if kind == SongStarted.kind:
        return SongStarted(**values)
    if kind == SongEnded.kind:
        return SongEnded(Outcome.from_dict(values), values["worker"], values["time"])
    if kind == Notice.kind:
        return Notice(**values)
    values["stages"] = {name: StageLoad(**stage) for name, stage in values["stages"].items()}
    return WorkerLoad(**values)
