"""The cache: what is stored is what was given, rates are aligned, and what is damaged is refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast import __version__
from metatasnet_fast.errors import TrainingDataError
from metatasnet_fast.training.data import Cache, write_manifest, write_track
from metatasnet_fast.training.data.store import error_filter, quantise

Audio = dict[int, np.ndarray]


def noise(seconds: float = 0.1, channels: int = 2, seed: int = 0) -> Audio:
    random = np.random.default_rng(seed)
    return {
        rate: 0.1 * random.standard_normal((4, channels, int(seconds * rate))).astype(np.float32)
        for rate in (8000, 16000, 32000)
    }


def reopened(path: Path, audio: Audio) -> Cache:
    write_manifest(path, list(audio))
    return Cache.open(path)


@pytest.mark.parametrize("channels", [1, 2])
def test_float32_is_exact(tmp_path: Path, channels: int) -> None:
    audio = noise(channels=channels)
    write_track(tmp_path, "train", "a", audio, dtype="float32")
    (track,) = reopened(tmp_path, audio).tracks("train")
    for rate, signal in audio.items():
        assert np.array_equal(track.stems(rate)[:], signal)


BOUND = 0.5 * (1 + np.abs(error_filter()).sum()) + 0.004
"""Units of int16; float32 rounds the samples to 0.002 of them before, and after."""


def test_int16_is_within_the_bound_of_each_stems_own_scale(tmp_path: Path) -> None:
    audio = noise()
    for signal in audio.values():
        signal[1] *= 1e-4
        signal[2] = 0
        signal[3, 0, 100:200] = 0
    write_track(tmp_path, "train", "a", audio)
    (track,) = reopened(tmp_path, audio).tracks("train")
    for rate, signal in audio.items():
        stored = np.asarray(track.stems(rate))
        error = np.abs(stored - signal).max((1, 2))
        assert (error <= np.abs(signal).max((1, 2)) / 32760 * BOUND).all()
        assert ((stored == 0) | (signal != 0)).all(), "silence stays silence"


def test_the_rounding_noise_leaves_the_end_of_the_band_alone() -> None:
    """There a resampled recording has next to nothing, and the network sees logarithms."""
    random = np.random.default_rng(0)
    signal = random.standard_normal((4, 2, 2**18)).astype(np.float32)
    stored, scale = quantise(signal)
    units = np.array(scale, np.float32)[:, None, None]
    spectrum = np.square(np.abs(np.fft.rfft((stored - signal / units).astype(np.float64)))).mean((0, 1)) / 2**18
    white = 1 / 12
    edge = int(0.95 * len(spectrum))
    assert 10 * np.log10(spectrum[edge:].mean() / white) < -25
    assert 10 * np.log10(spectrum[:edge].mean() / white) < 4


@settings(deadline=None)
@given(peak=st.floats(2.0**-126, 2.0**20, width=32), seed=st.integers(0, 100))
def test_any_level_is_quantised_without_overflow(peak: float, seed: int) -> None:
    signal = np.random.default_rng(seed).uniform(-1, 1, (4, 1, 50)).astype(np.float32) * np.float32(peak)
    stored, scale = quantise(signal)
    assert np.abs(stored.astype(int)).max() <= 32767
    assert np.isfinite(scale).all() and min(scale) > 0


def test_rates_are_cut_to_one_duration(tmp_path: Path) -> None:
    audio = noise()
    audio = {8000: audio[8000][..., :701], 16000: audio[16000][..., :1399], 32000: audio[32000][..., :2850]}
    write_track(tmp_path, "train", "a", audio)
    (track,) = reopened(tmp_path, audio).tracks("train")
    assert [track.stems(rate).shape[-1] for rate in audio] == [699, 1398, 2796]
    assert track.seconds == 699 / 8000


def test_a_deviation_is_that_of_the_mono_mixture(tmp_path: Path) -> None:
    audio = noise()
    write_track(tmp_path, "train", "a", audio)
    (track,) = reopened(tmp_path, audio).tracks("train")
    for rate, signal in audio.items():
        assert track.deviation(rate) == pytest.approx(signal.mean(1).sum(0).std(), rel=1e-5)


def test_indexing_reads_the_same_as_reading_all(cache: Cache) -> None:
    stems = cache.tracks("train")[0].stems(8000)
    whole = np.asarray(stems)
    assert whole.dtype == np.float32 and whole.shape == stems.shape
    for key in (slice(None), 2, (slice(None), 0), (1, 1), (slice(1, 3), slice(None), slice(5, 9)), (3, 0, 7), -1):
        assert np.array_equal(stems[key], whole[key])


def test_tracks_come_by_split_and_name(cache: Cache) -> None:
    assert [track.name for track in cache.tracks("train")] == list("abcde")
    assert [track.name for track in cache.tracks("valid")] == ["v"]
    assert cache.tracks("test") == []
    assert cache.tracks("train")[1].counts == (True, False, True, True)
    assert cache.tracks("train")[2].channels == 1


def test_the_manifest_says_what_there_is_and_what_made_it(tmp_path: Path) -> None:
    audio = noise()
    write_track(tmp_path, "train", "ä b", audio, sha256="abc", origin="somewhere", warnings=["careful"])
    failure = {"name": "x", "split": "train", "error": "because"}
    manifest = write_manifest(tmp_path, list(audio), [failure])
    assert manifest == json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert manifest["tool"] == f"metatasnet-fast {__version__}"
    assert manifest["failed"] == [failure]
    assert manifest["seconds"] == {"train": 0.1, "valid": 0.0, "test": 0.0}
    (track,) = manifest["tracks"]
    assert (track["sha256"], track["origin"], track["warnings"]) == ("abc", "somewhere", ["careful"])
    assert {rate: values["samples"] for rate, values in track["rates"].items()} == {
        "8000": 800,
        "16000": 1600,
        "32000": 3200,
    }


def test_a_track_of_no_use_is_refused(tmp_path: Path) -> None:
    silent, constant, empty, infinite = noise(), noise(), noise(), noise()
    for rate in silent:
        silent[rate][:] = 0
        constant[rate][:] = 0.25
        empty[rate] = empty[rate][..., :0]
        infinite[rate][:] = np.inf
    cases = ((silent, "silent"), (constant, "constant"), (empty, "shorter"), (infinite, "not finite"))
    for audio, message in cases:
        with pytest.raises(TrainingDataError, match=message):
            write_track(tmp_path, "train", "a", audio)
    assert list(tmp_path.rglob("*.npy")) == []


def test_rates_that_cannot_be_aligned_are_refused(tmp_path: Path) -> None:
    audio = {8000: noise()[8000], 11025: noise()[16000]}
    with pytest.raises(TrainingDataError, match="multiple of the lowest"):
        write_track(tmp_path, "train", "a", audio)


def test_a_folder_that_is_no_cached_track_is_never_replaced(tmp_path: Path) -> None:
    song = tmp_path / "train" / "a"
    song.mkdir(parents=True)
    (song / "drums.wav").write_bytes(b"precious")
    with pytest.raises(TrainingDataError, match="another folder"):
        write_track(tmp_path, "train", "a", noise())
    assert (song / "drums.wav").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no finished cache"),
        ("{", "no finished cache"),
        ("[]", "no manifest"),
        ("{}", "no manifest"),
        ('{"format": 0}', "another version"),
        ('{"format": 1, "rates": [8000], "tracks": [{}]}', "cannot be read"),
        ('{"format": 1, "rates": [8000], "tracks": [{"format": 9}]}', "another version"),
        ('{"layout": "original"}', "--original"),
        (
            '{"format": 1, "rates": [8], "tracks": [{"format": 1, "counts": [], "warnings": [], "rates": '
            '{"8": {"samples": 1, "scale": [1, 1, 1, 1], "deviation": NaN}}}]}',
            "no positive numbers",
        ),
    ],
)
def test_what_is_no_cache_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(TrainingDataError, match=message):
        Cache.open(tmp_path)


def test_a_rate_that_is_not_there_is_refused(cache: Cache) -> None:
    with pytest.raises(TrainingDataError, match="8000, 16000 Hz, not at 32000"):
        cache.tracks("train")[0].stems(32000)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_file_that_is_missing_is_known_when_the_cache_is_opened(tmp_path: Path, split: str, damage: str) -> None:
    audio = noise()
    write_track(tmp_path, split, "a", audio)
    (track,) = reopened(tmp_path, audio).tracks(split)
    file = track.file(16000)
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingDataError, match=r"16000\.npy is missing or cut off; .* prepare again"):
        Cache.open(tmp_path)


def test_a_track_without_its_files_is_not_listed(tmp_path: Path) -> None:
    audio = noise()
    for name in ("a", "b"):
        write_track(tmp_path, "train", name, audio)
    (tmp_path / "train" / "a" / "8000.npy").unlink()
    assert [track.name for track in reopened(tmp_path, audio).tracks("train")] == ["b"]


@pytest.mark.parametrize("damage", ["cut", "other shape", "missing"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    audio = noise()
    write_track(tmp_path, "train", "a", audio)
    (track,) = reopened(tmp_path, audio).tracks("train")
    file = track.file(8000)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-2])
    elif damage == "missing":
        file.unlink()
    else:
        np.save(file, np.zeros((4, 2, 5), np.int16))
    with pytest.raises(TrainingDataError, match="prepare again"):
        track.stems(8000)
