"""Implementations of the metrics: our own, or the original package for comparison."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from .._extras import require
from .bss_eval import METRICS, SILENCE
from .scores import TrackScores
from .signals import EvaluationError
from .track import DEFAULT_METRICS, metric_names, score_track
from .tracks import AudioTrack

__all__ = ["ENGINES", "Scoring"]

Estimates: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Scoring:
    """The metrics to compute and the settings that they depend on.

    Args:
        metrics: see :func:`.track.metric_names`; SDR alone takes a fiftieth of the time of all four of BSSEval.
        silence, regularise: see :func:`bss_eval`.
        strict: whether a silent stem is an error.
        engine: ``fast`` for this package's own, ``museval`` for the original package, which knows BSSEval only.
        device: where it is computed, in float64.

    Raises:
        EvaluationError: for a metric, rule or engine that is not known.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    silence: str = "museval"
    regularise: bool = False
    strict: bool = False
    engine: str = "fast"
    device: str = "cpu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", metric_names(self.metrics))
        for what, value, choices in (("engine", self.engine, ENGINES), ("rule of silence", self.silence, SILENCE)):
            if value not in choices:
                raise EvaluationError(f"Unknown {what} {value!r}. Choose one of {', '.join(choices)}.")
        if self.engine == "museval" and set(self.metrics) - set(METRICS):
            raise EvaluationError(f"The engine museval computes {', '.join(METRICS)}: choose from these.")

    def __call__(self, track: AudioTrack, estimates: Estimates) -> TrackScores:
        """Scores of one track; raises what :func:`evaluate_track` raises."""
        return ENGINES[self.engine](track, estimates, self)


def _fast(track: AudioTrack, estimates: Estimates, scoring: Scoring) -> TrackScores:
    references, found = ({name: x.to(scoring.device) for name, x in side.items()} for side in (track.stems, estimates))
    return score_track(
        references,
        found,
        name=track.name,
        sample_rate=track.rate,
        metrics=scoring.metrics,
        strict=scoring.strict,
        silence=scoring.silence,
        regularise=scoring.regularise,
        mixture=None if track.mixture is None else track.mixture.to(scoring.device),
    )


def _museval_metrics() -> Any:
    """Return museval's metrics without the package around them, which cannot be imported without the program ffmpeg."""
    package = importlib.util.find_spec("museval")
    if package is None or not package.submodule_search_locations:
        return require("museval.metrics", "The engine museval")
    path = Path(package.submodule_search_locations[0], "metrics.py")
    spec = importlib.util.spec_from_file_location("museval_metrics", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _museval(track: AudioTrack, estimates: Estimates, scoring: Scoring) -> TrackScores:
    """The original computes all four metrics, and refuses silent stems."""
    bss_eval = _museval_metrics().bss_eval
    names = [name for name in dict.fromkeys(("vocals", "drums", "bass", "other", *track.stems)) if name in estimates]
    references, found = (
        np.stack([np.asarray(audio[name].T, np.float64) for name in names]) for audio in (track.stems, estimates)
    )
    try:
        # As museval.evaluate calls it for BSSEval v4.
        sdr, isr, sir, sar, _ = bss_eval(
            references,
            found,
            compute_permutation=False,
            window=track.rate,
            hop=track.rate,
            framewise_filters=False,
            bsseval_sources_version=False,
        )
    except ValueError as error:
        raise EvaluationError(f"museval refused {track.name} ({error}). The engine fast scores it.") from error
    values = {"SDR": sdr, "ISR": isr, "SIR": sir, "SAR": sar}
    targets = {name: {metric: values[metric][i] for metric in METRICS} for i, name in enumerate(names)}
    return TrackScores(track.name, targets)


ENGINES: dict[str, Callable[[AudioTrack, Estimates, Scoring], TrackScores]] = {"fast": _fast, "museval": _museval}
