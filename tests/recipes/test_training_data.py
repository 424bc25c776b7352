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
from music.score import BAR, compose, vocal_line  # noqa: E402
from training.sampling import (  # noqa: E402
    BASS,
    FADE,
    LONGEST,
    OTHER,
    TONE,
    UNIT,
    VOCALS,
    Sampler,
    Variety,
    read_tracks,
    resting,
    retuned,
    spread,
    without_rounding,
)
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
    counts = sampler.batch(600)[2][OTHER]
    doubtful = torch.tensor(drawn)
    print(f"{int(doubtful.sum())} of 600 doubtful")
    assert 20 < int(doubtful.sum()) < 150
    assert not counts[doubtful].any() and counts[~doubtful].any()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_long_item_is_one_piece_of_time_and_the_next_is_short_again(sampler: Sampler, seed: int) -> None:
    sampler.rng = np.random.default_rng(seed)
    for lengths in (LONGEST, 1):
        mixes, sources, counts = sampler.batch(2, lengths)
        assert [x.shape[-1] for x in mixes] == [lengths * 16000, lengths * 32000]
        assert sources[0].shape[:2] == counts.shape == (4, 2)


def test_a_piece_is_sung_to_by_its_own_voice_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, song in (("a@1.0", True), ("piece-000", False), ("voice-000", False), ("piece-001", False)):
        write_track(tmp_path, name, song, True, (0.0, 0.0))
    voice = tmp_path / "voice-000"
    for rate in (8000, 16000):
        np.save(
            voice / f"{rate}.npy",
            np.arange(5)[:, None, None].astype(np.int16) // VOCALS * np.ones((1, 2, SECONDS * rate), np.int16),
        )
    sampler = Sampler(read_tracks(tmp_path, (8000, 16000)), CONFIG, 2.0, np.random.default_rng(0))
    names = [track.name for track in sampler.tracks]
    assert sampler.voices == {names.index("piece-000"): names.index("voice-000")}
    assert [names[i] for i in sampler.synthetic] == ["piece-000", "piece-001"]
    cuts: list[tuple[str, int, int]] = []
    cut = sampler.cut

    def recorded(index: int, stem: int, channel: int, start: int) -> list[NDArray[np.float32]]:
        cuts.append((names[index], stem, start))
        return cut(index, stem, channel, start)

    monkeypatch.setattr(sampler, "cut", recorded)
    together = 0
    for _ in range(200):
        cuts.clear()
        sampler.item()
        start = {(name, stem): at for name, stem, at in cuts}
        if ("piece-000", 0) in start and ("voice-000", VOCALS) in start and ("piece-000", OTHER) in start:
            together += start["piece-000", 0] == start["voice-000", VOCALS] == start["piece-000", OTHER]
        assert ("voice-000", 0) not in start and ("voice-000", OTHER) not in start
    print(f"{together} of 200 items are a piece with its own voice")
    assert together >= 5


@given(seed=st.integers(0, 2**32 - 1), middle=st.integers(48, 72), bars=st.integers(1, 2))
@settings(max_examples=50, deadline=None)
def test_a_voice_sings_in_the_piece_s_key_near_its_middle_for_about_the_phrase(
    seed: int, middle: int, bars: int
) -> None:
    rng = np.random.default_rng(seed)
    piece = compose(rng, 30)
    notes = vocal_line(rng, piece, middle, bars)
    for note in notes:
        assert (int(note.pitch) - piece.key) % 12 in piece.scale
        assert abs(note.pitch - middle) < 20 and note.loudness > 0
    sixteenths = sum(note.seconds for note in notes) / piece.sixteenth
    assert 0.8 * BAR * bars <= sixteenths < 0.8 * BAR * bars + 16


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
    sampler.rng, sampler.variety = np.random.default_rng(seed), Variety(tone=6.0)
    try:
        mixes, sources, _ = sampler.batch(3)
    finally:
        sampler.variety = Variety()
    for mix, stems in zip(mixes, sources, strict=True):
        for made, total in zip(mix, stems.sum(0), strict=True):
            assert torch.allclose(made, total, atol=1e-5) or torch.allclose(made, without_rounding(total), atol=1e-5)
    torch.testing.assert_close(sources[0].mean(-1), sources[1].mean(-1), rtol=1e-3, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), frames=st.integers(100, 2000))
@settings(max_examples=100, deadline=None)
def test_a_stem_that_rests_only_ever_becomes_quieter_and_never_at_once(seed: int, frames: int) -> None:
    rate = 400.0
    gains = resting(np.random.default_rng(seed), frames, rate)
    assert gains.shape == (4, frames) and gains.min() >= 0 and gains.max() <= 1
    assert np.abs(np.diff(gains)).max() <= 2 / (FADE * rate)


def test_every_stem_rests_alone_and_all_become_quieter_together() -> None:
    drawn = [resting(np.random.default_rng(seed), 1000, 100.0) for seed in range(300)]
    for stem in range(4):
        assert any(x[stem].min() == 0 and np.delete(x, stem, axis=0).min() == 1 for x in drawn)
    assert any((x[0] == x).all() and x.min() < 0.7 for x in drawn)
    assert any((x == 1).all() for x in drawn)


def test_gains_of_frames_are_the_same_at_both_rates() -> None:
    gains = np.random.default_rng(0).random((4, 50)).astype(np.float32)
    fine, coarse = spread(gains, 40), spread(gains, 20)
    np.testing.assert_array_equal(fine[:, ::2], coarse)
    np.testing.assert_array_equal(coarse[:, ::20], gains)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_items_with_rests_and_other_levels_still_sum_to_the_mixture(sampler: Sampler, seed: int) -> None:
    sampler.rng, sampler.variety = np.random.default_rng(seed), Variety(level=9.0, rests=True)
    try:
        mixes, sources, counts = sampler.batch(3)
    finally:
        sampler.variety = Variety()
    for mix, stems in zip(mixes, sources, strict=True):
        for made, total in zip(mix, stems.sum(0), strict=True):
            assert torch.allclose(made, total, atol=1e-5) or torch.allclose(made, without_rounding(total), atol=1e-5)
    assert not counts[sources[-1].square().sum(-1) == 0].any()


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
