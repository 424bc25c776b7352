"""Show scores as tables for a terminal (with published rows) or LaTeX, as rows for CSV, Parquet or pandas, as plots."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._extras import require
from .._io import reporting_write_errors, write_atomically
from ..errors import EvaluationError
from .bss_eval import METRICS
from .scores import Comparison, Summary, TrackScores, summarise
from .track import ALL_METRICS, OWN_SILENCE, REGULARISED

__all__ = [
    "PUBLISHED", "caveats", "comparison_table", "latex_table", "plot_scores", "score_rows", "score_table", "write_rows"
]  # fmt: skip

STEMS = ("drums", "bass", "other", "vocals")


PUBLISHED: dict[str, tuple[tuple[float, float, float, float] | None, float, str]] = {
    "Wave-U-Net": ((4.22, 3.21, 2.25, 3.25), 3.23, "README of Meta-TasNet"),
    "Open-Unmix": ((5.73, 5.23, 4.02, 6.32), 5.33, "README of Meta-TasNet"),
    "MMDenseLSTM (more data)": ((6.41, 5.16, 4.15, 6.60), 5.58, "README of Meta-TasNet"),
    "Meta-TasNet": ((5.91, 5.58, 4.19, 6.40), 5.52, "README of Meta-TasNet"),
    "Spleeter, MWF (more data)": ((6.71, 5.51, 4.55, 6.86), 5.91, "paper of Spleeter"),
    "X-UMX": ((6.47, 5.43, 4.64, 6.61), 5.79, "README of asteroid"),
    "Open-Unmix, L (more data)": ((7.15, 6.02, 4.89, 7.21), 6.32, "README of Open-Unmix"),
    "Hybrid Demucs": (None, 7.7, "README of Demucs"),
    "Band-Split RNN": (None, 8.2, "README of Demucs"),
    "HT Demucs (more data)": (None, 9.0, "README of Demucs"),
}
"""Published SDR in dB on the 50 test tracks of MUSDB18: for each of :data:`STEMS` (None if unknown), their mean, and
where the numbers were published. SDR is that of BSSEval v4, median over frames and tracks; later papers print the mean
of uSDR."""

_TEST_TRACKS, _SHORT_FRAMES = 50, 60
_NAME, _COLUMN = 34, 9


def score_table(tracks: Sequence[TrackScores], title: str = "this run") -> str:
    """Return the scores as a table, below published SDR rows if the stems are MUSDB18's, with reasons not to compare."""
    stems, rows = _rows(tracks)
    lines = ["BSSEval v4 in dB: median over one-second frames, then median over tracks", ""]
    if set(STEMS) <= set(stems):
        lines += [
            _row("PUBLISHED (not measured here)", [*STEMS, "mean"]),
            *(
                _row(f"  {name}", _numbers([*(row or [np.nan] * 4), mean]))
                for name, (row, mean, _) in PUBLISHED.items()
            ),
            "  SDR on MUSDB18, all 50 test tracks at full length; sources: PUBLISHED in metatasnet_fast.evaluation",
            "",
        ]
    lines.append(_row(f"MEASURED HERE: {title}", [*stems, "mean"]))
    for metric, (found, numbers) in rows.items():
        name = metric if metric in METRICS else f"{metric}, mean over tracks"
        lines.append(_row(f"  {name}", _numbers(numbers)))
        if len(tracks) > 1 and metric in ("SDR", "uSDR"):
            cells = ["-" if np.isnan(s.interval[0]) else f"{s.interval[0]:.1f}..{s.interval[1]:.1f}" for s in found]
            lines.append(_row("    95 % of bootstraps over tracks", cells))
    counts = {"tracks that count": "tracks", "frames that count": "valid_frames", "frames in all": "frames"}
    for name, field in counts.items():
        by_metric = [[getattr(summary, field) for summary in found] for found, _ in rows.values()]
        lines.append(_row(f"  {name}", [str(max(of_stem)) for of_stem in zip(*by_metric, strict=True)]))
    warnings = caveats(tracks)
    return "\n".join([*lines, f"  {len(tracks)} tracks", *([""] if warnings else []), *warnings, ""])


