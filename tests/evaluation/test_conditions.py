"""What BSSEval depends on beyond the music: bands without energy, and whose silence voids a frame."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metatasnet_fast.evaluation import METRICS, EmptyBandWarning, EvaluationError, Scoring, bss_eval, evaluate_track

RATE = 44100
Array = NDArray[np.float64]


def music(cut: float | None, seconds: float = 3, seed: int = 0) -> tuple[Array, Array]:
    """Two stereo stems with more bass than treble, without energy above `cut` Hz, and estimates of them."""
    rng = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    s = 0.05 * rng.standard_normal((2, samples, 2))
    s[:, 1:] += 0.9 * s[:, :-1]
    e = 0.9 * s + 0.15 * s.sum(0) + 0.01 * rng.standard_normal(s.shape)
    return lowpass(s, cut), lowpass(e, cut)


def lowpass(signal: Array, cut: float | None) -> Array:
    if cut is None:
        return signal
    spectrum = np.fft.rfft(signal, axis=1)
    spectrum[:, np.fft.rfftfreq(signal.shape[1], 1 / RATE) > cut] = 0
    return np.fft.irfft(spectrum, signal.shape[1], axis=1)


def in_16_bits(signal: Array) -> Array:
    return np.round(signal * 32768) / 32768


def medians(scores: Any) -> dict[str, Array]:
    return {metric: np.median(scores[metric], axis=1) for metric in ("SDR", "ISR", "SIR", "SAR")}


@pytest.mark.parametrize("cut", [3000, 16000])
def test_a_band_without_energy_is_found_and_warned_about(cut: float) -> None:
    references, estimates = music(cut)
    with pytest.warns(EmptyBandWarning, match="source 0 from"):
        scores = bss_eval(references, estimates)
    low, high = scores.empty_bands[0].low, scores.empty_bands[0].high
    assert low == pytest.approx(cut, rel=0.1)
    assert high == pytest.approx(RATE / 2, rel=0.01)


@pytest.mark.parametrize("case", ["full band", "16 bits", "SDR only", "silence"])
def test_no_band_is_reported_where_there_is_energy_or_no_filter(case: str) -> None:
    references, estimates = music(None if case == "full band" else 3000)
    if case == "16 bits":
        references, estimates = in_16_bits(references), in_16_bits(estimates)
    if case == "silence":
        references = np.concatenate([in_16_bits(references)[:1], np.zeros_like(references[:1])])
        estimates = in_16_bits(estimates)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmptyBandWarning)
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", EmptyBandWarning)
        scores = bss_eval(references, estimates, metrics=("SDR",) if case == "SDR only" else ("SDR", "SIR"))
    assert scores.empty_bands == ()


@pytest.mark.parametrize("cut", [3000, 10000])
def test_regularised_scores_of_floats_and_of_16_bits_agree_within_a_tenth_of_a_decibel(cut: float) -> None:
    references, estimates = music(cut)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = medians(bss_eval(references, estimates, regularise=True))
    rounded = medians(bss_eval(in_16_bits(references), in_16_bits(estimates), regularise=True))
    for metric, expected in exact.items():
        assert np.abs(rounded[metric] - expected).max() < 0.1, metric


def test_regularising_moves_well_posed_scores_by_hundredths_of_a_decibel() -> None:
    references, estimates = music(None)
    plain, regular = (medians(bss_eval(references, estimates, regularise=flag)) for flag in (False, True))
    assert np.array_equal(plain["SDR"], regular["SDR"])
    assert max(np.abs(plain[metric] - regular[metric]).max() for metric in plain) < 0.05


@pytest.mark.parametrize("level", [1e-9, 1e-12])
def test_tiny_amplitudes_are_solved_as_quickly_as_others(level: float) -> None:
    references, estimates = music(None)
    assert set(bss_eval(level * references, level * estimates).solvers) == {"cholesky"}


def test_with_the_rule_own_a_silent_stem_voids_itself_only() -> None:
    references, estimates = music(None)
    references[1, :RATE] = 0  # its first frame
    estimates[0, RATE : 2 * RATE] = 0
    museval, own = (bss_eval(references, estimates, silence=rule) for rule in ("museval", "own"))
    assert np.isnan(museval["SDR"]).all(axis=0).tolist() == [True, True, False]
    assert np.isnan(own["SDR"]).tolist() == [[False, False, False], [True, False, False]]
    assert own["SDR"][0, 1] == 0  # an estimate that is silent where music is does not get away with it
    assert np.isnan(own["SIR"]).tolist() == [[False, True, False], [True, False, False]]
    assert np.array_equal(own["SAR"][:, 2], museval["SAR"][:, 2])


def test_with_the_rule_own_a_stem_silent_from_end_to_end_leaves_the_others_their_scores() -> None:
    references, estimates = music(None)
    stems = {"vocals": references[0], "bass": 0 * references[1]}
    with pytest.warns(UserWarning, match="Silent from end to end: reference of bass"):
        scores = evaluate_track(
            stems, {"vocals": estimates[0], "bass": estimates[1]}, name="t", scoring=Scoring(METRICS, silence="own")
        )
    assert len(scores.counted("bass", "SDR")) == 0
    # Nothing interferes with vocals alone: the SIR is infinite, or 300 dB by rounding.
    assert min(scores.targets["vocals"]["SIR"]) > 200
    assert [len(scores.counted("vocals", metric)) for metric in ("SDR", "ISR", "SAR")] == [3, 3, 3]
    assert any("that stem itself" in note for note in scores.notes)


def test_a_rule_that_is_none_is_named() -> None:
    with pytest.raises(EvaluationError, match="golden"):
        bss_eval(*music(None), silence="golden")


@pytest.mark.parametrize("layout", ["channels first", "mono"])
def test_channels_are_told_from_samples(layout: str) -> None:
    references, estimates = music(None)
    if layout == "mono":
        references, estimates = references[..., :1], estimates[..., :1]
    expected = bss_eval(references, estimates)
    turned = [x.swapaxes(1, 2) if layout == "channels first" else x[..., 0] for x in (references, estimates)]
    for metric in expected.values:
        assert np.array_equal(bss_eval(turned[0], turned[1])[metric], expected[metric])
