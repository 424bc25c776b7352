"""Metrics of whole tracks: those of the programs that define them, and what silence, length and level do to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metatasnet_fast.errors import EvaluationError, ShapeError
from metatasnet_fast.evaluation import Scoring, evaluate_track
from metatasnet_fast.evaluation.track import DEFAULT_METRICS, WHOLE

RECORDED: dict[str, dict[str, float]] = {
    "music": {
        "bleedless": 23.11949920654297,
        "fullness": 41.844024658203125,
        "L1freq": 24.434287337460997,
        "log-WMSE": 18.40276336669922,
        "SI-SDR": 22.446289329227618,
        "uSDR": 18.352194458996426,
    },
    "quiet": {
        "bleedless": 23.11949920654297,
        "fullness": 41.844024658203125,
        "L1freq": 99.9690834643262,
        "log-WMSE": 18.40276336669922,
    },
    "silent estimate": {
        "bleedless": 100.0,
        "fullness": 0.5814113020896912,
        "L1freq": 4.464399072425995,
        "log-WMSE": 1.4226739406585693,
        "uSDR": 0.0,
    },
    "silent reference": {
        "bleedless": 0.5794492959976196,
        "fullness": 100.0,
        "L1freq": 4.7972359675577545,
        "log-WMSE": 2.2439205646514893,
    },
}
"""What utils/metrics.py of Music-Source-Separation-Training (librosa, torchaudio) and log-wmse-audio-quality 0.2.0 give.

Ratios of quiet and silent signals are not those of that program, which adds 1e-8 to energies.
"""


def signals(case: str) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Reference, estimate and mixture, (channels, samples)."""
    rng = np.random.default_rng(7)
    t = np.arange(60001) / 44100
    s = np.stack([np.sin(2 * np.pi * 220 * t) * np.exp(-t), 0.5 * np.sin(2 * np.pi * 331 * t + 1)])
    s += 0.01 * rng.standard_normal(s.shape)
    other = 0.3 * np.stack([np.sin(2 * np.pi * 2000 * t), np.sign(np.sin(2 * np.pi * 97 * t))])
    e = 0.9 * s + 0.1 * other + 0.003 * rng.standard_normal(s.shape)
    m = s + other
    factors = {"quiet": (1e-4, 1e-4, 1e-4), "silent estimate": (1, 0, 1), "silent reference": (0, 1, 1)}
    a, b, c = factors.get(case, (1, 1, 1))
    return (a * s).astype(np.float32), (b * e).astype(np.float32), (c * m).astype(np.float32)


DEFAULT_WHOLE = tuple(metric for metric in DEFAULT_METRICS if metric in WHOLE)


def values(s: Any, e: Any, m: Any, metrics: tuple[str, ...] = DEFAULT_WHOLE, rate: float = 44100) -> dict[str, float]:
    scoring = Scoring(metrics)
    return dict(evaluate_track({"a": s}, {"a": e}, scoring, name="t", sample_rate=rate, mixture=m.T).whole["a"])


@pytest.mark.parametrize(("case", "metric"), [(case, metric) for case in RECORDED for metric in RECORDED[case]])
def test_numbers_are_those_of_the_programs_that_define_them(case: str, metric: str) -> None:
    if metric == "log-WMSE":
        pytest.importorskip("log_wmse_audio_quality")
    found = values(*signals(case), metrics=(metric,))
    assert found[metric] == pytest.approx(RECORDED[case][metric], rel=1e-5, abs=1e-5)


def test_the_improvement_is_over_the_mixture() -> None:
    s, e, m = signals("music")
    assert values(s, e, m)["SI-SDRi"] == pytest.approx(values(s, e, m)["SI-SDR"] - values(s, m, m)["SI-SDR"], abs=1e-9)


def test_the_challenges_ratio_is_that_of_the_whole_track_where_there_is_energy_and_finite_in_silence() -> None:
    found = values(*signals("music"))
    assert found["MDX"] == pytest.approx(found["uSDR"], abs=1e-6)
    s, e, m = signals("silent reference")
    energy = float(np.square(e.astype(np.float64)).sum())
    assert values(s, e, m)["MDX"] == pytest.approx(10 * math.log10(1e-7 / (energy + 1e-7)))
    assert values(0 * s, 0 * e, m)["MDX"] == 0


def test_silence_has_no_ratio() -> None:
    for case in ("silent estimate", "silent reference"):
        assert math.isnan(values(*signals(case))["SI-SDR"])
    assert math.isnan(values(*signals("silent reference"))["uSDR"])


def test_a_perfect_estimate_is_perfect() -> None:
    s, _, m = signals("music")
    found = values(s, s, m)
    assert found["uSDR"] == found["SI-SDR"] == math.inf
    assert found["bleedless"] == found["fullness"] == found["L1freq"] == 100


def test_a_louder_estimate_keeps_the_scale_invariant_ratio() -> None:
    s, e, m = signals("music")
    assert values(s, 2 * e, m)["SI-SDR"] == pytest.approx(values(s, e, m)["SI-SDR"], abs=1e-9)


@pytest.mark.parametrize("samples", [1, 700, 1024, 1025, 3000])
def test_short_tracks_have_numbers_or_none(samples: int) -> None:
    s, e, m = (x[:, 1000 : 1000 + samples] for x in signals("music"))
    found = values(s.T, e.T, m)
    assert math.isnan(found["L1freq"]) == (samples <= 1024)
    assert all(math.isfinite(value) for metric, value in found.items() if metric != "L1freq")


def test_other_rates_have_bands_up_to_half_the_rate() -> None:
    s, e, m = signals("music")
    assert 0 < values(s, e, m, rate=16000)["bleedless"] < 100


def test_samples_that_are_no_numbers_are_refused() -> None:
    s, e, m = signals("music")
    e[0, 5] = np.nan
    with pytest.raises(EvaluationError, match="NaN"):
        values(s, e, m)


def test_a_track_has_them_beside_bss_eval_and_its_file_keeps_them() -> None:
    s, e, _ = signals("music")
    scores = evaluate_track({"a": s, "b": e}, {"a": e, "b": s}, name="t", scoring=Scoring(("SDR", *DEFAULT_WHOLE)))
    assert set(scores.whole["a"]) == set(DEFAULT_WHOLE) == set(WHOLE) - {"log-WMSE"}
    assert scores.value("a", "uSDR") == scores.whole["a"]["uSDR"]
    assert '"track_metrics"' in scores.json()


def test_the_mixture_is_the_sum_of_all_references_unless_given() -> None:
    s, e, m = signals("music")
    references = {"a": s, "b": m - s}
    implied = evaluate_track(references, {"a": e}, name="t", scoring=Scoring(("SI-SDRi",))).value("a", "SI-SDRi")
    given = evaluate_track(references, {"a": e}, name="t", scoring=Scoring(("SI-SDRi",)), mixture=m).value(
        "a", "SI-SDRi"
    )
    assert implied == pytest.approx(given, abs=1e-5)


def test_a_mono_estimate_of_a_stereo_stem_is_refused() -> None:
    s, e, m = signals("music")
    with pytest.raises(ShapeError, match="Channels of references and estimates differ: a"):
        values(s, e.mean(0), m, metrics=("uSDR",))
