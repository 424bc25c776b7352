"""Write and read the scores of tracks, in museval's JSON files with some additions; compute statistics of the scores.

A file is ``<folder>/<subset>/<track>.json`` after ``musdb.schema.json`` of museval: ``museval.EvalStore`` reads these
files, and museval's files are read here. Metrics of whole tracks stand under ``track_metrics`` (stem -> metric ->
number), sentences that a reader must know under ``notes``; a key without content is left out.

Intervals come from the bootstrap over tracks (Efron 1979): the main uncertainty is which tracks a data set contains.
Two separators are compared on the same tracks by a permutation test of the signs of the differences (Fisher 1935),
which assumes nothing about their distribution. Both methods draw from a fixed seed, so that the same files give the
same numbers.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._io import reporting_write_errors, write_atomically
from ..errors import EvaluationError
from .bss_eval import METRICS

__all__ = ["Comparison", "Summary", "TrackScores", "compare", "load_scores", "summarise"]

MUSEVAL_VERSION = "0.4.1"
"""Version of museval that gives the same numbers and files; every file of scores names this version."""

DRAWS = 10_000
CONFIDENCE = 0.95
UNKNOWN = (float("nan"), float("nan"))
EXTREMES = 3
"""Number of tracks that a comparison names: those that differ most."""

_ORDER = ("SDR", "SIR", "SAR", "ISR")


@dataclass(frozen=True)
class TrackScores:
    """Scores of one track: ``targets[stem][metric]`` is a float64 array (frames,) in dB, NaN for invalid frames.

    `window` and `hop` are in seconds. A metric that was not computed is NaN in the file, whose readers expect all four.
    """

    name: str
    targets: Mapping[str, Mapping[str, NDArray[np.float64]]]
    window: float = 1.0
    hop: float = 1.0
    museval_version: str = MUSEVAL_VERSION
    whole: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """``whole[stem][metric]``: the metrics of whole tracks, see :mod:`.track`."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of these scores must know."""

    @property
    def stems(self) -> list[str]:
        return list(dict.fromkeys([*self.targets, *self.whole]))

    def metrics(self, stem: str) -> list[str]:
        return [*self.targets.get(stem, ()), *self.whole.get(stem, ())]

    def value(self, stem: str, metric: str) -> float:
        """Return the median over frames, or the metric of the whole track; NaN if the track has no such number."""
        whole = self.whole.get(stem, {})
        return whole[metric] if metric in whole else _statistic(np.median, self.counted(stem, metric))

    def numbers(self) -> dict[str, dict[str, float]]:
        """Return :meth:`value` of every stem and metric."""
        return {stem: {metric: self.value(stem, metric) for metric in self.metrics(stem)} for stem in self.stems}

    def frames(self, stem: str) -> int:
        return max((len(values) for values in self.targets.get(stem, {}).values()), default=0)

    def counted(self, stem: str, metric: str) -> NDArray[np.float64]:
        """Return the values of the valid frames, rounded as in a file."""
        stored = np.array([float(_rounded(value)) for value in self.targets.get(stem, {}).get(metric, ())])
        counted: NDArray[np.float64] = stored[~np.isnan(stored)]
        return counted

    def json(self) -> str:
        """Return the text of the file. Values are rounded to 1e-5 dB, half to even; infinity becomes NaN, as in museval."""
        content: dict[str, Any] = {
            "targets": [
                {"name": stem, "frames": [self._frame(stem, index) for index in range(self.frames(stem))]}
                for stem in self.targets
            ],
            "museval_version": self.museval_version,
        }
        content |= {key: found for key, found in (("track_metrics", self.whole), ("notes", self.notes)) if found}
        return re.sub(r'"\\u0000(.*?)"', r"\1", json.dumps(content, indent=2))

    def _frame(self, stem: str, index: int) -> dict[str, Any]:
        values = self.targets[stem]
        # Numbers are strings with a mark that json() removes: json.dumps would write 1.2 where museval writes 1.20000.
        metrics = {name: "\0" + (_rounded(values[name][index]) if name in values else "NaN") for name in _ORDER}
        return {"time": index * self.hop, "duration": self.window, "metrics": metrics}

    def write(self, folder: str | os.PathLike[str], subset: str = "test") -> Path:
        """Write ``folder/subset/name.json`` whole or not at all, and return its path.

        Raises:
            EvaluationError: if the file cannot be written, or the track's name cannot be a file name.
        """
        if self.name != os.path.basename(self.name) or not self.name:
            raise EvaluationError(f"{self.name!r} cannot be a file name. Give the track a name without slashes.")
        path = Path(folder) / subset / f"{self.name}.json"
        with reporting_write_errors(path, EvaluationError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.json())
        return path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrackScores:
        """Read a file of museval's or of :meth:`write`; raise :class:`EvaluationError` for any other file."""
        path = Path(path)
        try:
            return cls._parse(path.stem, json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"{path} is not a file of scores ({type(error).__name__}: {error}). Evaluate the track again."
            ) from error

    @classmethod
    def _parse(cls, name: str, content: dict[str, Any]) -> TrackScores:
        by_frame: dict[str, list[dict[str, Any]]] = {str(each["name"]): each["frames"] for each in content["targets"]}
        targets = {
            stem: {metric: np.array([float(frame["metrics"][metric]) for frame in found]) for metric in METRICS}
            for stem, found in by_frame.items()
        }
        frames = next(filter(None, by_frame.values()), [])
        window = frames[0]["duration"] if frames else 1.0
        hop = frames[1]["time"] - frames[0]["time"] if len(frames) > 1 else window
        # A metric without a number in any frame was not computed.
        known = [metric for metric in METRICS if any(np.isfinite(values[metric]).any() for values in targets.values())]
        targets = {stem: {metric: values[metric] for metric in known or METRICS} for stem, values in targets.items()}
        whole = {
            str(stem): {str(metric): float(value) for metric, value in values.items()}
            for stem, values in content.get("track_metrics", {}).items()
        }
        notes = tuple(str(note) for note in content.get("notes", ()))
        version = str(content.get("museval_version", MUSEVAL_VERSION))
        return cls(name, targets, window, hop, version, whole=whole, notes=notes)