def latex_table(tracks: Sequence[TrackScores], title: str = "this run") -> str:
    """Return a ``tabular`` with a row for each metric and a column for each stem, for the LaTeX package booktabs."""
    stems, rows = _rows(tracks)
    table = {
        "metric": [*map(_escaped, stems), "mean"],
        **{m: _numbers(values, "--") for m, (_, values) in rows.items()},
    }
    head, *body = (" & ".join([_escaped(name), *cells]) + r" \\" for name, cells in table.items())
    columns = rf"\begin{{tabular}}{{l{'r' * (len(stems) + 1)}}}"
    top = [f"% {title}: {len(tracks)} tracks", columns, r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", ""])


def comparison_table(comparisons: Sequence[Comparison], names: tuple[str, str]) -> str:
    """Return two sets of scores side by side, with their differences and the tracks that differ most."""
    lines = [_row("stem, metric", [names[0], names[1], "mean diff", "95 %", "p", "tracks"])]
    for item in comparisons:
        interval = f"{item.interval[0]:+.2f}..{item.interval[1]:+.2f}"
        numbers = [f"{item.first:.2f}", f"{item.second:.2f}", f"{item.difference:+.2f}", interval, f"{item.p:.3f}"]
        lines.append(_row(f"{item.stem}, {item.metric}", [*numbers, str(item.tracks)]))
        lines.append("  most: " + ", ".join(f"{name} {value:+.2f}" for name, value in item.extremes))
    return "\n".join([*lines, "", "p: two-sided permutation test of the signs of the tracks' differences", ""])


def score_rows(tracks: Sequence[TrackScores]) -> list[dict[str, Any]]:
    """Return a dictionary for each track, stem and metric, as for ``pandas.DataFrame(score_rows(tracks))``."""
    return [
        {
            "track": track.name,
            "stem": stem,
            "metric": metric,
            "value": track.value(stem, metric),
            "valid_frames": len(track.counted(stem, metric)),
            "frames": track.frames(stem) if metric in METRICS else 0,
        }
        for track in tracks
        for stem in track.stems
        for metric in track.metrics(stem)
    ]


def write_rows(tracks: Sequence[TrackScores], path: str | os.PathLike[str]) -> Path:
    """Write the rows of :func:`score_rows` as ``.csv`` or ``.parquet``, or :func:`latex_table` as ``.tex``.

    The suffix of ``path`` chooses the format.

    Raises:
        EvaluationError: for another suffix, or a file that cannot be written.
        MissingDependencyError: for Parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise EvaluationError(f"Scores cannot be written as {path.name}. Choose one of {', '.join(WRITERS)}.")
    with reporting_write_errors(path, EvaluationError, "choose a writable folder"):
        write_atomically(path, WRITERS[path.suffix](tracks))
    return path


def plot_scores(tracks: Sequence[TrackScores], path: str | os.PathLike[str], title: str = "scores") -> Path:
    """Draw the tracks' numbers (for BSSEval, medians over frames) into an image, whose format is the suffix of `path`.

    A box spans the quartiles over tracks, the line in the box is the median, each dot is one track. Tracks without a
    number are left out; their count stands below the name of the stem.

    Raises:
        EvaluationError: if there is nothing to plot, or the file cannot be written.
    """
    figures = require("matplotlib.figure", "A plot")
    stems = _in_order(sorted({stem for track in tracks for stem in track.stems}))
    present = {metric for track in tracks for stem in track.stems for metric in track.metrics(stem)}
    metrics = [metric for metric in ALL_METRICS if metric in present]
    if not metrics:
        raise EvaluationError(f"There is nothing to plot: {len(tracks)} tracks without scores.")
    figure = figures.Figure(figsize=(max(2.6, 0.75 * len(stems)) * len(metrics) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        values = {stem: [track.value(stem, metric) for track in tracks if stem in track.stems] for stem in stems}
        counted = {stem: [value for value in values[stem] if value == value] for stem in stems}
        void = {stem: len(values[stem]) - len(counted[stem]) for stem in stems}
        labels = [f"{stem}\n({count} void)" if count else stem for stem, count in void.items()]
        panel.boxplot(list(counted.values()), widths=0.6, showfliers=False, medianprops={"color": "black"})
        for position, dots in enumerate(counted.values(), start=1):
            panel.plot([position] * len(dots), dots, "o", color="tab:blue", alpha=0.4, markersize=3)
        panel.set_title(metric)
        panel.set_ylabel("points of 100" if metric in ("bleedless", "fullness", "L1freq") else "dB")
        panel.set_xticks(range(1, len(stems) + 1), labels)
        panel.tick_params(axis="x", labelsize="small")
        panel.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{title}: {len(tracks)} tracks")
    figure.supxlabel("\n".join(caveats(tracks)), fontsize="x-small", wrap=True)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be written ({error}). Check the folder and the suffix.") from error
    return Path(path)


def caveats(tracks: Sequence[TrackScores]) -> list[str]:
    """Return sentences that say why these scores may not be compared with published scores; an empty list for a full
    evaluation."""
    stems = {stem for track in tracks for stem in track.targets}
    lengths = [max((track.frames(stem) for stem in track.targets), default=0) for track in tracks]
    reasons = []
    if not lengths or np.median(lengths) < _SHORT_FRAMES:
        seconds = np.median([count * track.hop for count, track in zip(lengths, tracks, strict=True)] or [0])
        reasons.append(
            f"these are excerpts (half of them of {seconds:.0f} seconds or less), such as the 7-second excerpts of MUSDB18. "
            "Published scores are those of full tracks."
        )
    elif len(tracks) != _TEST_TRACKS:
        reasons.append(f"{len(tracks)} tracks were scored, and the test set of MUSDB18 has {_TEST_TRACKS}.")
    if any((track.window, track.hop) != (1, 1) for track in tracks):
        reasons.append("frames are not one second long and one second apart.")
    if any(note in (REGULARISED, OWN_SILENCE) for track in tracks for note in track.notes):
        reasons.append("another rule of silence, or a regularised solve.")
    sentences = [f"NOT COMPARABLE WITH THE PUBLISHED ROWS: {why}" for why in reasons] if set(STEMS) <= stems else []
    if "accompaniment" in stems:
        sentences.append(
            "Vocals were scored against the accompaniment, not against the three other stems: more frames count than "
            "in a four-stem evaluation (silence in one instrument no longer voids a frame), which moves the median."
        )
    void = [
        track.name for track in tracks if track.targets and not any(len(track.counted(s, "SDR")) for s in track.targets)
    ]
    if void:
        sentences.append(
            "Without a single frame whose SDR counts (a stem is silent, or an estimate equals its true stem, which makes "
            f"the SDR infinite): {', '.join(void)}."
        )
    return sentences


def _rows(tracks: Sequence[TrackScores]) -> tuple[list[str], dict[str, tuple[list[Summary], list[float]]]]:
    """Return the stems; and by metric, the summaries of the stems, and the numbers of the stems followed by their mean.

    The mean is over MUSDB18's stems, or over all stems if none of these is there.
    """
    found = summarise(tracks)
    stems = _in_order(found)
    main = [stem for stem in stems if stem in STEMS] or stems
    rows = {}
    for metric in dict.fromkeys(metric for by_metric in found.values() for metric in by_metric):
        by_stem = {stem: found[stem].get(metric, Summary()) for stem in stems}
        mean = float(np.mean([by_stem[stem].number for stem in main]))
        rows[metric] = list(by_stem.values()), [*(summary.number for summary in by_stem.values()), mean]
    return stems, rows


def _in_order(stems: Iterable[str]) -> list[str]:
    """Return the stems in order: first MUSDB18's, then the others as they come."""
    found = list(stems)
    return list(dict.fromkeys(stem for stem in (*STEMS, *found) if stem in found))


def _numbers(values: Sequence[float], missing: str = "-") -> list[str]:
    return [missing if np.isnan(value) else f"{value:.2f}" for value in values]


def _row(name: str, cells: Sequence[str]) -> str:
    widths = [max(_COLUMN, len(cell) + 2) for cell in cells]
    return (name.ljust(_NAME) + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))).rstrip()


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("&", r"\&").replace("%", r"\%").replace("#", r"\#")


def _csv(tracks: Sequence[TrackScores]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["track", "stem", "metric", "value", "valid_frames", "frames"])
    writer.writeheader()
    writer.writerows(score_rows(tracks))
    return text.getvalue()


def _parquet(tracks: Sequence[TrackScores]) -> bytes:
    arrow, parquet = require("pyarrow", "Writing Parquet"), require("pyarrow.parquet", "Writing Parquet")
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(score_rows(tracks)), buffer)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Sequence[TrackScores]], str | bytes]] = {
    ".csv": _csv, ".parquet": _parquet, ".tex": latex_table
}  # fmt: skip
"""The function that writes each suffix of :func:`write_rows`."""
