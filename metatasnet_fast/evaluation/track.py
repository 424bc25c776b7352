"""One track of named stems: BSSEval as ``museval.eval_mus_track`` computes it, and the metrics of whole tracks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .bss_eval import METRICS, BssScores, measure
from .metrics import DEFAULT_WHOLE, WHOLE, whole_track_metrics
from .scores import TrackScores
from .signals import Audio, EvaluationError, Signals, SilentSource, SilentSourceWarning, silent_sentence

__all__ = ["ALL_METRICS", "DEFAULT_METRICS", "evaluate_track", "metric_names", "score_track"]

ALL_METRICS = (*METRICS, *WHOLE)
DEFAULT_METRICS = (*METRICS, *DEFAULT_WHOLE)

REGULARISED = "Regularised: as if each reference carried white noise 60 dB below its own energy."
OWN_SILENCE = "A frame counts for a stem where that stem itself is not silent."
"""Notes that say what was asked for."""

_ORDER = ("vocals", "drums", "bass", "other", "accompaniment", "linear_mixture")


def metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics that are meant, whatever their case; ``all`` for every one and ``bsseval`` for its four.

    Raises:
        EvaluationError: for a name that is none, or no name.
    """
    known = {metric.lower(): (metric,) for metric in ALL_METRICS} | {"all": ALL_METRICS, "bsseval": METRICS}
    unknown = [name for name in names if name.lower() not in known]
    if unknown or not names:
        raise EvaluationError(
            f"Metrics {', '.join(unknown) or 'are missing'}: choose from all, bsseval, {', '.join(ALL_METRICS)}."
        )
    return tuple(dict.fromkeys(metric for name in names for metric in known[name.lower()]))


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
    silence: str = "museval",
    regularise: bool = False,
    mixture: Audio | None = None,
) -> TrackScores:
    """Score every estimated stem of a track.

    references, estimates: stem name -> (samples, channels) or (channels, samples) or (samples,), NumPy or torch; the
    references all of one length. Stems without an estimate are left out, of the filters too. window, hop: in seconds. The
    order of the stems, in the filters and in the file, is musdb's: vocals, drums, bass, other, accompaniment, then the order
    of `references`. metrics: of BSSEval, and any of :mod:`.metrics`. mixture: what was separated, for SI-SDRi and log-WMSE;
    by default the sum of `references`.

    With both ``vocals`` and ``accompaniment`` among the estimates these two are scored as a pair of their own, and the
    pair's vocals replace those of the four stems, as in museval. SDR in a frame stays the same, but other frames
    count (silence in bass no longer voids a frame of vocals), so the medians are not comparable with those of a
    four-stem evaluation. A stem that is estimated alone has no interference: its SIR is NaN in the file.

    What a reader of the scores must know, such as stems silent from end to end, is in ``result.notes`` and warned about, see
    :func:`bss_eval`, which explains `silence` and `regularise` too.

    Raises :class:`EvaluationError` where an estimate has no reference, and what :func:`bss_eval` raises.
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
        silence=silence,
        regularise=regularise,
        mixture=mixture,
    )
    silent = silent_sentence(scores.silent) if scores.silent else None
    for note in set(scores.notes) - {REGULARISED, OWN_SILENCE}:
        warnings.warn(note, SilentSourceWarning if note == silent else UserWarning, stacklevel=2)
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
    silence: str = "museval",
    regularise: bool = False,
    mixture: Audio | None = None,
) -> TrackScores:
    """:func:`evaluate_track` without warnings, which a thread cannot collect for itself: read ``result.notes``."""
    metrics = metric_names(metrics)
    unknown = [stem for stem in estimates if stem not in references]
    if unknown:
        raise EvaluationError(f"There is no reference for {', '.join(unknown)}. Leave these estimates out.")
    stems = [stem for stem in dict.fromkeys((*_ORDER, *references)) if stem in estimates]
    if not stems:
        raise EvaluationError(f"{name} has no estimated stem. Estimate one of {', '.join(references)}.")
    pair: list[str] = [stem for stem in ("vocals", "accompaniment") if stem in stems]
    groups: list[list[str]] = [stems] if len(pair) < 2 else [[stem for stem in stems if stem != "accompaniment"], pair]
    arrays = {stem: _samples_first(references[stem], f"reference of {stem}") for stem in references}
    found = {stem: _fit(_samples_first(estimates[stem], f"estimate of {stem}"), len(arrays[stem])) for stem in stems}
    by_frames = tuple(metric for metric in metrics if metric in METRICS)
    targets: dict[str, dict[str, NDArray[np.float64]]] = {}
    silent: dict[SilentSource, None] = {}  # each once, in order, though both groups hold the vocals
    notes: dict[str, None] = {}
    for group in groups if by_frames else []:
        if len(group) < 2 and len(groups) > 1:
            continue
        scores: BssScores = measure(
            [arrays[stem] for stem in group],
            [found[stem] for stem in group],
            window=int(window * sample_rate),
            hop=int(hop * sample_rate),
            metrics=by_frames,
            names=group,
            strict=strict,
            silence=silence,
            regularise=regularise,
            sample_rate=sample_rate,
        )
        for index, stem in enumerate(group):
            # The pair's vocals come after the other stems, where museval writes them.
            targets.pop(stem, None)
            targets[stem] = {metric: scores[metric][index] for metric in by_frames}
        silent.update(dict.fromkeys(scores.silent))
        notes.update(dict.fromkeys(str(w) for w in scores.warnings() if not isinstance(w, SilentSourceWarning)))
    if silent:
        notes[silent_sentence(tuple(silent))] = None
    if regularise and by_frames:
        notes[REGULARISED] = None
    if silence == "own" and by_frames:
        notes[OWN_SILENCE] = None
    whole = [metric for metric in metrics if metric in WHOLE]
    by_stem: dict[str, dict[str, float]] = {}
    if whole:
        if mixture is None:
            parts = [array for stem, array in arrays.items() if stem not in ("accompaniment", "linear_mixture")]
            mixture = torch.stack(parts).sum(0)
        signals = [
            Signals([side[stem] for stem in stems], what)
            for side, what in ((arrays, "references"), (found, "estimates"))
        ]
        values = whole_track_metrics(signals[0], signals[1], _samples_first(mixture, "mixture"), sample_rate, whole)
        by_stem = dict(zip(stems, values, strict=True))
    return TrackScores(name, targets, window, hop, silent=tuple(silent), whole=by_stem, notes=tuple(notes))


def _samples_first(audio: Audio, what: str) -> torch.Tensor:
    """(samples, channels) of a signal that may have its channels first, or none."""
    return Signals(audio[None], what).audio[0]


def _fit(estimate: torch.Tensor, samples: int) -> torch.Tensor:
    """Cut, or pad with zeros, to the length of the reference: each stem may be of a length of its own."""
    missing = samples - len(estimate)
    return estimate[:samples] if missing <= 0 else torch.nn.functional.pad(estimate, (0, 0, 0, missing))
