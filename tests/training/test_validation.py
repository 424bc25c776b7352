"""Validation: what it scores, and what it chooses the best checkpoint by."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.errors import TrainingDataError
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision
from metatasnet_fast.reference import si_sdr
from metatasnet_fast.training.data import Cache, write_manifest, write_track
from metatasnet_fast.training.validation import (
    TrackScore,
    ValidationScore,
    score_track,
    validation_signals,
    validation_tracks,
)
from tests.support import TINY
from tests.training.songs import RATES, music, write_cache

NAN = math.nan


class Telling(MultiTasNet):
    """A network that knows the answer, but neither its level nor its sign, and not quite."""

    def inference(self, input_audio: list[torch.Tensor], n_chunks: int = 4) -> list[torch.Tensor]:
        gains = torch.tensor([3.0, -0.5, 1.0, -20.0])[:, None, None]
        return [gains * (source + 1e-3 * source.std() * torch.randn_like(source)) for source in self.answer]

    answer: list[torch.Tensor]


def telling(path: Path) -> tuple[Telling, Cache]:
    cache = Cache.open(path)
    network = Telling(TINY)
    network.answer = validation_signals(cache.tracks("valid")[0], RATES, range(4))[1]
    return network, cache


def test_levels_and_signs_are_free(tmp_path: Path) -> None:
    network, cache = telling(write_cache(tmp_path, seconds=2.0))
    score = score_track(network, cache.tracks("valid")[0], range(4), "reference", Precision.float32)
    assert len(score.si_sdr) == 3
    assert all(value == pytest.approx(60, abs=0.5) for stage in score.si_sdr for value in stage)
    assert all(value > 55 for value in score.sdr)


def test_stems_that_do_not_count_or_are_silent_are_left_out(tmp_path: Path) -> None:
    signals = {rate: music(1, 2.0, rate) for rate in RATES}
    for signal in signals.values():
        signal[2] = 0
    write_track(tmp_path, "valid", "song", signals, counts=(True, False, True, True))
    write_manifest(tmp_path, RATES)
    network, cache = telling(tmp_path)
    score = score_track(network, cache.tracks("valid")[0], range(4), "reference", Precision.float32)
    assert [math.isnan(value) for value in score.sdr] == [False, True, True, False]
    assert all([math.isnan(value) for value in stage] == [False, True, True, False] for stage in score.si_sdr)


@pytest.mark.parametrize(
    ("by_stage", "expected"),
    [([[1.0, 2.0], [4.0, 8.0]], 3.0), ([[1.0], [2.0]], 1.0), ([[5.0]], 5.0), ([[1.0, 2.0, 3.0, 4.0]] * 2, 2.5)],
)
def test_the_authors_rule_is_that_of_any_number_of_instruments(by_stage: list[list[float]], expected: float) -> None:
    score = ValidationScore(by_stage, by_stage[-1], tracks=1)
    assert score.total("original") == expected


def test_quantised_silence_is_left_out(tmp_path: Path) -> None:
    """A stem that sounds in its first half only, and one that never does, with noise of one 16-bit step where they rest."""
    signals = {rate: music(1, 4.0, rate) for rate in RATES}
    for rate, signal in signals.items():
        noise = np.random.default_rng(0).choice(np.float32([-1, 1]) / 32768, signal.shape)
        signal[1, :, 2 * rate :] = noise[1, :, 2 * rate :]
        signal[2] = noise[2]
    write_track(tmp_path, "valid", "song", signals)
    write_manifest(tmp_path, RATES)
    track, network = Cache.open(tmp_path).tracks("valid")[0], Telling(TINY)
    network.answer = validation_signals(track, RATES, range(4))[1]
    for answer, rate in zip(network.answer, RATES, strict=True):
        answer[:, 1:3, :, 2 * rate :] = answer[:, 0:1, :, 2 * rate :]  # wrong wherever it is silent
    score = score_track(network, track, range(4), "reference", Precision.float32)
    assert score.sdr[1] > 20
    assert [math.isnan(value) for value in score.sdr] == [False, False, True, False]
    assert all([math.isnan(value) for value in stage] == [False, False, True, False] for stage in score.si_sdr)


def test_a_networks_si_sdr_is_that_of_its_inference(tmp_path: Path) -> None:
    cache = Cache.open(write_cache(tmp_path, seconds=1.0))
    track, network = cache.tracks("valid")[0], MultiTasNet(TINY)
    score = score_track(network, track, range(4), "reference", Precision.float32)
    mixes, sources = validation_signals(track, RATES, range(4))
    with torch.no_grad():
        estimates = network.inference(mixes, n_chunks=4)
    for values, estimate, source in zip(score.si_sdr, estimates, sources, strict=True):
        assert values == pytest.approx(si_sdr(estimate, source[..., : estimate.shape[-1]]).flatten().tolist(), abs=1e-3)


def test_means_are_over_the_tracks_in_which_a_stem_counts() -> None:
    first = TrackScore([[1.0, NAN, 3.0, 4.0]], [2.0, NAN, 6.0, NAN])
    second = TrackScore([[3.0, NAN, NAN, 6.0]], [4.0, NAN, NAN, NAN])
    score = ValidationScore.of([first, second])
    assert score.si_sdr[0] == pytest.approx([2.0, NAN, 3.0, 5.0], nan_ok=True)
    assert score.sdr == pytest.approx([3.0, NAN, 6.0, NAN], nan_ok=True)
    assert score.total("all") == 4.5


def test_the_original_rule_misses_the_last_vocals() -> None:
    score = ValidationScore([[100.0] * 4, [100.0, 100.0, 100.0, 1.0], [2.0, 3.0, 4.0, 100.0]], [7.0, 8.0, 9.0, 10.0], 1)
    assert score.total("original") == 2.5
    assert score.total("all") == 8.5


def test_nothing_to_validate_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="--validate_every 0"):
        validation_tracks(Cache.open(write_cache(tmp_path, seconds=0.05)).tracks("valid"), TINY)


def test_tracks_of_which_no_stem_counts_are_nothing_to_validate_on(tmp_path: Path) -> None:
    signals = {rate: music(1, 1.0, rate) for rate in RATES}
    write_track(tmp_path, "valid", "song", signals, counts=(False,) * 4)
    write_manifest(tmp_path, RATES)
    with pytest.raises(TrainingDataError, match="has a stem that counts"):
        validation_tracks(Cache.open(tmp_path).tracks("valid"), TINY)
