"""Who computes the metrics: our implementation, or the original package for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._extras import require
from .bss_eval import METRICS
from .musdb18 import MusdbTrack
from .scores import TrackScores
from .signals import EvaluationError
from .track import score_track

__all__ = ["ENGINES"]

Estimates: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
Engine: TypeAlias = Callable[[MusdbTrack, Estimates, Sequence[str], bool], TrackScores]


def _fast(track: MusdbTrack, estimates: Estimates, metrics: Sequence[str], strict: bool) -> TrackScores:
    return score_track(track.stems, estimates, name=track.name, sample_rate=track.rate, metrics=metrics, strict=strict)


def _museval(track: MusdbTrack, estimates: Estimates, metrics: Sequence[str], strict: bool) -> TrackScores:
    """The original computes all four metrics, and refuses silent stems."""
    museval = require("museval", "The engine museval")
    names = [name for name in ("vocals", "drums", "bass", "other") if name in estimates]
    references, found = (np.stack([audio[name] for name in names]) for audio in (track.stems, estimates))
    try:
        sdr, isr, sir, sar = museval.evaluate(references, found, win=track.rate, hop=track.rate, mode="v4")
    except ValueError as error:
        raise EvaluationError(f"museval refused {track.name} ({error}). The engine fast scores it.") from error
    values = {"SDR": sdr, "ISR": isr, "SIR": sir, "SAR": sar}
    targets = {name: {metric: values[metric][i] for metric in METRICS} for i, name in enumerate(names)}
    return TrackScores(track.name, targets)


ENGINES: dict[str, Engine] = {"fast": _fast, "museval": _museval}