def load_scores(folder: str | os.PathLike[str], subset: str | None = "test") -> list[TrackScores]:
    """Read all ``folder/subset/**/*.json`` in the order of their paths; with ``subset=None``, those of all subsets."""
    paths = sorted(Path(folder).glob(f"{'*' if subset is None else glob.escape(subset)}/**/*.json"))
    if not paths:
        raise EvaluationError(f"No scores in {Path(folder, subset or '')}. Name a folder of `score` or `evaluate`.")
    return [TrackScores.read(path) for path in paths]


@dataclass(frozen=True)
class Summary:
    """Statistics of a stem and metric over tracks, with 95 % intervals by bootstrap; NaN if no track has a number."""

    median: float = float("nan")
    median_interval: tuple[float, float] = UNKNOWN
    mean: float = float("nan")
    mean_interval: tuple[float, float] = UNKNOWN
    tracks: int = 0
    """Tracks with a number."""
    valid_frames: int = 0
    """Valid frames, for a metric that is computed by frames."""
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
    """Comparison of two sets of scores for one stem and metric on the same tracks; differences are second - first."""

    stem: str
    metric: str
    tracks: int
    first: float
    """Median of the first set over these tracks."""
    second: float
    difference: float
    """Mean difference over these tracks, with its interval."""
    interval: tuple[float, float]
    p: float
    """Probability of a mean difference as large as this one if both were equally good."""
    extremes: tuple[tuple[str, float], ...]
    """Tracks that differ most, and by how much."""


def summarise(tracks: Iterable[TrackScores]) -> dict[str, dict[str, Summary]]:
    """Return statistics as ``result[stem][metric]``. Medians over frames, and then over tracks, skip NaN, as in
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
                _statistic(np.median, values),
                _interval(np.median, values),
                _statistic(np.mean, values),
                _interval(np.mean, values),
                len(values),
                sum(len(track.counted(stem, metric)) for track in having),
                sum(track.frames(stem) for track in having),
                metric in METRICS,
            )
    return result


def compare(first: Sequence[TrackScores], second: Sequence[TrackScores]) -> list[Comparison]:
    """Compare two separators on the tracks, stems and metrics that both have.

    Raises:
        EvaluationError: if the two sets have no track, or no number, in common.
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
        raise EvaluationError("The two sets have no track with scores in common. Score the same tracks with both.")
    comparisons = []
    for (stem, metric), by_track in values.items():
        names, (one, other) = list(by_track), np.array(list(by_track.values())).T
        differences = other - one
        most = np.argsort(-np.abs(differences), kind="stable")[:EXTREMES]
        first_median, second_median = (_statistic(np.median, side) for side in (one, other))
        mean, interval = _statistic(np.mean, differences), _interval(np.mean, differences)
        named, p = tuple((names[index], float(differences[index])) for index in most), _sign_test(differences)
        comparisons.append(Comparison(stem, metric, len(names), first_median, second_median, mean, interval, p, named))
    return comparisons


def _interval(function: Callable[..., Any], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bootstrap interval of the median or mean; ``UNKNOWN`` for fewer than two values, or infinite ones."""
    if len(values) < 2 or not np.isfinite(values).all():
        return UNKNOWN
    drawn = values[np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))]
    low, high = np.quantile(function(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _sign_test(differences: NDArray[np.float64]) -> float:
    """Return p of the two-sided permutation test of signs: exact for at most 13 tracks, by random signs for more."""
    count = len(differences)
    exact = 2**count <= DRAWS
    if exact:
        signs = 1.0 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWS, count))
    as_large = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    return float(as_large.mean() if exact else (1 + as_large.sum()) / (1 + DRAWS))


def _statistic(function: Callable[..., Any], values: NDArray[np.float64]) -> float:
    """Return ``function`` (NumPy's median or mean) of the values; NaN if there are no values."""
    return float(function(values)) if values.size else float("nan")


def _rounded(value: float) -> str:
    return f"{value:.5f}" if np.isfinite(value) else "NaN"
