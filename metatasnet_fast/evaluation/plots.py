"""Boxplots of scores, one panel per metric and one box per stem. Needs matplotlib (the extra ``plots``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .._extras import require
from .bss_eval import METRICS
from .scores import TrackScores
from .signals import EvaluationError
from .table import STEMS, caveats

__all__ = ["plot_scores"]


def plot_scores(
    tracks: Sequence[TrackScores],
    path: str | os.PathLike[str],
    *,
    title: str = "BSSEval v4",
    metrics: Sequence[str] = METRICS,
) -> Path:
    """Draw the tracks' medians over frames and write the image (format by the suffix of `path`); returns the path.

    A box spans the quartiles over tracks, its line is the median that tables print, each dot is one track. Tracks
    without a frame that counts are left out and counted below the stem. Raises :class:`MissingDependencyError`
    without matplotlib, :class:`EvaluationError` for no tracks or a metric that is not one.
    """
    FigureCanvasAgg = require("matplotlib.backends.backend_agg", "A plot").FigureCanvasAgg
    Figure = require("matplotlib.figure", "A plot").Figure
    unknown = [metric for metric in metrics if metric not in METRICS]
    if not tracks or unknown or not metrics:
        raise EvaluationError(f"There is nothing to plot: {len(tracks)} tracks, metrics {list(metrics)}.")

    present = {stem for track in tracks for stem in track.targets}
    stems = [stem for stem in (*STEMS, *sorted(present - set(STEMS))) if stem in present]
    figure = Figure(figsize=(max(2.6, 0.75 * len(stems)) * len(metrics) + 0.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        values = {stem: [track.median(stem, metric) for track in tracks if stem in track.targets] for stem in stems}
        counted = {stem: [value for value in values[stem] if value == value] for stem in stems}
        panel.boxplot(list(counted.values()), widths=0.6, showfliers=False, medianprops={"color": "black"})
        for position, dots in enumerate(counted.values(), start=1):
            panel.plot([position] * len(dots), dots, "o", color="tab:blue", alpha=0.4, markersize=3)
        panel.set_title(metric)
        panel.set_ylabel("dB")
        panel.set_xticks(
            range(1, len(stems) + 1), [_label(stem, len(counted[stem]), len(values[stem])) for stem in stems]
        )
        panel.tick_params(axis="x", labelsize="small")
        panel.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{title}: medians over frames of {len(tracks)} tracks")
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
