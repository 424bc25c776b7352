"""The authors' layout: written as their program writes it, and read back into a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import resample
from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.errors import TrainingDataError
from metatasnet_fast.training.data import Cache
from metatasnet_fast.training.data.prepare import Preparation, prepare
from metatasnet_fast.training.data.sources import find_original, find_stems

sf = pytest.importorskip("soundfile")

RATES = (8000, 16000)
SAMPLES = 22051
WriteStems = Callable[..., Path]


@pytest.fixture
def songs(tmp_path: Path, write_stems: WriteStems) -> Path:
    """Two songs at 44.1 kHz, the first with a mixture that is not its stems' sum; the second is held out."""
    for seed, name in enumerate(("a", "b")):
        write_stems(tmp_path / "songs" / name, seed=seed, rate=44100, seconds=SAMPLES / 44100)
    mixture = 0.1 * np.random.default_rng(9).standard_normal((SAMPLES, 2)).astype(np.float32)
    sf.write(tmp_path / "songs" / "a" / "mixture.wav", mixture, 44100, subtype="FLOAT")
    return tmp_path / "songs"


def write(songs: Path, out: Path) -> Preparation:
    return prepare(find_stems(songs, ["b"]), out, rates=RATES, layout="original")


def load(path: Path) -> np.ndarray:
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        return np.asarray(file["arr_0"])


def signals(song: Path) -> dict[str, torch.Tensor]:
    return {p.stem: torch.from_numpy(sf.read(p, dtype="float32")[0].T.copy()) for p in song.glob("*.wav")}


def test_files_hold_what_the_authors_program_writes(tmp_path: Path, songs: Path) -> None:
    write(songs, tmp_path / "out")
    audio = signals(songs / "a")
    audio["accompaniment"] = audio["drums"] + audio["bass"] + audio["other"]
    for rate in RATES:
        stored = load(tmp_path / "out" / f"train_{rate // 1000}" / "0000.npz")
        length = math.ceil(SAMPLES * rate / 44100)
        assert stored.dtype == np.float32 and stored.shape == (3, 6, length)
        for index, name in enumerate(("mixture", *INSTRUMENTS, "accompaniment")):
            expected = resample(audio[name], 44100, rate, length=length).numpy()
            assert np.abs(stored[:2, index] - expected).max() < 1e-6
        assert np.abs(stored[2] - stored[:2].mean(0)).max() < 1e-6


def test_a_missing_mixture_is_the_sum_of_the_stems(tmp_path: Path, songs: Path) -> None:
    write(songs, tmp_path / "out")
    stored = load(tmp_path / "out" / "validation_16" / "0000.npz")
    assert np.abs(stored[:, 0] - stored[:, 1:5].sum(1)).max() < 1e-6


def test_folders_hold_nothing_but_tracks(tmp_path: Path, songs: Path) -> None:
    """The authors' program takes every file in them for a track."""
    write(songs, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("*_*/*")}
    assert found == {f"{split}_{kilohertz}/0000.npz" for split in ("train", "validation") for kilohertz in (8, 16)}


def test_a_track_that_is_held_out_leaves_the_training_tracks(tmp_path: Path, songs: Path) -> None:
    prepare(find_stems(songs), tmp_path / "out", rates=RATES, layout="original")
    write(songs, tmp_path / "out")
    write(songs, tmp_path / "fresh")
    assert [p.name for p in (tmp_path / "out" / "train_8").iterdir()] == ["0000.npz"]
    for rate in RATES:
        for folder in (f"train_{rate // 1000}", f"validation_{rate // 1000}"):
            found, expected = (load(tmp_path / out / folder / "0000.npz") for out in ("out", "fresh"))
            assert np.array_equal(found, expected)


def test_finished_tracks_are_kept_and_changed_ones_written_anew(
    tmp_path: Path, songs: Path, write_stems: WriteStems
) -> None:
    out = tmp_path / "out"
    write(songs, out)
    before = {p: p.read_bytes() for p in out.rglob("*.npz")}
    assert [o.status for o in write(songs, out).outcomes] == ["kept", "kept"]
    assert {p: p.read_bytes() for p in out.rglob("*.npz")} == before
    write_stems(songs / "b", seed=5, rate=44100)
    assert [o.status for o in write(songs, out).outcomes] == ["kept", "done"]
    (out / "train_16" / "0000.npz").unlink()
    assert [o.status for o in write(songs, out).outcomes] == ["done", "kept"]


