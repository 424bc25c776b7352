"""Metrics that give one number for a stem of a whole track.

With ``s`` the reference, ``e`` the estimate and ``m`` the mixture, all (samples, channels), sums over samples and channels:

    uSDR = 10 log10(sum s^2 / sum (s - e)^2)                          Mitsufuji et al. 2022: the ratio of a whole track
    MDX = 10 log10((sum s^2 + 1e-7) / (sum (s - e)^2 + 1e-7))         the same, as the Music Demixing Challenges rank by it
    SI-SDR = 10 log10(sum (a s)^2 / sum (a s - e)^2), a = sum e s / sum s^2        Le Roux et al. 2019, means not removed
    SI-SDRi = SI-SDR of e less SI-SDR of m
    bleedless = 100 / (1 + mean of what is above 0 of d), fullness = 100 / (1 - mean of what is below 0 of d), where
        d = mel(e) - mel(s) in dB of magnitudes of 512 mel bands (frames of 4096 every 1024), at most 80 dB below their peak
    L1freq = 100 / (1 + 10 mean | |STFT e| - |STFT s| |), frames of 2048 every 1024, not windowed
    log-WMSE: the package log-wmse-audio-quality, by its authors

bleedless, fullness and L1freq are those of the program Music-Source-Separation-Training (utils/metrics.py), on which the
leaderboards of MVSEP rest. They depend on the level and grow with silence: compare them on the same tracks only.

A silent reference has neither uSDR nor SI-SDR, and a silent estimate no SI-SDR: NaN. The other metrics count silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from .._extras import require
from .signals import Signals, require_finite

__all__ = ["DEFAULT_WHOLE", "WHOLE", "whole_track_metrics"]

MDX_EPSILON = 1e-7
PIECE = 1 << 20
"""Samples that are read at a time."""
MEL_BANDS, MEL_FFT, MEL_HOP = 512, 4096, 1024
SMALLEST_MAGNITUDE = 1e-10
MOST_DECIBELS = 80.0


def whole_track_metrics(
    references: Signals, estimates: Signals, mixture: torch.Tensor | None, sample_rate: float, metrics: Sequence[str]
) -> list[dict[str, float]]:
    """Return for each source the asked metrics of :data:`WHOLE`.

    Args:
        references, estimates: of the same sources and channels; the references' length counts.
        mixture: (samples, channels); None for the sum of the references.

    Raises:
        EvaluationError: for NaN or infinite samples.
        MissingDependencyError: for ``log-WMSE`` without its package.
    """
    mixed = Signals(references.audio.sum(0)[None] if mixture is None else mixture[None], "mixture", references.samples)
    stems = (_Stem(references, estimates, mixed, source, sample_rate) for source in range(references.sources))
    return [{metric: WHOLE[metric](stem) for metric in metrics} for stem in stems]


class _Stem:
    """One stem's reference, estimate and mixture, and their energies."""

    def __init__(self, references: Signals, estimates: Signals, mixture: Signals, source: int, rate: float) -> None:
        self.signals, self.mixture, self.source, self.rate = (references, estimates), mixture, source, rate
        self.samples = references.samples
        self.energy = self.sum(lambda s, e, m: s.square())
        self.error = self.sum(lambda s, e, m: (s - e).square())
        require_finite(torch.tensor([self.energy, self.error]))

    def sum(self, value: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        """Sum a function of reference, estimate and mixture over samples and channels, in float64."""
        total = 0.0
        for start in range(0, self.samples, PIECE):
            now = slice(start, min(start + PIECE, self.samples))
            s, e = (signal.piece(now)[self.source] for signal in self.signals)
            total += float(value(s, e, self.mixture.piece(now)[0]).sum())
        return total

    def whole(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the reference, estimate and mixture, (channels, samples) float32."""
        everything = slice(0, self.samples)
        s, e = (signal.piece(everything)[self.source].mT.float() for signal in self.signals)
        return s, e, self.mixture.piece(everything)[0].mT.float()

    @cached_property
    def si_sdr(self) -> float:
        return self.scale_invariant(lambda e, m: e)

    def scale_invariant(self, of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        """Return the SI-SDR of a function of estimate and mixture."""
        if self.energy == 0:
            return math.nan
        scale = self.sum(lambda s, e, m: s * of(e, m)) / self.energy
        return _ratio(scale * scale * self.energy, self.sum(lambda s, e, m: (scale * s - of(e, m)).square()))

    @cached_property
    def bleed(self) -> tuple[float, float]:
        """Mean decibels by which the estimate's mel bands lie above the reference's, and mean decibels by which they
        lie below."""
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
    if stem.samples <= 1024:  # half a frame is reflected at both ends
        return math.nan
    reference, estimate = (
        torch.stft(x, 2048, 1024, window=torch.ones(2048, device=x.device), return_complex=True).abs()
        for x in stem.whole()[:2]
    )
    return 100 / (1 + 10 * float((estimate - reference).abs().mean()))


def _mel_bands(sample_rate: float) -> torch.Tensor:
    """Return triangles of equal area on Slaney's mel scale up to half the rate, (bands, bins), float32, as librosa does."""
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
"""Each metric with the function that computes it."""

DEFAULT_WHOLE = tuple(metric for metric in WHOLE if metric != "log-WMSE")
"""The metrics that need no other package."""
