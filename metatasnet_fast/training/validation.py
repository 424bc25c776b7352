"""Score a network on whole tracks that it was not trained on.

Each track is separated in mono, as the authors validate. There are two measures:

- SI-SDR over the whole track, for every stage: the authors' measure.
- SDR for the last stage, as papers report it (BSSEval v4, the median over one-second frames). Before it, the stems get
  the gains with which their sum comes closest to the mixture.

Stems that the loss must not use are left out. So are silent stems and silent frames, which lie more than 60 dB below
the mixture: quantised silence has scores of -100 dB and less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from ..backends import use_backend
from ..config import MetaTasNetConfig
from ..errors import TrainingDataError
from ..evaluation import bss_eval
from ..model import MultiTasNet
from ..precision import Precision
from ..reference import si_sdr
from ..separation.outputs import NormalEquations
from .data import Track

__all__ = [
    "TrackScore", "ValidationScore", "score_track", "validate", "validation_signals", "validation_tracks",
]  # fmt: skip

SILENT = 1e-6
"""Power relative to that of the mixture, up to which a stem, or a frame of a stem, counts as silent."""

CHUNK_SECONDS = 60
"""Longest chunk in seconds. Tracks are separated in 4 chunks, as by the authors, or in more if a chunk would be
longer."""


@dataclass(frozen=True)
class TrackScore:
    """Scores of one track in dB. A stem that is silent, or that the loss must not use, has NaN."""

    si_sdr: list[list[float]]
    """SI-SDR of all instruments, for every stage."""
    sdr: list[float]
    """SDR of all instruments in the last stage."""


@dataclass(frozen=True)
class ValidationScore:
    """Mean scores in dB: of each stem over the tracks in which it has a score; NaN if there is no such track.

    ``si_sdr`` and ``sdr`` are as in :class:`TrackScore`; ``tracks`` is the number of tracks.
    """

    si_sdr: list[list[float]]
    sdr: list[float]
    tracks: int

    @classmethod
    def of(cls, scores: Sequence[TrackScore]) -> ValidationScore:
        stages = range(len(scores[0].si_sdr))
        return cls(
            si_sdr=[_means([score.si_sdr[s] for score in scores]) for s in stages],
            sdr=_means([score.sdr for score in scores]),
            tracks=len(scores),
        )

    def total(self, rule: str) -> float:
        """Return the number in dB by which the best checkpoint is chosen.

        Args:
            rule: ``all`` for the mean SDR of the last stage's stems. ``original`` for the authors' rule: the mean of
                the I SI-SDR values before the very last one (``[-5:-1]`` for the authors' four instruments). These are
                the last stage without vocals, and the vocals of the stage before. If there is only one value, it is
                taken.
        """
        if rule == "original":
            values = [value for stage in self.si_sdr for value in stage]
            return _mean(values[-len(self.sdr) - 1 : -1] or values)
        return _mean(self.sdr)


def validation_tracks(tracks: Sequence[Track], config: MetaTasNetConfig) -> list[Track]:
    """Return the tracks that are long enough for the network.

    Raises:
        TrainingDataError: if no track is long enough, or no stem of the long ones counts.
    """
    stage = config.stage(0)
    found = [track for track in tracks if track.samples(stage.sampling_rate) >= stage.shortest + stage.W]
    if not found:
        raise TrainingDataError(
            f"Of {len(tracks)} tracks to validate on none is long enough: prepare the cache with some, or train with "
            "--validate_every 0."
        )
    if not any(any(track.counts) for track in found):
        raise TrainingDataError(
            f"None of the {len(found)} tracks to validate on has a stem that counts: prepare the cache with some whose stems "
            "are known, or train with --validate_every 0."
        )
    return found


def validation_signals(track: Track, rates: Sequence[int], places: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return a track's mixture (1, 1, T) for each rate, and its instruments (1, I, 1, T) for each rate.

    All are float32 on the CPU, divided by the standard deviation of the mixture. ``places`` are the places of the I
    instruments among those of the cache. Source: the authors' ``dataset.py``, ``get_validation_sample``. The authors
    take MUSDB18's own mixture; here the mixture is the sum of the stems.

    Raises:
        TrainingDataError: if a file of the track is missing, damaged or not finite.
    """
    mixes, sources = [], []
    for rate in rates:
        mono = torch.from_numpy(track.stems(rate)[:].mean(1))
        if not mono.isfinite().all():
            raise TrainingDataError(f"{track.file(rate)} holds NaN or infinity; delete its folder and prepare again.")
        scaled = (mono / track.deviation(rate))[None, :, None]
        mixes.append(scaled.sum(1))
        sources.append(scaled[:, list(places)])
    return mixes, sources


@torch.no_grad()
def score_track(
    network: MultiTasNet, track: Track, places: Sequence[int], backend: str, precision: Precision
) -> TrackScore:
    """Separate one track on the network's device, and return its scores.

    ``places`` are the places of the network's instruments among those of the cache.
    """
    config, device = network.config, network.device
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    mixes, sources = (
        [x.to(device, dtype) for x in signals]
        for signals in validation_signals(track, [s.sampling_rate for s in config.stages], places)
    )
    chunks = max(4, math.ceil(track.seconds / CHUNK_SECONDS))
    with use_backend(backend, precision.value):
        estimates = network.inference(mixes, n_chunks=chunks)
    sounds = (_power(sources[-1][0, :, 0]) > SILENT * _power(mixes[-1][0])).tolist()
    counted = [c and s for c, s in zip((track.counts[i] for i in places), sounds, strict=True)]
    by_stage = []
    for estimate, source in zip(estimates, sources, strict=True):
        values = si_sdr(estimate, source[..., : estimate.shape[-1]]).flatten().tolist()
        by_stage.append([value if c else math.nan for value, c in zip(values, counted, strict=True)])
    return TrackScore(by_stage, _sdr(estimates[-1][0, :, 0], sources[-1][0, :, 0], mixes[-1][0], counted, config))


def _sdr(
    estimate: Tensor, source: Tensor, mix: Tensor, counted: Sequence[bool], config: MetaTasNetConfig
) -> list[float]:
    """Return for each instrument the median SDR in dB over one-second frames.

    It is NaN for an instrument that is not ``counted``, or that has no frame with a score.

    Args:
        estimate: (I, T).
        source: (I, T or a little more).
        mix: (1, T or a little more).
    """
    source, mix = source[:, : estimate.shape[1]], mix[:, : estimate.shape[1]]
    equations = NormalEquations(1, len(estimate), config.added_instruments)
    equations.add(estimate[None], mix)
    scaled = estimate * equations.solve()[0, :, None].to(estimate)
    chosen = [index for index, counts in enumerate(counted) if counts]
    values, rate = [math.nan] * len(estimate), config.output_rate
    if chosen:
        source = source.clone()
        for frame in source.split(rate, dim=1):
            frame[_power(frame) <= SILENT * _power(mix)] = 0  # frames that are all zero have no score
        scores = bss_eval(source[chosen][..., None], scaled[chosen][..., None], window=rate, hop=rate, metrics=("SDR",))
        for index, frames in zip(chosen, scores["SDR"].tolist(), strict=True):
            known = [value for value in frames if not math.isnan(value)]
            values[index] = median(known) if known else math.nan
    return values


def _power(signal: Tensor) -> Tensor:
    """Return the mean power of signals: (..., T) gives (...)."""
    return signal.square().mean(-1)


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [_mean(column) for column in zip(*rows, strict=True)]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def validate(
    network: MultiTasNet,
    tracks: Sequence[Track],
    places: Sequence[int],
    backend: str,
    precision: Precision,
    stop: Callable[[], bool],
) -> list[TrackScore] | None:
    """Return the scores of all tracks; None if ``stop()`` became true before all were scored."""
    scores = []
    for track in tracks:
        if stop():
            return None
        scores.append(score_track(network, track, places, backend, precision))
    return scores