def test_a_changed_mixture_is_a_changed_track(tmp_path: Path, songs: Path) -> None:
    out, mixture = tmp_path / "out", songs / "a" / "mixture.wav"
    write(songs, out)
    before = load(out / "train_8" / "0000.npz")
    samples, rate = sf.read(mixture, dtype="float32")
    sf.write(mixture, samples / 2, rate, subtype="FLOAT")
    assert [o.status for o in write(songs, out).outcomes] == ["done", "kept"]
    after = load(out / "train_8" / "0000.npz")
    assert np.abs(after[:, 0] - before[:, 0] / 2).max() < 1e-6
    assert np.array_equal(after[:, 1:], before[:, 1:])
    mixture.rename(songs / "b" / "mixture.wav")
    assert [o.status for o in write(songs, out).outcomes] == ["done", "done"]


def test_two_mixtures_of_one_track_are_refused_where_they_are_read(tmp_path: Path, songs: Path) -> None:
    samples, rate = sf.read(songs / "a" / "mixture.wav")
    sf.write(songs / "a" / "mixture.flac", samples, rate)
    (failure,) = write(songs, tmp_path / "out").failures
    assert failure.name == "a" and "has both mixture.flac and mixture.wav; keep one" in str(failure.error)
    assert prepare(find_stems(songs, ["b"]), tmp_path / "cache", rates=RATES).failures == []


def test_a_cache_made_of_it_is_the_cache_made_of_the_stems(tmp_path: Path, songs: Path) -> None:
    write(songs, tmp_path / "out")
    prepare(find_original(tmp_path / "out", RATES), tmp_path / "from-original", rates=RATES)
    prepare(find_stems(songs, ["b"]), tmp_path / "direct", rates=RATES)
    for split in ("train", "valid"):
        (theirs,) = Cache.open(tmp_path / "from-original").tracks(split)
        (ours,) = Cache.open(tmp_path / "direct").tracks(split)
        assert theirs.name == "0000"
        for rate in RATES:
            a, b = theirs.stems(rate), ours.stems(rate)
            n = min(a.shape[-1], b.shape[-1])
            assert abs(a.shape[-1] - b.shape[-1]) <= rate // RATES[0]
            # Each is rounded, by at most 1.7 units.
            assert np.abs(a[..., :n] - b[..., :n]).max() < a.scale.max() * 3.4


def test_it_is_no_cache_itself(tmp_path: Path, songs: Path) -> None:
    write(songs, tmp_path / "out")
    with pytest.raises(TrainingDataError, match="--original"):
        Cache.open(tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing rate", "cut", "other shape", "no numbers", "other key"])
def test_damaged_files_are_one_failed_track(tmp_path: Path, songs: Path, damage: str) -> None:
    write(songs, tmp_path / "out")
    file = tmp_path / "out" / "train_16" / "0000.npz"
    good = load(file)
    if damage == "missing rate":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "other shape":
        np.savez(file, good[:, :4])
    elif damage == "no numbers":
        np.savez(file, np.where(good > 0.1, np.nan, good))
    else:
        np.savez(file, audio=good)
    result = prepare(find_original(tmp_path / "out", RATES), tmp_path / "cache", rates=RATES)
    (failure,) = result.failures
    assert "0000.npz" in str(failure.error) and str(failure.error).endswith(".")
    assert len(Cache.open(tmp_path / "cache").tracks("valid")) == 1


def test_layouts_do_not_mix_in_one_folder(tmp_path: Path, songs: Path) -> None:
    write(songs, tmp_path / "original")
    prepare(find_stems(songs), tmp_path / "cache", rates=RATES)
    with pytest.raises(TrainingDataError, match="holds a cache"):
        write(songs, tmp_path / "cache")
    with pytest.raises(TrainingDataError, match="holds the authors' layout"):
        prepare(find_stems(songs), tmp_path / "original", rates=RATES)


def test_what_it_cannot_hold_is_refused(tmp_path: Path, songs: Path) -> None:
    with pytest.raises(TrainingDataError, match="multiples of 1000"):
        prepare(find_stems(songs), tmp_path / "out", rates=(11025, 22050), layout="original")
    with pytest.raises(TrainingDataError, match="train_8"):
        find_original(songs, RATES)
    write(songs, tmp_path / "out")
    with pytest.raises(TrainingDataError, match="already"):
        prepare(find_original(tmp_path / "out", RATES), tmp_path / "again", rates=RATES, layout="original")
