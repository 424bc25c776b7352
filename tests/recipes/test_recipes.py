"""The settings files of recipes/ are ones that `metatasnet-fast train` takes; its pieces of music keep their rules."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast import load_checkpoint
from metatasnet_fast.cli.main import main
from metatasnet_fast.training.settings import read_settings_file
from tests.training.songs import SMALL, write_cache

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(RECIPES.rglob("*.toml"))
SIZES = {name: SMALL[name] for name in ("B", "H", "layers", "stack", "batch_size", "time_length", "stats_items")}
FEW_STEPS = {"codec_steps": 2, "dtype": "float32", "minutes": 0.5}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=1.0)


def test_every_ablation_of_the_paper_has_its_file() -> None:
    assert [file.stem for file in FILES if file.parent.name == "ablations"] == [
        "no_auxiliary_losses",
        "no_spectrogram",
        "one_stage",
        "single_filter",
        "specialised_networks",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_network_of_a_settings_file_trains_and_separates(file: Path, cache: Path, tmp_path: Path) -> None:
    settings = read_settings_file(file)
    small = SIZES if settings.get("num_mels") == 0 else {**SIZES, "num_mels": SMALL["num_mels"]}
    small = {**small, "N": 32 if "N" in settings else 8}
    small = {**small, **{name: value for name, value in FEW_STEPS.items() if name in settings}}
    flags = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    out = tmp_path / "run"
    assert main(["train", str(cache), "-o", str(out), "--config", str(file), "--steps", "3", *flags]) == 0
    trained = load_checkpoint(out / "last.pt").config
    kept = {name: value for name, value in settings.items() if name not in small and hasattr(trained, name)}
    assert kept and all(getattr(trained, name) == value for name, value in kept.items())


def test_vocals_of_songs_never_come_from_the_part_that_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out part of the song is the only one that sounds negative."""
    sf = pytest.importorskip("soundfile")
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("music", "music.songs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from music.songs import held_part, song_vocals

    rate, song = 100, np.full(100 * 100, 0.5, np.float32)
    begin, end = held_part(len(song), rate)
    assert (begin, end) == (4500, 7700)
    song[begin:end] = -0.5
    (tmp_path / "song").mkdir()
    sf.write(tmp_path / "song" / "vocals.wav", song, rate, subtype="FLOAT")
    for seed in range(20):
        vocals = song_vocals(np.random.default_rng(seed), [tmp_path / "song"], 2000, rate)
        inner = vocals[:, 100:-100]  # the resampler rings at the ends
        assert vocals.shape[0] == 2 and 1500 < vocals.shape[1] <= 2100
        assert inner.min() > 0.4


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("music", "music.score"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from music.score import compose

    return compose


def test_a_piece_is_a_function_of_its_seed(compose) -> None:  # type: ignore[no-untyped-def]
    assert compose(np.random.default_rng(3), 30.0) == compose(np.random.default_rng(3), 30.0)
    assert compose(np.random.default_rng(3), 30.0) != compose(np.random.default_rng(4), 30.0)


def test_an_instrument_of_its_own_is_left_out_of_other(compose) -> None:  # type: ignore[no-untyped-def]
    guitars = (24, 25, 26, 27)
    pieces = [compose(np.random.default_rng(seed), 30.0, guitars) for seed in range(40)]
    assert all(piece.solo.program in guitars for piece in pieces)
    assert not any(part.program in guitars for piece in pieces for part in piece.other)
    without = [compose(np.random.default_rng(seed), 30.0) for seed in range(40)]
    assert all(piece.solo is None for piece in without)
    assert any(part.program in guitars for piece in without for part in piece.other)
