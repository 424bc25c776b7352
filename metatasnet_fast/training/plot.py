"""The picture of a run: loss, scores of every stem, learning rate. Needs matplotlib (the extra ``plots``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .._extras import require
from ..errors import TrainingError
from .folder import notes_of
from .journal import read_journal

__all__ = ["plot_run"]


Points = tuple[list[int], list[float]]


def plot_run(run: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Draw a run from its log, finished or not.

    Args:
        run: the run's folder.
        path: the image; its suffix says the format.

    Returns:
        the path.

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
    """Return steps and values of all entries that are numbers."""
    values = [(e["step"], e.get(name) if part is None else _parts(e, name).get(part)) for e in entries]
    known = [(step, value) for step, value in values if isinstance(value, (int, float))]
    return [step for step, _ in known], [value for _, value in known]


def _last_stage(entries: list[dict[str, Any]]) -> int:
    stages = (name[5:].split("/")[0] for entry in entries for name in _parts(entry, "si_sdr"))
    return max((int(stage) for stage in stages if stage.isdecimal()), default=0)


def _stems(entries: list[dict[str, Any]], last: int) -> list[str]:
    """Return the names of the stems in a log, in its order."""
    names = (name for entry in entries for name in _parts(entry, "si_sdr"))
    return list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(f"stage{last}/")))


def _parts(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """Return numbers by name; none for a damaged entry."""
    value = entry.get(name)
    return value if isinstance(value, dict) else {}


def _title(run: Path) -> str:
    """Return the folder's name, with the run's backend, device, precision and start as far as they are known."""
    about, name = notes_of(run), run.resolve().name
    known = [
        about[key] for key in ("backend", "device_name", "precision", "started") if isinstance(about.get(key), str)
    ]
    return f"{name}: {', '.join(known)}" if known else name
