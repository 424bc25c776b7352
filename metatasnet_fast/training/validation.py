"""How good a network is on whole tracks it was not trained on.

Each track is separated in mono, as the authors validate. Two measures: SI-SDR over the whole track for every stage, which is
theirs; and for the last stage SDR as the field reports it (BSSEval v4: the median over one-second frames), after the gains
with which the stems' sum comes closest to the mixture. Stems that the cache does not count, or that are silent, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from ..backends import use_backend
from ..config import INSTRUMENTS, MetaTasNetConfig
from ..errors import TrainingDataError
from ..evaluation import bss_eval
from ..model import MultiTasNet
from ..precision import Precision
from ..reference import si_sdr
from ..separation.gains import NormalEquations
from .data import Track, validation_sources

__all__ = ["TrackScore", "ValidationScore", "score_track", "validate", "validation_tracks"]

CHUNK_SECONDS = 60
"""Tracks are separated in 4 chunks, like the authors', or in more if a chunk would be longer."""


@dataclass(frozen=True)
class TrackScore:
    """Scores of one track in dB; NaN for a stem that does not count."""

    si_sdr: list[list[float]]
    """For every stage, four stems."""
    sdr: list[float]
    """Four stems of the last stage."""


@dataclass(frozen=True)
class ValidationScore:
    """Means over the tracks in which a stem counts; NaN if there is none."""

    si_sdr: list[list[float]]
    sdr: list[float]
    tracks: int

    @classmethod
    def of(cls, scores: Sequence[TrackScore]) -> ValidationScore:
        stages = range(len(scores[0].si_sdr))
        return cls(
            si_sdr=[[_mean([score.si_sdr[s][i] for score in scores]) for i in range(4)] for s in stages],
            sdr=[_mean([score.sdr[i] for score in scores]) for i in range(4)],
            tracks=len(scores),
        )

    def total(self, rule: str) -> float:
        """One number to choose the best checkpoint by, in dB.

        ``all``: the mean SDR of the last stage's four stems. ``original``: as the authors' program chooses, which takes the
        mean of the SI-SDR values ``[-5:-1]`` of all stages: the last stage's without vocals, and the vocals of the one before.
        """
        if rule == "original":
            return _mean([value for stage in self.si_sdr for value in stage][-5:-1])
        return _mean(self.sdr)

    def by_stem(self) -> dict[str, float]:
        """SDR of the last stage by the stem's name."""
        return dict(zip(INSTRUMENTS, self.sdr, strict=True))


def validation_tracks(tracks: Sequence[Track], config: MetaTasNetConfig) -> list[Track]:
    """Those long enough for the network.

    Raises:
        TrainingDataError: if none is, or none of their stems counts.
    """
    stage = config.stage(0)
    found = [track for track in tracks if track.samples(stage.sampling_rate) >= stage.shortest + stage.W]
    if not found:
        raise TrainingDataError(
            f"None of the {len(tracks)} tracks to validate on can be separated: prepare the cache with some, or train with "
            "--validate_every 0."
        )
    if not any(any(track.counts) for track in found):
        raise TrainingDataError(
            f"None of the {len(found)} tracks to validate on has a stem that counts: prepare the cache with some whose stems "
            "are known, or train with --validate_every 0."
        )
    return found


@torch.no_grad()
def score_track(network: MultiTasNet, track: Track, backend: str, precision: Precision) -> TrackScore:
    """Separate one track on the network's device and score it."""
    config, device = network.config, network.device
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    sources = [s.to(device, dtype) for s in validation_sources(track, [s.sampling_rate for s in config.stages])]
    chunks = max(4, math.ceil(track.seconds / CHUNK_SECONDS))
    with use_backend(backend, precision.value):
        estimates = network.inference([s.sum(1) for s in sources], n_chunks=chunks)
    counted = [c and bool(s.any()) for c, s in zip(track.counts, sources[-1][0], strict=True)]
    by_stage = []
    for estimate, source in zip(estimates, sources, strict=True):
        values = si_sdr(estimate, source[..., : estimate.shape[-1]]).flatten().tolist()
        by_stage.append([value if c else math.nan for value, c in zip(values, counted, strict=True)])
    return TrackScore(by_stage, _sdr(estimates[-1][0, :, 0], sources[-1][0, :, 0], counted, config.output_rate))


def _sdr(estimate: Tensor, source: Tensor, counted: Sequence[bool], rate: int) -> list[float]:
    """Median SDR over one-second frames of (4, T) against (4, T or a little more)."""
    source = source[:, : estimate.shape[1]]
    equations = NormalEquations(1)
    equations.add(estimate[None], source.sum(0, keepdim=True))
    scaled = estimate * equations.solve()[0, :, None].to(estimate)
    chosen = [index for index, counts in enumerate(counted) if counts]
    values = [math.nan] * 4
    if chosen:
        scores = bss_eval(source[chosen][..., None], scaled[chosen][..., None], window=rate, hop=rate, metrics=("SDR",))
        for index, frames in zip(chosen, scores["SDR"].tolist(), strict=True):
            known = [value for value in frames if not math.isnan(value)]
            values[index] = median(known) if known else math.nan
    return values


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def validate(
    network: MultiTasNet,
    tracks: Sequence[Track],
    backend: str,
    precision: Precision,
    stop: Callable[[], bool],
) -> list[TrackScore] | None:
    """Scores of all tracks; None if ``stop`` said so in between."""
    scores = []
    for track in tracks:
        if stop():
            return None
        scores.append(score_track(network, track, backend, precision))
    return scores
