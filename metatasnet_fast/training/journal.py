"""What a run writes about itself: ``log.jsonl`` with one object a line, and TensorBoard's files if asked for."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import MissingDependencyError, TrainingError

__all__ = ["Journal", "read_journal"]

FILE = "log.jsonl"


class Journal:
    """Appends entries to ``RUN/log.jsonl``.

    Args:
        run: the run's folder.
        step: the step that the run goes on from; entries beyond it, of steps that are done again, are removed.
        tensorboard: also write ``RUN/tensorboard``.

    Raises:
        TrainingError: if the log cannot be written.
        MissingDependencyError: for TensorBoard without its package.
    """

    def __init__(self, run: Path, step: int, tensorboard: bool = False) -> None:
        path = run / FILE
        entries = [entry for entry in read_journal(run) if entry["step"] <= step]
        try:
            temporary = path.with_name(f".{FILE}.part")
            temporary.write_text("".join(_line(entry) for entry in entries), "utf-8")
            os.replace(temporary, path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{path} cannot be written ({error}): choose another folder with --out.") from error
        self._board = _board(run / "tensorboard", step) if tensorboard else None

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Append ``{"step": step, "kind": kind, ...}``; values are numbers, or numbers by name."""
        self._file.write(_line({"step": step, "kind": kind, **values}))
        self._file.flush()
        if self._board is None:
            return
        for name, value in values.items():
            for part, number in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(number, (int, float)) and math.isfinite(number):
                    self._board.add_scalar(f"{kind}/{name}{'/' if part else ''}{part}", number, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's log; none if there is no log. A last line that was cut off is left out."""
    path = run / FILE
    if not path.exists():
        return []
    entries = []
    for line in path.read_text("utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(_finite(entry), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "--tensorboard needs the package tensorboard: pip install 'metatasnet-fast[training]'."
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
