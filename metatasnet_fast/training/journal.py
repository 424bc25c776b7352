"""The journal of a run: ``log.jsonl`` with one object a line, and TensorBoard's files if asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from .._extras import require
from .._io import reporting_write_errors, write_atomically
from ..errors import TrainingError

__all__ = ["Journal", "read_journal"]

FILE = "log.jsonl"
KINDS = ("train", "valid")


class Journal:
    """Appends entries to ``RUN/log.jsonl``. A full disk does not end the run: an entry that cannot be written is
    written with the next one.

    Args:
        run: the run's folder.
        step: the step from which the run continues. Later entries are removed, as their steps are done again.
        tensorboard: also write ``RUN/tensorboard``.
        note: tells the user, once, that the log cannot be written for now.

    Raises:
        TrainingError: if the log cannot be opened.
        MissingDependencyError: for TensorBoard without its package.
    """

    def __init__(
        self, run: Path, step: int, tensorboard: bool = False, note: Callable[[str], None] = lambda text: None
    ) -> None:
        path = run / FILE
        entries = [entry for entry in read_journal(run) if entry["step"] <= step]
        with reporting_write_errors(path, TrainingError):
            write_atomically(path, "".join(_line(entry) for entry in entries))
            # Unbuffered, to know how much of a line a full disk accepted.
            self._file = path.open("ab", buffering=0)
        self._path, self._note, self._noted, self._waiting = path, note, False, b""
        self._board = _board(run / "tensorboard", step) if tensorboard else None

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Append ``{"step": step, "kind": kind, ...}``; values are numbers, or numbers by name."""
        self._waiting += _line({"step": step, "kind": kind, **values}).encode()
        self._flush()
        if self._board is None:
            return
        try:
            for name, value in values.items():
                for part, number in value.items() if isinstance(value, dict) else [("", value)]:
                    if isinstance(number, (int, float)) and math.isfinite(number):
                        self._board.add_scalar(f"{kind}/{name}{'/' if part else ''}{part}", number, step)
        except OSError as error:
            self._give_up_board(error)

    def close(self) -> None:
        """Write what is waiting, and close the files; what still cannot be written is said to be lost."""
        self._flush()
        if self._waiting:
            self._note(f"{self._path} lacks its last {self._waiting.count(10)} lines: they could not be written.")
        try:
            self._file.close()
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._note(f"The log could not be closed ({error}): its last lines may be missing.")

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]
            self._noted = False
        except OSError as error:
            if not self._noted:
                reason = error.strerror or error
                self._note(
                    f"{self._path} cannot be written ({reason}). Training goes on; its lines are kept and tried again."
                )
            self._noted = True

    def _give_up_board(self, error: OSError) -> None:
        """Stop writing for TensorBoard: its writer does not recover from an error."""
        self._board = None
        self._note(f"TensorBoard's files cannot be written ({error.strerror or error}). Training goes on without them.")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(run: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's log; none if there is no log. Damaged and incomplete lines are left out.

    Raises:
        TrainingError: if the log cannot be read.
    """
    path = run / FILE
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror or error}): check the folder.") from error
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if _is_entry(entry):
            entries.append(entry)
    return entries


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("step")) is int and value.get("kind") in KINDS


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(_finite(entry), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by null, as JSON has neither."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _board(folder: Path, step: int) -> Any:
    return require("torch.utils.tensorboard", "--tensorboard").SummaryWriter(str(folder), purge_step=step + 1)
