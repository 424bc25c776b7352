"""Who computes the metrics: our implementation, or the original package for comparison."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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


def _museval(track: MusdbTrack, estimates: Estimates, metrics: Sequence[str], strict: bool) -> TrackScores:
    """The original computes all four metrics, and refuses silent stems."""
    bss_eval = _museval_metrics().bss_eval
    names = [name for name in ("vocals", "drums", "bass", "other") if name in estimates]
    references, found = (np.stack([audio[name] for name in names]) for audio in (track.stems, estimates))
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


ENGINES: dict[str, Engine] = {"fast": _fast, "museval": _museval}
