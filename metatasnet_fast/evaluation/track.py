"""Score one track of named stems: BSSEval as ``museval.eval_mus_track`` computes it, and the metrics of whole tracks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .bss_eval import METRICS, SILENCE, bss_eval
from .metrics import DEFAULT_WHOLE, WHOLE, whole_track_metrics
from .scores import TrackScores
from .signals import Audio, EvaluationError, Signals, warnings_of
from .tracks import mixture_of

__all__ = ["ALL_METRICS", "DEFAULT_METRICS", "Scoring", "evaluate_track"]

ALL_METRICS = (*METRICS, *WHOLE)
DEFAULT_METRICS = (*METRICS, *DEFAULT_WHOLE)

REGULARISED = "Regularised: as if each reference carried white noise 60 dB below its own energy."
OWN_SILENCE = "A frame counts for a stem where that stem itself is not silent."
"""Notes that tell which settings the user chose."""

_ORDER = ("vocals", "drums", "bass", "other", "accompaniment", "linear_mixture")


@dataclass(frozen=True)
class Scoring:
    """The metrics to compute and the settings that they depend on.

    Args:
        metrics: of :data:`ALL_METRICS`, whatever their case; ``all`` for every one, and ``bsseval`` for its four.
        silence, regularise: see :func:`bss_eval`.
        strict: whether a silent stem is an error.
        device: where it is computed, in float64; None for the device of the arrays.

    Raises:
        EvaluationError: for a metric or rule that is not known, or a device that is not there.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    silence: str = "museval"
    regularise: bool = False
    strict: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        known = {metric.lower(): (metric,) for metric in ALL_METRICS} | {"all": ALL_METRICS, "bsseval": METRICS}
        unknown = [name for name in self.metrics if name.lower() not in known]
        if unknown or not self.metrics:
            raise EvaluationError(
                f"Metrics {', '.join(map(repr, unknown)) or 'are missing'}: choose from all, bsseval, {', '.join(ALL_METRICS)}."
            )
        metrics = tuple(dict.fromkeys(metric for name in self.metrics for metric in known[name.lower()]))
        object.__setattr__(self, "metrics", metrics)
        if self.silence not in SILENCE:
            raise EvaluationError(
                f"The rule of silence {self.silence!r} is not known. Choose from {', '.join(SILENCE)}."
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise EvaluationError(f"The device {self.device} cannot be used ({reason}). Choose cpu.") from error


def evaluate_track(
    references: Mapping[str, Audio],
    estimates: Mapping[str, Audio],
    scoring: Scoring | None = None,
    *,
    name: str,
    sample_rate: float = 44100,
    mixture: Audio | None = None,
    warn: bool = True,
) -> TrackScores:
    """Score every estimated stem of a track.

    With both ``vocals`` and ``accompaniment`` among the estimates these two are scored as a pair of their own, and the
    pair's vocals replace those of the four stems, as in museval. SDR in a frame stays the same, but other frames
    count (silence in bass no longer voids a frame of vocals), so the medians are not comparable with those of a
    four-stem evaluation. A stem that is estimated alone has no interference: its SIR is NaN in the file.

    Args:
        references, estimates: stem name -> (samples, channels) or (channels, samples) or (samples,), NumPy or torch; the
            references all of one length. Stems without an estimate are left out, of the filters too. The order of the stems,
            in the filters and in the file, is musdb's, then that of `references`.
        scoring: what to compute, and how; by default BSSEval.
        mixture: what was separated, for SI-SDRi and log-WMSE; by default the sum of `references`.
        warn: whether to warn of what stands in ``result.notes``.

    Raises:
        EvaluationError: where an estimate has no reference; and what :func:`bss_eval` raises.
    """
    scoring = scoring or Scoring(METRICS)
    unknown = [stem for stem in estimates if stem not in references]
    if unknown:
        raise EvaluationError(f"There is no reference for {', '.join(unknown)}. Leave these estimates out.")
    stems = [stem for stem in dict.fromkeys((*_ORDER, *references)) if stem in estimates]
    if not stems:
        raise EvaluationError(f"{name} has no estimated stem. Estimate one of {', '.join(references)}.")
    true = {stem: _samples_first(references[stem], f"reference of {stem}", scoring.device) for stem in references}
    found = {stem: _samples_first(estimates[stem], f"estimate of {stem}", scoring.device) for stem in stems}
    found = {stem: _fit(estimate, len(true[stem])) for stem, estimate in found.items()}
    # museval scores accompaniment and vocals as a pair, apart from the other stems.
    groups = [stems]
    if {"vocals", "accompaniment"} <= set(stems):
        others = [stem for stem in stems if stem != "accompaniment"]
        groups = [others] * (len(others) > 1) + [["vocals", "accompaniment"]]
    by_frames = [metric for metric in scoring.metrics if metric in METRICS]
    targets: dict[str, dict[str, NDArray[np.float64]]] = {}
    scored = []
    for group in groups if by_frames else []:
        scores = bss_eval(
            [true[stem] for stem in group],
            [found[stem] for stem in group],
            window=int(sample_rate),
            hop=int(sample_rate),
            metrics=by_frames,
            names=group,
            strict=scoring.strict,
            silence=scoring.silence,
            regularise=scoring.regularise,
            sample_rate=sample_rate,
            warn=False,
        )
        for index, stem in enumerate(group):
            # The pair's vocals come after the other stems, at museval's place.
            targets.pop(stem, None)
            targets[stem] = {metric: values[index] for metric, values in scores.values.items()}
        scored.append(scores)
    # Each stem once, in order, although both groups contain the vocals.
    silent = dict.fromkeys(source for scores in scored for source in scores.silent)
    bands = dict.fromkeys(band for scores in scored for band in scores.empty_bands if not scoring.regularise)
    found_warnings = warnings_of(silent, bands)
    notes = [*map(str, found_warnings)]
    if by_frames:
        notes += [REGULARISED] * scoring.regularise + [OWN_SILENCE] * (scoring.silence == "own")
    whole: dict[str, dict[str, float]] = {}
    if metrics := [metric for metric in scoring.metrics if metric in WHOLE]:
        mixed = mixture_of(true) if mixture is None else _samples_first(mixture, "mixture", scoring.device)
        sides = Signals([true[stem] for stem in stems], "references"), Signals([*found.values()], "estimates")
        whole = dict(zip(stems, whole_track_metrics(*sides, mixed, sample_rate, metrics), strict=True))
    for warning in found_warnings if warn else []:
        warnings.warn(warning, stacklevel=2)
    return TrackScores(name, targets, whole=whole, notes=tuple(notes))


def _samples_first(audio: Audio, what: str, device: str | None) -> torch.Tensor:
    """Return (samples, channels) of a signal that may have its channels first, or no channel axis."""
    return Signals(audio[None], what).audio[0].to(device=device)


def _fit(estimate: torch.Tensor, samples: int) -> torch.Tensor:
    """Cut or zero-pad to the length of the reference, as stems may differ in length."""
    missing = samples - len(estimate)
    return estimate[:samples] if missing <= 0 else torch.nn.functional.pad(estimate, (0, 0, 0, missing))
