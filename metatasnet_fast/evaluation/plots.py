"""Boxplots of scores, one panel per metric and one box per stem. Needs matplotlib (the extra ``plots``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .._extras import require
from .scores import TrackScores
from .signals import EvaluationError
from .table import STEMS, caveats
from .track import ALL_METRICS

__all__ = ["plot_scores"]


def plot_scores(
    tracks: Sequence[TrackScores],
    path: str | os.PathLike[str],
    *,
    title: str = "scores",
    metrics: Sequence[str] = ALL_METRICS,
) -> Path:
    """Draw the tracks' numbers, medians over frames for BSSEval, and write the image (format by the suffix of `path`).

    A box spans the quartiles over tracks, its line is the median that tables print, each dot is one track. Tracks
    without a frame that counts are left out and counted below the stem. Raises :class:`MissingDependencyError`
    without matplotlib, :class:`EvaluationError` for no tracks, or none with one of `metrics`.
    """
    FigureCanvasAgg = require("matplotlib.backends.backend_agg", "A plot").FigureCanvasAgg
    Figure = require("matplotlib.figure", "A plot").Figure
    metrics = [
        metric for metric in metrics if any(metric in track.metrics(stem) for track in tracks for stem in track.stems)
    ]
    if not tracks or not metrics:
        raise EvaluationError(f"There is nothing to plot: {len(tracks)} tracks, and none has one of these metrics.")

    present = {stem for track in tracks for stem in track.stems}
    stems = [stem for stem in (*STEMS, *sorted(present - set(STEMS))) if stem in present]
    figure = Figure(figsize=(max(2.6, 0.75 * len(stems)) * len(metrics) + 0.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        values = {stem: [track.value(stem, metric) for track in tracks if stem in track.stems] for stem in stems}
        counted = {stem: [value for value in values[stem] if value == value] for stem in stems}
        panel.boxplot(list(counted.values()), widths=0.6, showfliers=False, medianprops={"color": "black"})
        for position, dots in enumerate(counted.values(), start=1):
            panel.plot([position] * len(dots), dots, "o", color="tab:blue", alpha=0.4, markersize=3)
        panel.set_title(metric)
        panel.set_ylabel("points of 100" if metric in ("bleedless", "fullness", "L1freq") else "dB")
        panel.set_xticks(
            range(1, len(stems) + 1), [_label(stem, len(counted[stem]), len(values[stem])) for stem in stems]
        )
        panel.tick_params(axis="x", labelsize="small")
        panel.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{title}: {len(tracks)} tracks")
    notes = caveats(tracks)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize="x-small", wrap=True)
    path = Path(path)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} could not be written ({error}). Check the folder and the suffix.") from error
    return path


def _label(stem: str, counted: int, total: int) -> str:
    return stem if counted == total else f"{stem}\n({total - counted} void)"
