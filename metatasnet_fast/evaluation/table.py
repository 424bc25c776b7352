"""Scores as tables: in a terminal beside the published rows, in LaTeX, and as rows for CSV, Parquet and pandas."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._extras import require
from .._io import write_atomically
from .bss_eval import METRICS
from .scores import TrackScores
from .signals import EvaluationError
from .statistics import Comparison, Summary, summarise
from .track import OWN_SILENCE, REGULARISED

__all__ = [
    "PUBLISHED", "STEMS", "caveats", "comparison_table", "latex_table", "score_rows", "score_table", "write_rows"
]  # fmt: skip

STEMS = ("drums", "bass", "other", "vocals")


class Published(NamedTuple):
    """A published row: SDR in dB on the 50 test tracks of MUSDB18, of drums, bass, other, vocals and in the mean."""

    stems: tuple[float, float, float, float] | None
    mean: float
    source: str


PUBLISHED: dict[str, Published] = {
    "Wave-U-Net": Published((4.22, 3.21, 2.25, 3.25), 3.23, "README of Meta-TasNet"),
    "Open-Unmix": Published((5.73, 5.23, 4.02, 6.32), 5.33, "README of Meta-TasNet"),
    "MMDenseLSTM (more data)": Published((6.41, 5.16, 4.15, 6.60), 5.58, "README of Meta-TasNet"),
    "Meta-TasNet": Published((5.91, 5.58, 4.19, 6.40), 5.52, "README of Meta-TasNet"),
    "Spleeter, MWF (more data)": Published((6.71, 5.51, 4.55, 6.86), 5.91, "paper of Spleeter"),
    "X-UMX": Published((6.47, 5.43, 4.64, 6.61), 5.79, "README of asteroid"),
    "Open-Unmix, L (more data)": Published((7.15, 6.02, 4.89, 7.21), 6.32, "README of Open-Unmix"),
    "Hybrid Demucs": Published(None, 7.7, "README of Demucs"),
    "Band-Split RNN": Published(None, 8.2, "README of Demucs"),
    "HT Demucs (more data)": Published(None, 9.0, "README of Demucs"),
}
"""Each as its source gives it: BSSEval v4, median over frames and tracks; later papers print means over tracks of uSDR."""

_TEST_TRACKS = 50
_SHORT_FRAMES = 60
_NAME, _COLUMN = 34, 9


def score_table(tracks: Sequence[TrackScores], title: str = "this run") -> str:
    """Published SDR rows if the stems are MUSDB18's, then the scores of `tracks`, with every reason not to compare them."""
    summaries = summarise(tracks)
    stems = _ordered(summaries)
    lines = ["BSSEval v4 in dB: median over one-second frames, then median over tracks", ""]
    if set(STEMS) <= set(stems):
        lines += [
            _row("PUBLISHED (not measured here)", [*STEMS, "mean"]),
            *(_row(f"  {name}", _numbers([*(row.stems or [np.nan] * 4), row.mean])) for name, row in PUBLISHED.items()),
            "  SDR on MUSDB18, all 50 test tracks at full length; sources: PUBLISHED in metatasnet_fast.evaluation",
            "",
        ]
    lines.append(_row(f"MEASURED HERE: {title}", [*stems, "mean"]))
    for metric in _metrics(summaries):
        lines.append(
            _row(f"  {metric}{'' if metric in METRICS else ', mean over tracks'}", _cells(summaries, stems, metric))
        )
        if len(tracks) > 1 and metric in ("SDR", "uSDR"):
            lines.append(
                _row("    95 % of bootstraps over tracks", [_interval(summaries, stem, metric) for stem in stems])
            )
    lines += [
        _row("  tracks that count", [_count(summaries, stem, "tracks") for stem in stems]),
        _row("  frames that count", [_count(summaries, stem, "valid_frames") for stem in stems]),
        _row("  frames in all", [_count(summaries, stem, "frames") for stem in stems]),
        f"  {len(tracks)} tracks",
    ]
    warnings = caveats(tracks)
    return "\n".join([*lines, *([""] if warnings else []), *warnings, ""])


