"""Write the log of a run, draw it, and define what a display of the run shows.

The log is ``log.jsonl``, with one object a line; TensorBoard's files are written, too, if they are asked for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._extras import require
from .._io import reporting_write_errors, to_json, write_atomically
from ..errors import TrainingError
from .settings import notes_of

if TYPE_CHECKING:
    from .validation import ValidationScore

__all__ = ["Display", "Journal", "Summary", "plot_run", "read_journal"]

FILE = "log.jsonl"
KINDS = ("train", "valid")


class Journal:
    """Log of a run, ``RUN/log.jsonl``. A full disk does not end the run: an entry that cannot be written is kept, and
    written with the next one.

    Args:
        run: the run's folder.
        step: the step from which the run continues. Later entries are removed, because their steps are done again.
        tensorboard: also write ``RUN/tensorboard``.
        note: called with a sentence for the user when the log cannot be written; not again until it could be written.

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
        """Append ``{"step": step, "kind": kind, ...}``; each value is a number, or a dictionary of numbers by name."""
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
            self._board = None  # TensorBoard's writer does not recover from an error
            reason = error.strerror or error
            self._note(f"TensorBoard's files cannot be written ({reason}). Training goes on without them.")

    def close(self) -> None:
        """Write the waiting entries and close the files; if entries still cannot be written, tell the user how many."""
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

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_journal(run: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's log; an empty list if there is no log. Damaged and incomplete lines are left out.

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
        if isinstance(entry, dict) and type(entry.get("step")) is int and entry.get("kind") in KINDS:
            entries.append(entry)
    return entries


def _line(entry: dict[str, Any]) -> str:
    return to_json(entry) + "\n"


def _board(folder: Path, step: int) -> Any:
    return require("torch.utils.tensorboard", "--tensorboard").SummaryWriter(str(folder), purge_step=step + 1)


Points = tuple[list[int], list[float]]


def plot_run(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Draw a run from its log, finished or not.

    Args:
        run: the run's folder.
        path: path of the image; its suffix chooses the format.

    Returns:
        the path of the image.

    Raises:
        TrainingError: if there is no log of a run, or the image cannot be written.
        MissingDependencyError: without matplotlib.
    """
    FigureCanvasAgg = require("matplotlib.backends.backend_agg", "A plot").FigureCanvasAgg
    Figure = require("matplotlib.figure", "A plot").Figure
    run, path = Path(run), Path(path)
    entries = read_journal(run)
    steps = [entry for entry in entries if entry["kind"] == "train"]
    scores = [entry for entry in entries if entry["kind"] == "valid"]
    if not entries:
        raise TrainingError(f"{run} holds no log of a run: give the folder that `train` was given as --out.")
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, rate), (train, valid) = figure.subplots(2, 2, sharex=True)
    loss.plot(*_points(steps, "loss"), color="black", linewidth=1)
    loss.set_title("loss")
    rate.plot(*_points(steps, "learning_rate"), color="black", linewidth=1)
    rate.set_title("learning rate")
    rate.set_ylim(bottom=0)
    last = _last_stage(steps)
    for index, stem in enumerate(_stems(entries, last)):
        colour = f"C{index}"
        train.plot(*_points(steps, "si_sdr", f"stage{last}/{stem}"), color=colour, linewidth=1, label=stem)
        valid.plot(*_points(scores, "sdr", stem), color=colour, marker="o", markersize=3, linewidth=1, label=stem)
    if scores:
        valid.plot(*_points(scores, "score"), color="black", linestyle=":", label="chosen by")
    train.set_title("training batches: SI-SDR of the last stage, dB")
    valid.set_title("validation: SDR of the last stage, dB")
    for panel in (loss, rate, train, valid):
        panel.grid(alpha=0.3)
    for panel in (train, valid):
        panel.legend(fontsize="small")
        panel.set_xlabel("step")
    figure.suptitle(_title(run))
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be written ({error}): check the folder and the suffix.") from error
    return path


def _points(entries: list[dict[str, Any]], name: str, part: str | None = None) -> Points:
    """Return the steps and the values of all entries in which ``name``, or the ``part`` of ``name``, is a number."""
    values = [(e["step"], e.get(name) if part is None else _parts(e, name).get(part)) for e in entries]
    known = [(step, value) for step, value in values if isinstance(value, (int, float))]
    return [step for step, _ in known], [value for _, value in known]


def _last_stage(entries: list[dict[str, Any]]) -> int:
    stages = (name[5:].split("/")[0] for entry in entries for name in _parts(entry, "si_sdr"))
    return max((int(stage) for stage in stages if stage.isdecimal()), default=0)


def _stems(entries: list[dict[str, Any]], last: int) -> list[str]:
    """Return the names of the stems of stage ``last``, in the order of the log."""
    names = (name for entry in entries for name in _parts(entry, "si_sdr"))
    return list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(f"stage{last}/")))


def _parts(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the dictionary under ``name`` in an entry; an empty one if there is none."""
    value = entry.get(name)
    return value if isinstance(value, dict) else {}


def _title(run: Path) -> str:
    """Return the name of a run's folder, with the run's backend, device, precision and time of start if these are
    known."""
    about, name = notes_of(run), run.resolve().name
    known = [
        about[key] for key in ("backend", "device_name", "precision", "started") if isinstance(about.get(key), str)
    ]
    return f"{name}: {', '.join(known)}" if known else name


@dataclass(frozen=True)
class Summary:
    """A line of the log: means over the steps since the line before."""

    step: int
    total: int | None
    loss: float
    sdr: dict[str, float]
    """SI-SDR in dB of the last stage's stems on training batches, by instrument. It is NaN for an instrument that the
    loss may use in no track."""
    learning_rate: float
    norm: float
    steps_per_second: float
    audio_per_second: float
    """Seconds of audio that the network learns from in a second."""
    remaining: float | None
    """Estimated seconds until the end; None if no end is set."""


class Display:
    """Display that shows nothing of a run; subclasses override the methods of the events that they show."""

    def preparing(self, what: str, done: int, total: int, unit: str) -> None:
        """Show the progress of a job that comes before the first step: of ``total`` units, ``done`` are done.

        ``what`` names the job, and ``unit`` names its units, such as ``items``.
        """

    def step(self, step: int, total: int | None, loss: float) -> None:
        """Show that step ``step`` of ``total`` was taken; ``total`` is None if only the clock ends the run."""

    def summary(self, summary: Summary) -> None:
        """Show the means over the steps since the last line of the log; called when a new line is written."""

    def validation(self, step: int, sdr: dict[str, float], score: ValidationScore, seconds: float, best: bool) -> None:
        """Show that the network was validated.

        Args:
            sdr: SDR in dB, by instrument.
            score: all scores.
            seconds: how long the validation took.
            best: True if this is the best score so far.
        """

    def note(self, text: str) -> None:
        """Show any other message, one sentence."""
