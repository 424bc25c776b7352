"""Tracks that the authors' program prepared are read into a cache."""

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
from metatasnet_fast.training.data.prepare import prepare
from metatasnet_fast.training.data.sources import find_original, find_stems, parse_instruments

sf = pytest.importorskip("soundfile")

RATES = (8000, 16000)
SAMPLES = 22051
WriteStems = Callable[..., Path]


@pytest.fixture
def songs(tmp_path: Path, write_stems: WriteStems) -> Path:
    """Two songs at 44.1 kHz."""
    for seed, name in enumerate(("a", "b")):
        write_stems(tmp_path / "songs" / name, seed=seed, rate=44100, seconds=SAMPLES / 44100)
    return tmp_path / "songs"


@pytest.fixture
def original(tmp_path: Path, songs: Path) -> Path:
    """Both songs as the authors' ``data_generator.py`` writes them, the second one for validation."""
    for song, split in (("a", "train"), ("b", "validation")):
        stems = torch.stack(
            [torch.from_numpy(sf.read(songs / song / f"{n}.wav", dtype="float32")[0].T.copy()) for n in INSTRUMENTS]
        )
        every = torch.cat([stems.sum(0)[None], stems, stems[:3].sum(0)[None]])
        for rate in RATES:
            x = resample(every.flatten(0, 1), 44100, rate, length=math.ceil(SAMPLES * rate / 44100)).view(6, 2, -1)
            folder = tmp_path / "original" / f"{split}_{rate // 1000}"
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(folder / "0000.npz", torch.stack([x[:, 0], x[:, 1], x.mean(1)]).numpy())
    return tmp_path / "original"


def test_a_cache_made_of_it_is_the_cache_made_of_the_stems(tmp_path: Path, songs: Path, original: Path) -> None:
    prepare(find_original(original, RATES), tmp_path / "from-original", rates=RATES)
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


@pytest.mark.parametrize("damage", ["missing rate", "cut", "other shape", "no numbers", "other key"])
def test_damaged_files_are_one_failed_track(tmp_path: Path, original: Path, damage: str) -> None:
    file = original / "train_16" / "0000.npz"
    with np.load(file) as content:
        good = np.asarray(content["arr_0"])
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
    result = prepare(find_original(original, RATES), tmp_path / "cache", rates=RATES)
    (failure,) = result.failures
    assert "0000.npz" in str(failure.error) and str(failure.error).endswith(".")
    assert len(Cache.open(tmp_path / "cache").tracks("valid")) == 1


def test_other_instruments_than_the_authors_are_refused(tmp_path: Path, original: Path) -> None:
    with pytest.raises(TrainingDataError, match="leave --instruments out"):
        prepare(find_original(original, RATES), tmp_path / "cache", rates=RATES, stems=parse_instruments("drums,bass"))


def test_a_folder_without_such_files_is_refused(songs: Path) -> None:
    with pytest.raises(TrainingDataError, match="train_8"):
        find_original(songs, RATES)
