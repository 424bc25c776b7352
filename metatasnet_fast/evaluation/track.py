"""Score one track of named stems with BSSEval, as ``museval.eval_mus_track`` computes it, and with the metrics of whole
tracks."""

from __future__ import annotations

import importlib.util
import runpy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._extras import require
from .bss_eval import METRICS, SILENCE, BssScores, bss_eval
from .metrics import DEFAULT_WHOLE, WHOLE, whole_track_metrics
from .scores import TrackScores
from .signals import Audio, EvaluationError, Signals, warnings_of
from .tracks import AudioTrack, mixture_of

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
        engine: ``fast`` for this package's own, ``museval`` for the original package, which knows BSSEval only.
        device: where it is computed, in float64.

    Raises:
        EvaluationError: for a metric, rule or engine that is not known, or a device that is not there.
    """

    metrics: Sequence[str] = DEFAULT_METRICS
    silence: str = "museval"
    regularise: bool = False
    strict: bool = False
    engine: str = "fast"
    device: str = "cpu"

    def __post_init__(self) -> None:
        known = {metric.lower(): (metric,) for metric in ALL_METRICS} | {"all": ALL_METRICS, "bsseval": METRICS}
        unknown = [name for name in self.metrics if name.lower() not in known]
        if unknown or not self.metrics:
            raise EvaluationError(
                f"Metrics {', '.join(map(repr, unknown)) or 'are missing'}: choose from all, bsseval, {', '.join(ALL_METRICS)}."
            )
        metrics = tuple(dict.fromkeys(metric for name in self.metrics for metric in known[name.lower()]))
        object.__setattr__(self, "metrics", metrics)
        for what, value, choices in (("engine", self.engine, ENGINES), ("rule of silence", self.silence, SILENCE)):
            if value not in choices:
                raise EvaluationError(f"Unknown {what} {value!r}. Choose one of {', '.join(choices)}.")
        if self.engine == "museval" and (set(metrics) - set(METRICS) or self.silence != "museval" or self.regularise):
            raise EvaluationError(
                f"The engine museval computes {', '.join(METRICS)}, by its own rule of silence and not regularised: choose "
                "from these."
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise EvaluationError(f"The device {self.device} cannot be used ({reason}). Choose cpu.") from error

    def __call__(self, track: AudioTrack, estimates: Mapping[str, torch.Tensor]) -> TrackScores:
        references, found = (
            {stem: audio.to(self.device) for stem, audio in side.items()} for side in (track.stems, estimates)
        )
        settings = {name: getattr(self, name) for name in ("metrics", "silence", "regularise", "strict", "engine")}
        mixture = None if track.mixture is None else track.mixture.to(self.device)
        return evaluate_track(
            references, found, name=track.name, sample_rate=track.rate, mixture=mixture, warn=False, **settings
        )


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
    engine: str = "fast",
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
        window, hop: in seconds.
        metrics, strict, silence, regularise, engine: see :class:`Scoring`.
        mixture: what was separated, for SI-SDRi and log-WMSE; by default the sum of `references`.
        warn: whether to warn of what stands in ``result.notes``.

    Raises:
        EvaluationError: where an estimate has no reference; and what :class:`Scoring` and :func:`bss_eval` raise.
    """
    metrics = Scoring(metrics, silence, regularise, strict, engine).metrics
    unknown = [stem for stem in estimates if stem not in references]
    if unknown:
        raise EvaluationError(f"There is no reference for {', '.join(unknown)}. Leave these estimates out.")
    stems = [stem for stem in dict.fromkeys((*_ORDER, *references)) if stem in estimates]
    if not stems:
        raise EvaluationError(f"{name} has no estimated stem. Estimate one of {', '.join(references)}.")
    # museval scores accompaniment and vocals as a pair, apart from the other stems.
    others = [stem for stem in stems if stem != "accompaniment"]
    groups = [others, ["vocals", "accompaniment"]] if {"vocals", "accompaniment"} <= set(stems) else [stems]
    arrays = {stem: _samples_first(references[stem], f"reference of {stem}") for stem in references}
    found = {stem: _fit(_samples_first(estimates[stem], f"estimate of {stem}"), len(arrays[stem])) for stem in stems}
    by_frames = tuple(metric for metric in metrics if metric in METRICS)
    targets: dict[str, dict[str, NDArray[np.float64]]] = {}
    scored: list[BssScores] = []
    for group in groups if by_frames else []:
        if len(group) < 2 and len(groups) > 1:
            continue
        scores = ENGINES[engine](
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
            warn=False,
        )
        for index, stem in enumerate(group):
            # The pair's vocals come after the other stems, at museval's place.
            targets.pop(stem, None)
            targets[stem] = {metric: values[index] for metric, values in scores.values.items()}
        scored.append(scores)
    # Each stem once, in order, although both groups contain the vocals.
    silent = tuple(dict.fromkeys(source for scores in scored for source in scores.silent))
    bands = dict.fromkeys(band for scores in scored for band in scores.empty_bands if not regularise)
    found_warnings = warnings_of(silent, bands)
    notes = [*map(str, found_warnings)]
    if by_frames:
        notes += [REGULARISED] * regularise + [OWN_SILENCE] * (silence == "own")
    by_stem: dict[str, dict[str, float]] = {}
    if whole := [metric for metric in metrics if metric in WHOLE]:
        mixed = mixture_of(arrays) if mixture is None else _samples_first(mixture, "mixture")
        true = Signals([arrays[stem] for stem in stems], "references")
        made = Signals([found[stem] for stem in stems], "estimates")
        by_stem = dict(zip(stems, whole_track_metrics(true, made, mixed, sample_rate, whole), strict=True))
    for warning in found_warnings if warn else []:
        warnings.warn(warning, stacklevel=2)
    return TrackScores(name, targets, window, hop, silent=silent, whole=by_stem, notes=tuple(notes))


def _samples_first(audio: Audio, what: str) -> torch.Tensor:
    """Return (samples, channels) of a signal that may have its channels first, or no channel axis."""
    return Signals(audio[None], what).audio[0]


def _fit(estimate: torch.Tensor, samples: int) -> torch.Tensor:
    """Cut or zero-pad to the length of the reference, as stems may differ in length."""
    missing = samples - len(estimate)
    return estimate[:samples] if missing <= 0 else torch.nn.functional.pad(estimate, (0, 0, 0, missing))


def _museval(references: Sequence[torch.Tensor], estimates: Sequence[torch.Tensor], **settings: Any) -> BssScores:
    """Score with museval, called as museval.evaluate calls it for BSSEval v4. It always computes all four metrics."""
    package: Any = importlib.util.find_spec("museval") or require("museval", "The engine museval").__spec__
    # Import the module without its package, which needs the program ffmpeg.
    original = runpy.run_path(str(Path(package.submodule_search_locations[0], "metrics.py")))["bss_eval"]
    try:
        sdr, isr, sir, sar, _ = original(
            *(np.stack([np.asarray(signal.cpu(), np.float64) for signal in side]) for side in (references, estimates)),
            compute_permutation=False,
            window=settings["window"],
            hop=settings["hop"],
            framewise_filters=False,
            bsseval_sources_version=False,
        )
    except ValueError as error:
        stems = ", ".join(settings["names"])
        raise EvaluationError(f"museval refused the stems {stems} ({error}). The engine fast scores them.") from error
    return BssScores({"SDR": sdr, "ISR": isr, "SIR": sir, "SAR": sar})


ENGINES: dict[str, Callable[..., BssScores]] = {"fast": bss_eval, "museval": _museval}
