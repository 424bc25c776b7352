"""The recipe's music and training items."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metatasnet_fast.config import MetaTasNetConfig

pytest.importorskip("soundfile")
sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from music.drums import play_samples, synthetic_kit  # noqa: E402
from music.score import BAR, compose  # noqa: E402
from training.sampling import BASS, OTHER, TONE, UNIT, VOCALS, Sampler, read_tracks, retuned, without_rounding  # noqa: E402
from training.scoring import band_levels  # noqa: E402

CONFIG = MetaTasNetConfig(N=16, L=40, W=40, B=16, H=16, num_mels=8, stages_num=2)
SECONDS = 24


def write_track(folder: Path, name: str, song: bool, explicit: bool, held: tuple[float, float]) -> None:
    """Constant stems whose value names the stem, and the held-out seconds marked by a large one."""
    (folder / name).mkdir()
    for rate in (8000, 16000):
        audio = np.zeros((5, 2, SECONDS * rate), np.int16)
        audio += np.array([1, 2, 3, 4, 5], np.int16)[:, None, None] * 1000
        if song and not explicit:
            audio[BASS] = 0
        if not song:
            audio[VOCALS] = 0
        audio[..., int(held[0] * rate) : int(held[1] * rate)] = 32000
        np.save(folder / name / f"{rate}.npy", audio)
    (folder / name / "track.json").write_text(json.dumps({"song": song, "explicit": explicit, "held": held}))


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    folder = tmp_path_factory.mktemp("tracks")
    for name, song, explicit in (("a@1.0", True, True), ("b@1.0", True, False), ("piece-000", False, True)):
        write_track(folder, name, song, explicit, (10.0, 14.0) if song else (0.0, 0.0))
    return Sampler(read_tracks(folder, (8000, 16000)), CONFIG, 2.0, np.random.default_rng(0))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_nothing_held_out_is_ever_in_an_item(sampler: Sampler, seed: int) -> None:
    sampler.rng = np.random.default_rng(seed)
    for index in range(len(sampler.tracks)):
        for start in (sampler.anywhere(index), *(sampler.where_it_sounds(index, stem) for stem in range(4))):
            for piece in sampler.cut(index, 0, 2, start):
                assert np.abs(piece).max() * UNIT < 6000


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_mixture_is_the_sum_of_its_stems_with_or_without_rounding_noise(sampler: Sampler, seed: int) -> None:
    sampler.rng = np.random.default_rng(seed)
    mixes, sources, counts = sampler.batch(3)
    for mix, stems, scale in zip(mixes, sources, (1, 2), strict=True):
        assert stems.shape == (4, 3, 16000 * scale)
        for made, total in zip(mix, stems.sum(0), strict=True):
            assert torch.allclose(made, total) or torch.allclose(made, without_rounding(total), atol=1e-5)
    assert counts.shape == (4, 3)
    assert not counts[sources[-1].square().sum(-1) == 0].any()


def test_an_other_that_may_hold_a_bass_never_counts(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler.rng = np.random.default_rng(1)
    drawn: list[bool] = []
    item = sampler.item

    def recorded() -> tuple[list[NDArray[np.float32]], bool]:
        stems, doubtful = item()
        drawn.append(doubtful)
        return stems, doubtful

    monkeypatch.setattr(sampler, "item", recorded)
    counts = sampler.batch(300)[2][OTHER]
    doubtful = torch.tensor(drawn)
    print(f"{int(doubtful.sum())} of 300 doubtful")
    assert 10 < int(doubtful.sum()) < 150
    assert not counts[doubtful].any() and counts[~doubtful].any()


@given(gains=st.lists(st.floats(-12, 12), min_size=len(TONE), max_size=len(TONE)), rate=st.sampled_from([8000, 16000]))
@settings(max_examples=50, deadline=None)
def test_another_tone_has_its_gains_at_its_frequencies(gains: list[float], rate: int) -> None:
    time = np.arange(2 * rate) / rate
    for frequency, gain in zip(TONE, gains, strict=True):
        if frequency < rate / 2:
            sine = np.sin(2 * np.pi * frequency * time).astype(np.float32)
            expected = 10 ** (gain / 20) * sine
            np.testing.assert_allclose(retuned(sine, rate, np.array(gains)), expected, atol=1e-4 * 10 ** (gain / 20))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_stems_of_another_tone_still_sum_to_the_mixture_and_agree_between_rates(sampler: Sampler, seed: int) -> None:
    """The tracks of this file are constants, which a tone changes by its lowest gain, the same at both rates."""
    sampler.rng, sampler.tone = np.random.default_rng(seed), 6.0
    try:
        mixes, sources, _ = sampler.batch(3)
    finally:
        sampler.tone = 0.0
    for mix, stems in zip(mixes, sources, strict=True):
        for made, total in zip(mix, stems.sum(0), strict=True):
            assert torch.allclose(made, total, atol=1e-5) or torch.allclose(made, without_rounding(total), atol=1e-5)
    torch.testing.assert_close(sources[0].mean(-1), sources[1].mean(-1), rtol=1e-3, atol=1e-4)


def test_a_halved_band_lies_six_decibels_lower() -> None:
    time = torch.arange(16000) / 16000
    low, high = torch.sin(2 * torch.pi * 1500 * time), torch.sin(2 * torch.pi * 3000 * time)
    found = band_levels(low + 0.5 * high, low + high, 16000, [(1000, 2000), (2000, 4000)])
    assert found == pytest.approx([0.0, 20 * np.log10(0.5)], abs=1e-3)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_piece_stays_in_its_bars_and_registers(seed: int) -> None:
    piece = compose(np.random.default_rng(seed), 30.0)
    end = piece.bars * BAR
    assert all(0 <= hit.start < end + 1 and 1 <= hit.velocity <= 127 for hit in piece.drums)
    for note in piece.bass.notes:
        assert 0 <= note.start < end and 20 <= note.pitch <= 64
    for part in piece.other:
        assert all(0 <= note.start < end and 30 <= note.pitch <= 110 for note in part.notes)


def test_the_same_seed_writes_the_same_piece() -> None:
    first, second = (compose(np.random.default_rng(7), 60.0) for _ in range(2))
    assert asdict(first) == asdict(second)


def test_synthesised_drums_are_finite_and_sound() -> None:
    rng = np.random.default_rng(3)
    kit = synthetic_kit(rng)
    audio = play_samples(rng, compose(rng, 20.0), kit)
    assert np.isfinite(audio).all() and float(np.abs(audio).max()) > 0.1
    assert all(np.isclose(np.abs(sound).max(), 1.0) for sound in kit.values())
