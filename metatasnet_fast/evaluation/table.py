"""The table of the field as text: published rows, then one's own, and whether the two may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .bss_eval import METRICS
from .scores import Median, TrackScores, aggregate

__all__ = ["PUBLISHED", "STEMS", "caveats", "score_table"]

STEMS = ("drums", "bass", "other", "vocals")

PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    "Wave-U-Net": (4.22, 3.21, 2.25, 3.25),
    "Open-Unmix": (5.73, 5.23, 4.02, 6.32),
    "MMDenseLSTM": (6.41, 5.16, 4.15, 6.60),
    "Meta-TasNet": (5.91, 5.58, 4.19, 6.40),
}
"""SDR in dB of drums, bass, other, vocals; the table in the README of the authors' program."""

_TEST_TRACKS = 50
_SHORT_FRAMES = 60
_NAME, _COLUMN = 34, 9


def score_table(tracks: Sequence[TrackScores], title: str = "this run") -> str:
    """The published SDR rows and, apart from them, the scores of `tracks`, with every reason not to compare them."""
    medians = aggregate(tracks)
    stems = [*STEMS, *(stem for stem in medians if stem not in STEMS)]
    lines = [
        "BSSEval v4 in dB: median over one-second frames, then median over tracks",
        "",
        _row("PUBLISHED (not measured here)", [*STEMS, "mean"]),
        *(_row(f"  {name}, SDR", _numbers([*values, float(np.mean(values))])) for name, values in PUBLISHED.items()),
        "  MUSDB18, all 50 test tracks at full length; source: the README of the authors' program",
        "",
        _row(f"MEASURED HERE: {title}", [*STEMS, "mean", *stems[len(STEMS) :]]),
        *(_row(f"  {metric}", _measured(medians, metric, stems)) for metric in METRICS),
        _row("  tracks that count", _counts(medians, stems, "tracks")),
        _row("  frames that count", _counts(medians, stems, "valid_frames")),
        _row("  frames in all", _counts(medians, stems, "frames")),
        f"  {len(tracks)} tracks",
    ]
    warnings = caveats(tracks)
    return "\n".join([*lines, *([""] if warnings else []), *warnings, ""])


def caveats(tracks: Sequence[TrackScores]) -> list[str]:
    """Sentences that say why these scores may not be set beside published ones; none for a full evaluation."""
    sentences = []
    frames = [max((track.frames(stem) for stem in track.targets), default=0) for track in tracks]
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
    if any("accompaniment" in track.targets for track in tracks):
        sentences.append(
            "Vocals were scored against the accompaniment, not against the three other stems: more frames count than "
            "in a four-stem evaluation (silence in one instrument no longer voids a frame), which moves the median."
        )
    void = [track.name for track in tracks if all(not track.valid_frames(stem, "SDR") for stem in track.targets)]
    if void:
        sentences.append(f"Without a single frame that counts (a stem is silent): {', '.join(void)}.")
    return sentences


def _measured(medians: Mapping[str, Mapping[str, Median]], metric: str, stems: Sequence[str]) -> list[str]:
    values = [medians[stem][metric].value if stem in medians else float("nan") for stem in stems]
    mean = float(np.mean(values[: len(STEMS)]))
    return _numbers([*values[: len(STEMS)], mean, *values[len(STEMS) :]])


def _counts(medians: Mapping[str, Mapping[str, Median]], stems: Sequence[str], field: str) -> list[str]:
    values = [str(getattr(medians[stem]["SDR"], field)) if stem in medians else "-" for stem in stems]
    return [*values[: len(STEMS)], "", *values[len(STEMS) :]]


def _numbers(values: Sequence[float]) -> list[str]:
    return ["-" if np.isnan(value) else f"{value:.2f}" for value in values]


def _row(name: str, cells: Sequence[str]) -> str:
    widths = [max(_COLUMN, len(cell) + 2) for cell in cells]
    return (name.ljust(_NAME) + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))).rstrip()
