"""One track of named stems, scored as ``museval.eval_mus_track`` scores it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .bss_eval import METRICS, measure
from .scores import TrackScores
from .signals import Audio, EvaluationError, SilentSource, SilentSourceWarning, silence

__all__ = ["evaluate_track", "score_track"]

_ORDER = ("vocals", "drums", "bass", "other", "accompaniment", "linear_mixture")


def evaluate_track(
    references: Mapping[str, Audio],
    estimates: Mapping[str, Audio],
    *,
    name: str,
    sample_rate: float = 44100,
    window: float = 1.0,
    hop: float = 1.0,
    metrics: Sequence[str] = METRICS,
    strict: bool = False,
) -> TrackScores:
    """Score every estimated stem of a track.

    references, estimates: stem name -> (samples, channels), NumPy or torch; the references all of one length. Stems
    without an estimate are left out, of the filters too. window, hop: in seconds. The order of the stems, in the
    filters and in the file, is musdb's: vocals, drums, bass, other, accompaniment, then the order of `references`.

    With both ``vocals`` and ``accompaniment`` among the estimates these two are scored as a pair of their own, and the
    pair's vocals replace those of the four stems, as in museval. SDR in a frame stays the same, but other frames
    count (silence in bass no longer voids a frame of vocals), so the medians are not comparable with those of a
    four-stem evaluation.

    Stems silent from end to end are recorded in ``result.silent`` and warned about, see :func:`bss_eval`.

    Raises :class:`EvaluationError` where an estimate has no reference or fewer than two stems are estimated, and
    what :func:`bss_eval` raises.
    """
    scores = score_track(
        references,
        estimates,
        name=name,
        sample_rate=sample_rate,
        window=window,
        hop=hop,
        metrics=metrics,
        strict=strict,
    )
    if scores.silent:
        warnings.warn(silence(scores.silent), SilentSourceWarning, stacklevel=2)
    return scores


def score_track(
    references: Mapping[str, Audio],
    estimates: Mapping[str, Audio],
    *,
    name: str,
    sample_rate: float,
    window: float = 1.0,
    hop: float = 1.0,
    metrics: Sequence[str] = METRICS,
    strict: bool = False,
) -> TrackScores:
    """:func:`evaluate_track` without a warning, for threads: who calls reads ``result.silent``."""
    unknown = [stem for stem in estimates if stem not in references]
    if unknown:
        raise EvaluationError(f"There is no reference for {', '.join(unknown)}. Leave these estimates out.")
    stems: list[str] = [stem for stem in dict.fromkeys((*_ORDER, *references)) if stem in estimates]
    pair: list[str] = [stem for stem in ("vocals", "accompaniment") if stem in stems]
    groups: list[list[str]] = [stems] if len(pair) < 2 else [[stem for stem in stems if stem != "accompaniment"], pair]
    targets: dict[str, dict[str, NDArray[np.float64]]] = {}
    silent: dict[SilentSource, None] = {}  # each once, in order, though both groups hold the vocals
    for group in groups:
        if len(group) < 2 and len(groups) > 1:
            continue
        if len(group) < 2:
            raise EvaluationError(f"{name} has {len(group)} estimated stems. BSSEval needs at least two.")
        scores = measure(
            [references[stem] for stem in group],
            [_fit(estimates[stem], len(references[stem])) for stem in group],
            window=int(window * sample_rate),
            hop=int(hop * sample_rate),
            metrics=metrics,
            names=group,
            strict=strict,
        )
        for index, stem in enumerate(group):
            # The pair's vocals come after the other stems, where museval writes them.
            targets.pop(stem, None)
            targets[stem] = {metric: scores[metric][index] for metric in metrics}
        silent.update(dict.fromkeys(scores.silent))
    return TrackScores(name, targets, window, hop, silent=tuple(silent))


def _fit(estimate: Audio, samples: int) -> Audio:
    """Cut, or pad with zeros, to the length of the reference: each stem may be of a length of its own."""
    missing = samples - len(estimate)
    if missing <= 0:
        return estimate[:samples]
    if isinstance(estimate, torch.Tensor):
        return torch.nn.functional.pad(estimate, (0, 0, 0, missing))
    return np.pad(estimate, ((0, missing), (0, 0)))
