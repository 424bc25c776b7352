"""Score one track of named stems: BSSEval as ``museval.eval_mus_track`` computes it, and metrics of the whole track.

Metrics of the whole track are one number for a stem. Below, ``s`` is the reference, ``e`` the estimate, ``m`` the
mixture, and sums run over samples and channels:

    uSDR = 10 log10(sum s^2 / sum (s - e)^2)                          Mitsufuji et al. 2022: the ratio of a whole track
    MDX = 10 log10((sum s^2 + 1e-7) / (sum (s - e)^2 + 1e-7))         the same, as the Music Demixing Challenges rank by it
    SI-SDR = 10 log10(sum (a s)^2 / sum (a s - e)^2), a = sum e s / sum s^2        Le Roux et al. 2019, means not removed
    SI-SDRi = SI-SDR of e minus SI-SDR of m
    bleedless = 100 / (1 + mean of the positive d), fullness = 100 / (1 - mean of the negative d), where
        d = mel(e) - mel(s) in dB of magnitudes of 512 mel bands (frames of 4096 every 1024), at most 80 dB below their peak
    L1freq = 100 / (1 + 10 mean | |STFT e| - |STFT s| |), frames of 2048 every 1024, not windowed
    log-WMSE: the package log-wmse-audio-quality, by its authors

bleedless, fullness and L1freq are those of the program Music-Source-Separation-Training (utils/metrics.py). With a
silent reference, uSDR and SI-SDR are NaN; with a silent estimate, SI-SDR is NaN. The other metrics have a value for
silence, too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from .._extras import require
from ..errors import EvaluationError, ShapeError
from .bss_eval import METRICS, SILENCE, Audio, BssScores, Signals, bss_eval, require_finite
from .scores import TrackScores
from .tracks import mixture_of

__all__ = ["ALL_METRICS", "DEFAULT_METRICS", "Scoring", "evaluate_track"]

MDX_EPSILON = 1e-7
PIECE = 1 << 20
"""Samples that are read at a time."""
MEL_BANDS, MEL_FFT, MEL_HOP = 512, 4096, 1024
SMALLEST_MAGNITUDE = 1e-10
MOST_DECIBELS = 80.0

REGULARISED = "Regularised: as if each reference carried white noise 60 dB below its own energy."
OWN_SILENCE = "A frame counts for a stem where that stem itself is not silent."
"""Notes that tell which settings the user chose."""

_ORDER = ("vocals", "drums", "bass", "other", "accompaniment", "linear_mixture")


class _Stem:
    """One stem's reference, estimate and mixture, and their energies."""

    def __init__(self, reference: Signals, estimate: Signals, mixture: Signals, rate: float) -> None:
        self.signals, self.rate, self.samples = (reference, estimate, mixture), rate, reference.samples
        self.energy = self.sum(lambda s, e, m: s.square())
        self.error = self.sum(lambda s, e, m: (s - e).square())
        require_finite(torch.tensor([self.energy, self.error]))

    def sum(self, value: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        """Sum a function of reference, estimate and mixture over samples and channels, in float64."""
        total = 0.0
        for start in range(0, self.samples, PIECE):
            now = slice(start, min(start + PIECE, self.samples))
            total += float(value(*(signal.piece(now)[0] for signal in self.signals)).sum())
        return total

    def whole(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the reference, estimate and mixture, (channels, samples) float32."""
        s, e, m = (signal.piece(slice(0, self.samples))[0].mT.float() for signal in self.signals)
        return s, e, m

    @cached_property
    def si_sdr(self) -> float:
        return self.scale_invariant(lambda e, m: e)

    def scale_invariant(self, of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        """Return the SI-SDR in dB of ``of(estimate, mixture)``; NaN if the reference is silent."""
        if self.energy == 0:
            return math.nan
        scale = self.sum(lambda s, e, m: s * of(e, m)) / self.energy
        return _ratio(scale * scale * self.energy, self.sum(lambda s, e, m: (scale * s - of(e, m)).square()))

    @cached_property
    def bleed(self) -> tuple[float, float]:
        """Return the mean positive and the mean negative difference in dB between the mel bands of estimate and
        reference; 0 if no difference has that sign."""
        bands = _mel_bands(self.rate).to(self.signals[0].device)
        levels = []
        for signal in self.whole()[:2]:
            window = torch.hann_window(MEL_FFT, device=signal.device)
            spectrum = torch.stft(
                signal, MEL_FFT, MEL_HOP, window=window, return_complex=True, pad_mode="constant"
            ).abs()
            decibels = 20 * torch.log10((bands @ spectrum).clamp_min(SMALLEST_MAGNITUDE))
            levels.append(decibels.clamp_min(float(decibels.max()) - MOST_DECIBELS))
        difference = levels[1] - levels[0]
        more, less = difference[difference > 0], difference[difference < 0]
        return float(more.mean()) if more.numel() else 0.0, float(less.mean()) if less.numel() else 0.0


def _ratio(signal: float, error: float) -> float:
    """Return a ratio of energies in dB; NaN for 0 / 0."""
    if error == 0:
        return math.inf if signal > 0 else math.nan
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def _l1_frequency(stem: _Stem) -> float:
    if stem.samples <= 1024:  # too short: half a frame is reflected at both ends
        return math.nan
    reference, estimate = (
        torch.stft(x, 2048, 1024, window=torch.ones(2048, device=x.device), return_complex=True).abs()
        for x in stem.whole()[:2]
    )
    return 100 / (1 + 10 * float((estimate - reference).abs().mean()))


def _mel_bands(sample_rate: float) -> torch.Tensor:
    """Return librosa's mel filters, (bands, bins) float32: triangles of equal area on Slaney's scale, to half the
    rate."""
    knee, per_hertz, step = 1000.0, 3 / 200, math.log(6.4) / 27
    top = sample_rate / 2
    highest = per_hertz * min(top, knee) + max(0.0, math.log(max(top, 1.0) / knee)) / step
    mels = torch.linspace(0, highest, MEL_BANDS + 2, dtype=torch.float64)
    above = knee * torch.exp(step * (mels - per_hertz * knee))
    edges = torch.where(mels < per_hertz * knee, mels / per_hertz, above)
    bins = torch.linspace(0, top, MEL_FFT // 2 + 1, dtype=torch.float64)
    distance = edges[:, None] - bins
    widths = edges.diff()[:, None]
    triangles = torch.minimum(-distance[:-2] / widths[:-1], distance[2:] / widths[1:]).clamp_min(0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


def _log_wmse(stem: _Stem) -> float:
    function = require("log_wmse_audio_quality", "The metric log-WMSE").calculate_log_wmse
    reference, estimate, mixture = (signal.cpu().numpy() for signal in stem.whole())
    return float(function(mixture, estimate, reference, round(stem.rate)))


WHOLE: dict[str, Callable[[_Stem], float]] = {
    "uSDR": lambda stem: _ratio(stem.energy, stem.error) if stem.energy > 0 else math.nan,
    "MDX": lambda stem: 10 * math.log10((stem.energy + MDX_EPSILON) / (stem.error + MDX_EPSILON)),
    "SI-SDR": lambda stem: stem.si_sdr,
    "SI-SDRi": lambda stem: stem.si_sdr - stem.scale_invariant(lambda e, m: m),
    "bleedless": lambda stem: 100 / (1 + stem.bleed[0]),
    "fullness": lambda stem: 100 / (1 - stem.bleed[1]),
    "L1freq": _l1_frequency,
    "log-WMSE": _log_wmse,
}
"""The function that computes each metric of the whole track."""

ALL_METRICS = (*METRICS, *WHOLE)
DEFAULT_METRICS = tuple(metric for metric in ALL_METRICS if metric != "log-WMSE")
"""The metrics that need no other package."""


@dataclass(frozen=True)
class Scoring:
    """The metrics to compute and the settings that they depend on.

    Args:
        metrics: names from :data:`ALL_METRICS`, in upper or lower case; ``all`` for all of these, ``bsseval`` for
            BSSEval's four.
        silence, regularise: see :func:`bss_eval`.
        strict: whether a silent stem is an error.
        device: where the metrics are computed; None for the device of the arrays.

    Raises:
        EvaluationError: for an unknown metric, no metrics, an unknown rule of silence, or a device that cannot be used.
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
        scoring: metrics and settings; by default BSSEval.
        mixture: the signal that was separated, for SI-SDRi and log-WMSE; by default the sum of `references`.
        warn: whether to issue warnings for silent signals and empty bands, which ``result.notes`` names in any case.

    Raises:
        EvaluationError: if an estimate has no reference; and as :func:`bss_eval` raises it.
    """
    scoring = scoring or Scoring(METRICS)
    if unknown := [stem for stem in estimates if stem not in references]:
        raise EvaluationError(f"There is no reference for {', '.join(unknown)}. Leave these estimates out.")
    stems = [stem for stem in dict.fromkeys((*_ORDER, *references)) if stem in estimates]
    if not stems:
        raise EvaluationError(f"{name} has no estimated stem. Estimate one of {', '.join(references)}.")
    true = {stem: _signal(references[stem], f"reference of {stem}", scoring.device) for stem in references}
    found = {stem: _signal(estimates[stem], f"estimate of {stem}", scoring.device, len(true[stem])) for stem in stems}
    if differing := [stem for stem in stems if found[stem].shape != true[stem].shape]:
        raise ShapeError(f"Channels of references and estimates differ: {', '.join(differing)}. Convert one of them.")
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
    # Name each stem once, in order, although both groups contain the vocals.
    silent = tuple(dict.fromkeys(source for scores in scored for source in scores.silent))
    bands = tuple(dict.fromkeys(band for scores in scored for band in scores.empty_bands))
    found_warnings = BssScores({}, silent, (), bands, scoring.regularise).warnings()
    notes = [*map(str, found_warnings)]
    if by_frames:
        notes += [REGULARISED] * scoring.regularise + [OWN_SILENCE] * (scoring.silence == "own")
    whole: dict[str, dict[str, float]] = {}
    if metrics := [metric for metric in scoring.metrics if metric in WHOLE]:
        mixed = mixture_of(true) if mixture is None else _signal(mixture, "mixture", scoring.device)
        for stem in stems:
            signals = (Signals(true[stem][None], "reference"), Signals(found[stem][None], "estimate"))
            measured = _Stem(*signals, Signals(mixed[None], "mixture", len(true[stem])), sample_rate)
            whole[stem] = {metric: WHOLE[metric](measured) for metric in metrics}
    for warning in found_warnings if warn else []:
        warnings.warn(warning, stacklevel=2)
    return TrackScores(name, targets, whole=whole, notes=tuple(notes))


def _signal(audio: Audio, what: str, device: str | None, samples: int | None = None) -> torch.Tensor:
    """Return a signal (channels last, first or missing) as (samples, channels), cut or zero-padded to `samples`."""
    signal = Signals(audio[None], what).audio[0, :samples].to(device=device)
    missing = 0 if samples is None else samples - len(signal)
    return torch.nn.functional.pad(signal, (0, 0, 0, missing)) if missing else signal