def latex_table(tracks: Sequence[TrackScores], title: str = "this run") -> str:
    """A ``tabular`` with a row for each metric and a column for each stem; it needs the package booktabs."""
    summaries = summarise(tracks)
    stems = _ordered(summaries)
    rows = [
        " & ".join([_escaped(metric), *_cells(summaries, stems, metric, "--")]) + r" \\"
        for metric in _metrics(summaries)
    ]
    return "\n".join(
        [
            f"% {title}: {len(tracks)} tracks",
            rf"\begin{{tabular}}{{l{'r' * (len(stems) + 1)}}}",
            r"\toprule",
            " & ".join(["metric", *map(_escaped, stems), "mean"]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def comparison_table(comparisons: Sequence[Comparison], names: tuple[str, str]) -> str:
    """Two sets of scores side by side, the differences, how likely they are chance, and the tracks that differ most."""
    lines = [_row("stem, metric", [names[0], names[1], "mean diff", "95 %", "p", "tracks"])]
    for item in comparisons:
        interval = f"{item.interval[0]:+.2f}..{item.interval[1]:+.2f}"
        numbers = [f"{item.first:.2f}", f"{item.second:.2f}", f"{item.difference:+.2f}", interval, f"{item.p:.3f}"]
        lines.append(_row(f"{item.stem}, {item.metric}", [*numbers, str(item.tracks)]))
        lines.append("  most: " + ", ".join(f"{name} {value:+.2f}" for name, value in item.extremes))
    return "\n".join([*lines, "", "p: two-sided permutation test of the signs of the tracks' differences", ""])


def score_rows(tracks: Sequence[TrackScores]) -> list[dict[str, Any]]:
    """A row for each track, stem and metric: ``pandas.DataFrame(score_rows(tracks))``."""
    return [
        {
            "track": track.name,
            "stem": stem,
            "metric": metric,
            "value": track.value(stem, metric),
            "valid_frames": track.valid_frames(stem, metric),
            "frames": track.frames(stem) if metric in METRICS else 0,
        }
        for track in tracks
        for stem in track.stems
        for metric in track.metrics(stem)
    ]


def write_rows(tracks: Sequence[TrackScores], path: str | os.PathLike[str]) -> Path:
    """Write :func:`score_rows` as ``.csv`` or ``.parquet``, or a table as ``.tex``, by the suffix of `path`.

    Raises:
        EvaluationError: for another suffix, or a file that cannot be written.
        MissingDependencyError: for Parquet without pyarrow.
    """
    path = Path(path)
    rows = score_rows(tracks)
    writers: Mapping[str, Callable[[], str | bytes]] = {
        ".csv": lambda: _csv(rows),
        ".parquet": lambda: _parquet(rows),
        ".tex": lambda: latex_table(tracks),
    }
    if path.suffix not in writers:
        raise EvaluationError(f"Scores cannot be written as {path.name}. Choose one of {', '.join(writers)}.")
    try:
        write_atomically(path, writers[path.suffix]())
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written ({error}). Choose a writable folder.") from error
    return path


def caveats(tracks: Sequence[TrackScores]) -> list[str]:
    """Sentences that say why these scores may not be set beside published ones; none for a full evaluation."""
    sentences = []
    frames = [max((track.frames(stem) for stem in track.targets), default=0) for track in tracks]
    if set(STEMS) <= {stem for track in tracks for stem in track.targets}:
        sentences += _not_comparable(tracks, frames)
    if any("accompaniment" in track.targets for track in tracks):
        sentences.append(
            "Vocals were scored against the accompaniment, not against the three other stems: more frames count than "
            "in a four-stem evaluation (silence in one instrument no longer voids a frame), which moves the median."
        )
    void = [
        track.name for track in tracks if track.targets and not any(track.valid_frames(s, "SDR") for s in track.targets)
    ]
    if void:
        sentences.append(f"Without a single frame that counts (a stem is silent): {', '.join(void)}.")
    return sentences


def _not_comparable(tracks: Sequence[TrackScores], frames: Sequence[int]) -> list[str]:
    sentences = []
    if not frames or np.median(frames) < _SHORT_FRAMES:
        seconds = float(np.median([count * track.hop for count, track in zip(frames, tracks, strict=True)] or [0]))
        sentences.append(
            f"NOT COMPARABLE WITH THE PUBLISHED ROWS: these are excerpts (half of them of {seconds:.0f} seconds or "
            "less), such as the 7-second excerpts of MUSDB18. Published scores are those of full tracks."
        )
    elif len(tracks) != _TEST_TRACKS:
        sentences.append(
            f"NOT COMPARABLE WITH THE PUBLISHED ROWS: {len(tracks)} tracks were scored, and the test set of MUSDB18 "
            f"has {_TEST_TRACKS}."
        )
    if any((track.window, track.hop) != (1, 1) for track in tracks):
        sentences.append("NOT COMPARABLE WITH THE PUBLISHED ROWS: frames are not one second long and one second apart.")
    if any(note in (REGULARISED, OWN_SILENCE) for track in tracks for note in track.notes):
        sentences.append("NOT COMPARABLE WITH THE PUBLISHED ROWS: another rule of silence, or a regularised solve.")
    return sentences


def _ordered(summaries: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    known = [stem for stem in STEMS if stem in summaries]
    return [*known, *(stem for stem in summaries if stem not in STEMS)]


def _metrics(summaries: Mapping[str, Mapping[str, Summary]]) -> list[str]:
    return list(dict.fromkeys(metric for by_metric in summaries.values() for metric in by_metric))


def _number(summaries: Mapping[str, Mapping[str, Summary]], stem: str, metric: str) -> float:
    """Return the number that is usually printed: the median of BSSEval, the mean of a metric of whole tracks."""
    summary = summaries[stem].get(metric)
    if summary is None:
        return float("nan")
    return summary.median if metric in METRICS else summary.mean


def _cells(
    summaries: Mapping[str, Mapping[str, Summary]], stems: Sequence[str], metric: str, missing: str = "-"
) -> list[str]:
    values = [_number(summaries, stem, metric) for stem in stems]
    main = [value for stem, value in zip(stems, values, strict=True) if stem in STEMS] or values
    return _numbers([*values, float(np.mean(main))], missing)


def _interval(summaries: Mapping[str, Mapping[str, Summary]], stem: str, metric: str) -> str:
    summary = summaries[stem].get(metric)
    if summary is None:
        return "-"
    low, high = summary.median_interval if metric in METRICS else summary.mean_interval
    return "-" if np.isnan(low) else f"{low:.1f}..{high:.1f}"


def _count(summaries: Mapping[str, Mapping[str, Summary]], stem: str, field: str) -> str:
    return str(max((getattr(summary, field) for summary in summaries[stem].values()), default=0))


def _numbers(values: Sequence[float], missing: str = "-") -> list[str]:
    return [missing if np.isnan(value) else f"{value:.2f}" for value in values]


def _row(name: str, cells: Sequence[str]) -> str:
    widths = [max(_COLUMN, len(cell) + 2) for cell in cells]
    return (name.ljust(_NAME) + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))).rstrip()


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("&", r"\&").replace("%", r"\%").replace("#", r"\#")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["track", "stem", "metric", "value", "valid_frames", "frames"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    arrow, parquet = require("pyarrow", "Writing Parquet"), require("pyarrow.parquet", "Writing Parquet")
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()
