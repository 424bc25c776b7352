"""The scores of a track: museval's JSON files, byte for byte, followed by what museval does not have.

A file is ``<folder>/<subset>/<track>.json`` after ``musdb.schema.json`` of museval, so ``museval.EvalStore`` reads what
is written here and the other way round. Metrics of whole tracks stand under ``track_metrics`` (stem -> metric -> number),
what a reader must know under ``notes`` (sentences); both are left out where there are none.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._io import reporting_write_errors, write_atomically
from .bss_eval import METRICS
from .signals import EvaluationError

__all__ = ["MUSEVAL_VERSION", "TrackScores", "load_scores", "statistic"]

MUSEVAL_VERSION = "0.4.1"
"""The version of museval whose numbers and files these are; every file names it."""

_ORDER = ("SDR", "SIR", "SAR", "ISR")


@dataclass(frozen=True)
class TrackScores:
    """Scores of one track: ``targets[stem][metric]`` is a float64 array (frames,) in dB, NaN where no frame counts.

    `window` and `hop` are in seconds. A metric that was not computed is NaN in the file, whose readers expect all four.
    """

    name: str
    targets: Mapping[str, Mapping[str, NDArray[np.float64]]]
    window: float = 1.0
    hop: float = 1.0
    museval_version: str = MUSEVAL_VERSION
    whole: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """``whole[stem][metric]``: the metrics of :mod:`.metrics`."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of these scores must know."""

    @property
    def stems(self) -> list[str]:
        return list(dict.fromkeys([*self.targets, *self.whole]))

    def metrics(self, stem: str) -> list[str]:
        return [*self.targets.get(stem, ()), *self.whole.get(stem, ())]

    def value(self, stem: str, metric: str) -> float:
        """Return the one number of a track: the median over frames, or the metric of the whole track; NaN if there is none."""
        whole = self.whole.get(stem, {})
        return whole[metric] if metric in whole else statistic(np.median, self.counted(stem, metric))

    def numbers(self) -> dict[str, dict[str, float]]:
        """Return :meth:`value` of every stem and metric."""
        return {stem: {metric: self.value(stem, metric) for metric in self.metrics(stem)} for stem in self.stems}

    def frames(self, stem: str) -> int:
        return max((len(values) for values in self.targets.get(stem, {}).values()), default=0)

    def counted(self, stem: str, metric: str) -> NDArray[np.float64]:
        """Return the values of the frames that count, as stored in a file."""
        stored = np.array([float(_rounded(value)) for value in self.targets.get(stem, {}).get(metric, ())])
        counted: NDArray[np.float64] = stored[~np.isnan(stored)]
        return counted

    def valid_frames(self, stem: str, metric: str) -> int:
        return len(self.counted(stem, metric))

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
        # As strings with a mark, since json would write 1.2 where museval's files have 1.20000.
        metrics = {name: "\0" + (_rounded(values[name][index]) if name in values else "NaN") for name in _ORDER}
        return {"time": index * self.hop, "duration": self.window, "metrics": metrics}

    def write(self, folder: str | os.PathLike[str], subset: str = "test") -> Path:
        """Write ``folder/subset/name.json`` whole or not at all, and return its path.

        Raises:
            EvaluationError: if it cannot be written; no half-written file is left.
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
        """Read a file of museval's or of :meth:`write`; :class:`EvaluationError` if it is something else."""
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
    """Read all ``folder/subset/**/*.json``, of all subsets for None, in the order of their paths."""
    paths = sorted(Path(folder).glob(f"{'*' if subset is None else glob.escape(subset)}/**/*.json"))
    if not paths:
        where = Path(folder, subset or "")
        raise EvaluationError(f"No scores in {where}. Name a folder that `score` or `evaluate` wrote, or its subset.")
    return [TrackScores.read(path) for path in paths]


def statistic(function: Callable[..., Any], values: NDArray[np.float64]) -> float:
    """Return NumPy's median, or mean, of some numbers; NaN of none."""
    return float(function(values)) if values.size else float("nan")


def _rounded(value: float) -> str:
    return f"{value:.5f}" if np.isfinite(value) else "NaN"
