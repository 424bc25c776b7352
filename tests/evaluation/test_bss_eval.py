"""BSSEval v4 against museval, the program that defines the published numbers."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metatasnet_fast.errors import MetaTasNetError, ShapeError
from metatasnet_fast.evaluation import (
    METRICS,
    BssScores,
    EvaluationError,
    SilentSourceError,
    SilentSourceWarning,
    bss_eval,
    filters,
)
from metatasnet_fast.evaluation.bss_eval import frame_slices
from metatasnet_fast.evaluation.filters import fft_length
from tests.museval_oracle import museval_module

Array = NDArray[np.float64]

SMALL: dict[str, Any] = {"window": 3000, "hop": 2000, "filters_len": 24}


def separated(samples: int, sources: int = 4, channels: int = 2, seed: int = 0) -> tuple[Array, Array]:
    """Noise sources with different spectra, and estimates with leakage, filtering and artifacts."""
    random = np.random.RandomState(seed)
    references = random.standard_normal((sources, samples, channels))
    references[:, 1:] += np.linspace(0, 0.7, sources)[:, None, None] * references[:, :-1]
    estimates = 0.7 * references + 0.2 * np.roll(references, 3, axis=1) + 0.1 * references.sum(0)
    return references, estimates + 0.05 * random.standard_normal(references.shape)


def museval_scores(references: Array, estimates: Array, window: int, hop: int, filters_len: int) -> dict[str, Array]:
    museval_metrics = museval_module("museval.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = museval_metrics.bss_eval(references, estimates, window=window, hop=hop, filters_len=filters_len)
    return dict(zip(METRICS, scores[:4], strict=True))


def largest_difference(ours: BssScores, theirs: dict[str, Array]) -> float:
    """In dB over all metrics; infinite if the NaN frames differ."""
    worst = 0.0
    for metric, expected in theirs.items():
        if not np.array_equal(np.isnan(ours[metric]), np.isnan(expected)):
            return float("inf")
        with np.errstate(invalid="ignore"):
            difference = np.where(ours[metric] == expected, 0.0, np.abs(ours[metric] - expected))
        worst = max(worst, float(np.nanmax(difference, initial=0.0)))
    return worst


def test_all_four_metrics_are_musevals_at_the_published_setting() -> None:
    references, estimates = separated(2 * 44100 + 17, sources=2)
    theirs = museval_scores(references, estimates, 44100, 44100, 512)
    assert theirs["SDR"].shape == (2, 2)
    assert largest_difference(bss_eval(references, estimates), theirs) < 1e-9


@pytest.mark.parametrize(("sources", "channels"), [(4, 2), (2, 1), (3, 3), (1, 2)])
def test_all_four_metrics_are_musevals_for_any_number_of_sources_and_channels(sources: int, channels: int) -> None:
    references, estimates = separated(11_111, sources, channels)
    assert (
        largest_difference(bss_eval(references, estimates, **SMALL), museval_scores(references, estimates, **SMALL))
        < 1e-9
    )


def test_a_track_shorter_than_the_window_is_one_frame() -> None:
    references, estimates = separated(1_777)
    ours = bss_eval(references, estimates, **SMALL)
    assert ours["SDR"].shape[1] == 1
    assert largest_difference(ours, museval_scores(references, estimates, **SMALL)) < 1e-9


def test_silence_in_one_source_voids_the_frame_for_all_sources_as_in_museval() -> None:
    references, estimates = separated(14_000)
    references[1, 2000:5000] = 0
    estimates[3, 9000:13_000] = 0
    theirs = museval_scores(references, estimates, **SMALL)
    assert np.isnan(theirs["SAR"][0]).tolist() == [False, True, False, False, False, True]
    assert largest_difference(bss_eval(references, estimates, **SMALL), theirs) < 1e-9


def test_opposite_channels_count_as_silence_as_in_museval() -> None:
    references, estimates = separated(9_000)
    references[0, 4000:7000, 1] = -references[0, 4000:7000, 0]
    theirs = museval_scores(references, estimates, **SMALL)
    assert np.isnan(theirs["SDR"][2]).tolist() == [False, False, True, False]
    assert largest_difference(bss_eval(references, estimates, **SMALL), theirs) < 1e-9


def test_a_single_sounding_sample_makes_the_frame_count() -> None:
    references, estimates = separated(9_000)
    references[2, 4000:7000] = 0
    references[2, 5001, 1] = 1e-30
    assert not np.isnan(bss_eval(references, estimates, **SMALL)["SDR"]).any()


@pytest.mark.parametrize("length", [8_000, 12_345])
def test_estimates_are_cut_or_padded_to_the_references(length: int) -> None:
    museval = museval_module()
    references, _ = separated(10_000)
    _, estimates = separated(length)
    _, padded = museval.pad_or_truncate(references, estimates)
    ours = bss_eval(references, estimates, **SMALL)
    assert largest_difference(ours, museval_scores(references, padded, **SMALL)) < 1e-9


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 600), st.integers(1, 600))
def test_frames_are_cut_where_museval_cuts_them(samples: int, window: int, hop: int) -> None:
    framing = museval_module("museval.metrics").Framing(window, hop, samples)
    assert frame_slices(samples, window, hop) == list(framing)


@given(st.integers(1, 10**7))
def test_fft_lengths_are_the_smallest_even_products_of_small_primes(at_least: int) -> None:
    length = fft_length(at_least)
    assert length >= at_least and length % 2 == 0
    rest = length
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1


def test_forty_four_thousand_six_hundred_and_eleven_becomes_forty_five_thousand() -> None:
    assert fft_length(44_100 + 511) == 45_000


def dense_scores(references: Array, estimates: Array, window: int, hop: int, filters_len: int) -> dict[str, Array]:
    """The definition, word for word: dense least squares on delayed references, convolutions, sums of squares."""
    sources, samples, channels = references.shape

    def delayed(signal: Array) -> Array:
        columns = np.zeros((len(signal) + filters_len - 1, signal.shape[1], filters_len))
        for delay in range(filters_len):
            columns[delay : delay + len(signal), :, delay] = signal
        return columns.reshape(len(columns), -1)

    def padded(signal: Array) -> Array:
        return np.pad(signal, ((0, filters_len - 1), (0, 0)))

    def filters(reference: Array, estimate: Array) -> Array:
        return np.linalg.lstsq(delayed(reference), padded(estimate), rcond=1e-10)[0]

    everything = references.transpose(1, 0, 2).reshape(samples, -1)
    frames = [slice(start, start + window) for start in range(0, samples - window + 1, hop)]
    scores = {metric: np.zeros((sources, len(frames))) for metric in METRICS}
    for j in range(sources):
        on_all, on_own = filters(everything, estimates[j]), filters(references[j], estimates[j])
        for index, frame in enumerate(frames):
            true, estimate = padded(references[j, frame]), padded(estimates[j, frame])
            target, projection = delayed(references[j, frame]) @ on_own, delayed(everything[frame]) @ on_all
            for metric, above, below in (
                ("SDR", true, estimate - true),
                ("ISR", true, target - true),
                ("SIR", target, projection - target),
                ("SAR", projection, estimate - projection),
            ):
                scores[metric][j, index] = 10 * np.log10(np.sum(above**2) / np.sum(below**2))
    return scores


def degenerate(kind: str) -> tuple[Array, Array]:
    references, estimates = separated(9_000)
    if kind == "mono stem":
        references[2, :, 1] = references[2, :, 0]
    elif kind == "all stems mono":
        references[:, :, 1] = references[:, :, 0]
    elif kind == "a channel of zeros":
        references[2, :, 1] = 0
    elif kind == "the same stem twice":
        references[3] = references[1]
    elif kind == "a channel between two others":
        references[3, :, 1] = 0.3 * references[1, :, 0] - 0.6 * references[0, :, 0]
    return references, estimates


@pytest.mark.parametrize(
    "kind",
    [
        "regular",
        "mono stem",
        "all stems mono",
        "a channel of zeros",
        "the same stem twice",
        "a channel between two others",
    ],
)
def test_scores_are_those_of_the_dense_projection_even_for_dependent_references(kind: str) -> None:
    references, estimates = (audio[:, :2500] for audio in degenerate(kind))
    size = {"window": 1000, "hop": 700, "filters_len": 11}
    assert (
        largest_difference(bss_eval(references, estimates, **size), dense_scores(references, estimates, **size)) < 1e-8
    )


@pytest.mark.parametrize("kind", ["mono stem", "all stems mono", "a channel of zeros"])
def test_mono_and_one_sided_stems_have_musevals_numbers(kind: str) -> None:
    references, estimates = degenerate(kind)
    ours = bss_eval(references, estimates, **SMALL)
    assert largest_difference(ours, museval_scores(references, estimates, **SMALL)) < 1e-5


def test_sdr_alone_needs_no_filters_and_is_the_same_sdr() -> None:
    references, estimates = separated(9_000)
    alone = bss_eval(references, estimates, metrics=("SDR",), **SMALL)
    assert alone.solvers == ()
    assert list(alone.values) == ["SDR"]
    assert np.array_equal(alone["SDR"], bss_eval(references, estimates, **SMALL)["SDR"])


def test_a_perfect_estimate_has_infinite_sdr() -> None:
    references, _ = separated(5_000)
    assert np.isposinf(bss_eval(references, references, metrics=("SDR",), **SMALL)["SDR"]).all()


def test_the_size_of_a_batch_of_windows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    references, estimates = separated(30_000)
    whole = bss_eval(references, estimates, **SMALL)
    for windows, blocks in ((1, 1), (filters._BYTES_PER_BATCH["cuda"], filters._BLOCKS_AT_ONCE["cuda"])):
        monkeypatch.setitem(filters._BYTES_PER_BATCH, "cpu", windows)
        monkeypatch.setitem(filters._BLOCKS_AT_ONCE, "cpu", blocks)
        other = bss_eval(references, estimates, **SMALL)
        for metric in METRICS:
            np.testing.assert_allclose(other[metric], whole[metric], rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(3)), st.integers(-12, 12), st.integers(0, 2**16))
def test_the_order_and_the_level_of_the_stems_do_not_matter(order: list[int], exponent: int, seed: int) -> None:
    references, estimates = separated(2_500, sources=3, seed=seed)
    plain = bss_eval(references, estimates, window=1000, hop=1000, filters_len=8)
    louder = bss_eval(
        references[order] * 2.0**exponent, estimates[order] * 2.0**exponent, window=1000, hop=1000, filters_len=8
    )
    for metric in METRICS:
        np.testing.assert_allclose(louder[metric], plain[metric][order], rtol=0, atol=1e-6)


def test_every_container_of_the_same_numbers_gives_the_same_scores() -> None:
    references, estimates = (np.round(1000 * audio).astype(np.int16) for audio in separated(6_000))
    expected = bss_eval(references.astype(np.float64), estimates.astype(np.float64), **SMALL)
    frozen = references.astype(np.float32)
    frozen.flags.writeable = False
    backwards = np.ascontiguousarray(estimates[:, ::-1])[:, ::-1]
    for reference, estimate in (
        (references, estimates),
        (frozen, backwards),
        (references.astype(">f4"), torch.from_numpy(estimates)),
        (list(references), [torch.from_numpy(stem).float().requires_grad_() for stem in estimates]),
        (np.asfortranarray(references), estimates.astype(np.float32)),
    ):
        scores = bss_eval(reference, estimate, **SMALL)
        for metric in METRICS:
            np.testing.assert_allclose(scores[metric], expected[metric], rtol=0, atol=1e-11)


def test_a_stem_silent_from_end_to_end_is_recorded_warned_about_and_voids_the_track() -> None:
    references, estimates = separated(6_000)
    references[2], estimates[0] = 0, 0
    with pytest.warns(SilentSourceWarning, match="reference of other, estimate of drums"):
        scores = bss_eval(references, estimates, names=("drums", "bass", "other", "vocals"), **SMALL)
    assert scores.silent == ("reference of other", "estimate of drums")
    assert all(np.isnan(scores[metric]).all() and scores[metric].shape == (4, 2) for metric in METRICS)


def test_a_stem_silent_from_end_to_end_stops_a_strict_evaluation() -> None:
    references, estimates = separated(6_000)
    estimates[1] = 0
    with pytest.raises(SilentSourceError, match="estimate of source 1"):
        bss_eval(references, estimates, strict=True, **SMALL)


def test_a_stem_that_sounds_only_in_the_unscored_tail_is_not_called_silent() -> None:
    references, estimates = separated(5_900)
    references[1, :5_800] = 0
    scores = bss_eval(references, estimates, strict=True, **SMALL)
    assert scores.silent == ()
    assert np.isnan(scores["SDR"]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["references", "estimates"])
def test_a_sample_that_is_no_number_is_an_error_and_not_a_missing_frame(value: float, which: str) -> None:
    signals = dict(zip(("references", "estimates"), separated(6_000), strict=True))
    signals[which][1, 100, 0] = value
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        bss_eval(**signals, metrics=("SDR",), **SMALL)
    signals[which][1, 100, 0] = 0
    signals[which][1, 5_999, 0] = value
    with pytest.raises(EvaluationError, match="NaN or infinite"):
        bss_eval(**signals, **SMALL)


@pytest.mark.parametrize(
    ("references", "estimates", "options", "error"),
    [
        (np.ones((9, 2)), np.ones((9, 2)), {}, ShapeError),
        (np.ones((2, 900, 700)), np.ones((2, 900, 700)), {}, ShapeError),
        (np.ones((2, 0, 2)), np.ones((2, 0, 2)), {}, ShapeError),
        (np.ones((2, 9, 2)), np.ones((3, 9, 2)), {}, ShapeError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 1)), {}, ShapeError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 2), dtype=complex), {}, ShapeError),
        ([np.ones((9, 2)), np.ones((8, 2))], np.ones((2, 9, 2)), {}, ShapeError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 2)), {"names": ("one",)}, ShapeError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 2)), {"metrics": ("SNR",)}, EvaluationError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 2)), {"metrics": ()}, EvaluationError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 2)), {"hop": 0}, EvaluationError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 2)), {"window": 1.5}, EvaluationError),
        (np.ones((2, 9, 2)), np.ones((2, 9, 2)), {"filters_len": 0}, EvaluationError),
    ],
)
def test_what_cannot_be_scored_is_a_typed_error(
    references: Any, estimates: Any, options: Any, error: type[MetaTasNetError]
) -> None:
    with pytest.raises(error):
        bss_eval(references, estimates, **options)


def test_importing_needs_only_torch_and_numpy() -> None:
    program = (
        "import sys; import metatasnet_fast.evaluation; "
        "sys.exit(bool({'scipy', 'museval', 'musdb', 'pandas', 'matplotlib', 'simplejson'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores() -> None:
    references, estimates = separated(30_000)
    expected = bss_eval(references, estimates, **SMALL)
    on_gpu = bss_eval(torch.from_numpy(references).cuda(), torch.from_numpy(estimates).cuda(), **SMALL)
    for metric in METRICS:
        np.testing.assert_allclose(on_gpu[metric], expected[metric], rtol=0, atol=1e-9)
