"""From scores of tracks to numbers of a table: medians and means with their uncertainty, and two separators compared.

Intervals are those of the bootstrap over tracks (Efron 1979): the main uncertainty is which tracks a data set contains.
Two
separators are compared on the same tracks by a permutation test of the differences' signs (Fisher 1935), which assumes
nothing of their distribution. Both draw from a fixed seed, so that the same files give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bss_eval import METRICS
from .scores import TrackScores, statistic
from .signals import EvaluationError

__all__ = ["Comparison", "Summary", "compare", "summarise"]

DRAWS = 10_000
CONFIDENCE = 0.95


UNKNOWN = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Summary:
    """Statistics of a stem and a metric over tracks; NaN where no track counts. Intervals hold 95 % of the bootstraps."""

    median: float = float("nan")
    median_interval: tuple[float, float] = UNKNOWN
    mean: float = float("nan")
    mean_interval: tuple[float, float] = UNKNOWN
    tracks: int = 0
    """Tracks with a number."""
    valid_frames: int = 0
    """Frames that count, for a metric that is computed by frames."""
    frames: int = 0
    by_frames: bool = False

    @property
    def number(self) -> float:
        """Return the number that is usually printed: the median of BSSEval, the mean of a metric of whole tracks."""
        return self.median if self.by_frames else self.mean

    @property
    def interval(self) -> tuple[float, float]:
        return self.median_interval if self.by_frames else self.mean_interval


@dataclass(frozen=True)
class Comparison:
    """Two sets of scores of the same tracks, with their differences: second minus first."""

    stem: str
    metric: str
    tracks: int
    first: float
    """Median over these tracks."""
    second: float
    difference: float
    """Mean difference over these tracks, with its interval."""
    interval: tuple[float, float]
    p: float
    """Probability of a mean difference as large as this one if both were equally good."""
    extremes: tuple[tuple[str, float], ...]
    """Tracks that differ most, and by how much."""


def summarise(tracks: Iterable[TrackScores]) -> dict[str, dict[str, Summary]]:
    """Compute ``result[stem][metric]``. Medians over frames, then over tracks, skip NaN and equal those of
    ``museval.EvalStore``."""
    tracks = list(tracks)
    result: dict[str, dict[str, Summary]] = {}
    for stem in dict.fromkeys(stem for track in tracks for stem in track.stems):
        having = [track for track in tracks if stem in track.stems]
        result[stem] = {}
        for metric in dict.fromkeys(metric for track in having for metric in track.metrics(stem)):
            values = np.array([track.value(stem, metric) for track in having])
            values = values[~np.isnan(values)]
            result[stem][metric] = Summary(
                statistic(np.median, values),
                _interval(np.median, values),
                statistic(np.mean, values),
                _interval(np.mean, values),
                len(values),
                sum(track.valid_frames(stem, metric) for track in having),
                sum(track.frames(stem) for track in having),
                metric in METRICS,
            )
    return result


def compare(first: Sequence[TrackScores], second: Sequence[TrackScores], extremes: int = 3) -> list[Comparison]:
    """Compare two separators on the tracks, stems and metrics that both have.

    Raises:
        EvaluationError: if they have no track, or no number, in common.
    """
    others = {track.name: track for track in second}
    values: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for track in first:
        for stem, numbers in track.numbers().items() if track.name in others else ():
            for metric, value in numbers.items():
                pair = value, others[track.name].value(stem, metric)
                if np.isfinite(pair).all():
                    values.setdefault((stem, metric), {})[track.name] = pair
    if not values:
        raise EvaluationError(
            f"The {len(first)} tracks of the first scores and the {len(second)} of the second have no track with scores in "
            "common. Score the same tracks."
        )
    return [_comparison(stem, metric, by_track, extremes) for (stem, metric), by_track in values.items()]


def _comparison(stem: str, metric: str, values: Mapping[str, tuple[float, float]], extremes: int) -> Comparison:
    first, second = np.array(list(values.values())).T
    differences = second - first
    order = np.argsort(-np.abs(differences), kind="stable")[:extremes]
    names = list(values)
    return Comparison(
        stem,
        metric,
        len(values),
        statistic(np.median, first),
        statistic(np.median, second),
        statistic(np.mean, differences),
        _interval(np.mean, differences),
        _sign_test(differences),
        tuple((names[index], float(differences[index])) for index in order),
    )


def _interval(function: Callable[..., Any], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval of a bootstrap of the median or mean; of one track only, unknown."""
    if len(values) < 2 or not np.isfinite(values).all():
        return UNKNOWN
    drawn = values[np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))]
    low, high = np.quantile(function(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _sign_test(differences: NDArray[np.float64]) -> float:
    """Return the two-sided probability; exact up to 13 tracks, by random signs beyond."""
    count = len(differences)
    exact = 2**count <= DRAWS
    if exact:
        signs = 1.0 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWS, count))
    as_large = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    return float(as_large.mean() if exact else (1 + as_large.sum()) / (1 + DRAWS))
