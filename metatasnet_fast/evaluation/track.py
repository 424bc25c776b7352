"""One track of named stems: BSSEval as ``museval.eval_mus_track`` computes it, and the metrics of whole tracks."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._extras import require
from .bss_eval import METRICS, SILENCE, bss_eval
from .metrics import DEFAULT_WHOLE, WHOLE, whole_track_metrics
from .scores import TrackScores
from .signals import Audio, EmptyBand, EvaluationError, Signals, SilentSource, warnings_of
from .tracks import AudioTrack, mixture_of

__all__ = ["ALL_METRICS", "DEFAULT_METRICS", "Scoring", "evaluate_track"]

ALL_METRICS = (*METRICS, *WHOLE)
DEFAULT_METRICS = (*METRICS, *DEFAULT_WHOLE)

REGULARISED = "Regularised: as if each reference carried white noise 60 dB below its own energy."
OWN_SILENCE = "A frame counts for a stem where that stem itself is not silent."
"""Notes that say what was asked for."""

_ORDER = ("vocals", "drums", "bass", "other", "accompaniment", "linear_mixture")


def _metric_names(names: Sequence[str]) -> tuple[str, ...]:
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
    warn: bool = True,
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

    What a reader of the scores must know, such as stems silent from end to end, is in ``result.notes`` and, if `warn`, warned
    about, see :func:`bss_eval`, which explains `silence` and `regularise` too.

    Raises :class:`EvaluationError` where an estimate has no reference, and what :func:`bss_eval` raises.
    """
    metrics = _metric_names(metrics)
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
    # Each once, in order, though both groups hold the vocals.
    silent: dict[SilentSource, None] = {}
    bands: dict[EmptyBand, None] = {}
    for group in groups if by_frames else []:
        if len(group) < 2 and len(groups) > 1:
            continue
        scores = bss_eval(
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
            # The pair's vocals come after the other stems, where museval writes them.
            targets.pop(stem, None)
            targets[stem] = {metric: scores[metric][index] for metric in by_frames}
        silent.update(dict.fromkeys(scores.silent))
        bands.update(dict.fromkeys(scores.empty_bands))
    found_warnings = warnings_of(silent, () if regularise else bands)
    notes = [*map(str, found_warnings)]
    if by_frames:
        notes += [REGULARISED] * regularise + [OWN_SILENCE] * (silence == "own")
    whole = [metric for metric in metrics if metric in WHOLE]
    by_stem: dict[str, dict[str, float]] = {}
    if whole:
        whole_mixture = mixture_of(arrays) if mixture is None else _samples_first(mixture, "mixture")
        signals = [
            Signals([side[stem] for stem in stems], what)
            for side, what in ((arrays, "references"), (found, "estimates"))
        ]
        values = whole_track_metrics(signals[0], signals[1], whole_mixture, sample_rate, whole)
        by_stem = dict(zip(stems, values, strict=True))
    for warning in found_warnings if warn else []:
        warnings.warn(warning, stacklevel=2)
    return TrackScores(name, targets, window, hop, silent=tuple(silent), whole=by_stem, notes=tuple(notes))


def _samples_first(audio: Audio, what: str) -> torch.Tensor:
    """(samples, channels) of a signal that may have its channels first, or none."""
    return Signals(audio[None], what).audio[0]


def _fit(estimate: torch.Tensor, samples: int) -> torch.Tensor:
    """Cut, or pad with zeros, to the length of the reference: each stem may be of a length of its own."""
    missing = samples - len(estimate)
    return estimate[:samples] if missing <= 0 else torch.nn.functional.pad(estimate, (0, 0, 0, missing))


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
        object.__setattr__(self, "metrics", _metric_names(self.metrics))
        for what, value, choices in (("engine", self.engine, ENGINES), ("rule of silence", self.silence, SILENCE)):
            if value not in choices:
                raise EvaluationError(f"Unknown {what} {value!r}. Choose one of {', '.join(choices)}.")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise EvaluationError(f"The device {self.device} cannot be used ({reason}). Choose cpu.") from error
        if self.engine == "museval" and set(self.metrics) - set(METRICS):
            raise EvaluationError(f"The engine museval computes {', '.join(METRICS)}: choose from these.")

    def __call__(self, track: AudioTrack, estimates: Mapping[str, torch.Tensor]) -> TrackScores:
        """Scores of one track; raises what :func:`evaluate_track` raises."""
        return ENGINES[self.engine](track, estimates, self)


def _fast(track: AudioTrack, estimates: Mapping[str, torch.Tensor], scoring: Scoring) -> TrackScores:
    references, found = ({name: x.to(scoring.device) for name, x in side.items()} for side in (track.stems, estimates))
    return evaluate_track(
        references,
        found,
        name=track.name,
        sample_rate=track.rate,
        metrics=scoring.metrics,
        strict=scoring.strict,
        silence=scoring.silence,
        regularise=scoring.regularise,
        mixture=None if track.mixture is None else track.mixture.to(scoring.device),
        warn=False,
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


def _museval(track: AudioTrack, estimates: Mapping[str, torch.Tensor], scoring: Scoring) -> TrackScores:
    """The original computes all four metrics, and refuses silent stems."""
    original = _museval_metrics().bss_eval
    names = [name for name in dict.fromkeys((*_ORDER, *track.stems)) if name in estimates]
    references, found = (
        np.stack([np.asarray(audio[name].T, np.float64) for name in names]) for audio in (track.stems, estimates)
    )
    try:
        # As museval.evaluate calls it for BSSEval v4.
        sdr, isr, sir, sar, _ = original(
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


ENGINES: dict[str, Callable[[AudioTrack, Mapping[str, torch.Tensor], Scoring], TrackScores]] = {
    "fast": _fast,
    "museval": _museval,
}
