"""The settings files of recipes/ are ones that `metatasnet-fast train` takes; its pieces of music keep their rules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast import load_checkpoint
from metatasnet_fast.cli.main import main
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet
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


def run_recipe(name: str, *words: object) -> str:
    command = [sys.executable, str(RECIPES / name), *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_added_layers_change_nothing_before_they_are_trained(tmp_path: Path) -> None:
    run_recipe(
        "add_layers.py", "open-small", tmp_path / "larger", "--layers", load_checkpoint("open-small").config.layers + 1
    )
    small, large = load_checkpoint("open-small"), load_checkpoint(tmp_path / "larger")
    assert large.config.layers == small.config.layers + 1
    mixtures = [torch.randn(1, 1, 8000), torch.randn(1, 1, 16000)]
    with torch.no_grad():
        before, after = (network.inference(mixtures, n_chunks=1)[-1] for network in (small, large))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_an_average_of_models_has_the_mean_of_their_weights(tmp_path: Path) -> None:
    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "out"
    for folder, value in ((first, 1.0), (second, 2.0)):
        network = MultiTasNet(MetaTasNetConfig(N=8, B=8, H=8, layers=1, stack=1))
        for parameter in network.parameters():
            torch.nn.init.constant_(parameter, value)
        network.save_pretrained(folder)
    run_recipe("average_models.py", first, second, "--out", out)
    assert all(bool((parameter == 1.5).all()) for parameter in load_checkpoint(out).parameters())
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run_recipe("average_models.py", first, "open-small", "--out", out)
    assert refused.value.stderr.startswith("The models differ in size or instruments")


def test_of_a_recording_only_the_parts_that_sound_become_tracks(tmp_path: Path) -> None:
    sf = pytest.importorskip("soundfile")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 1000 * 30).astype(np.float32)
    noise[10000:20000] = 0
    (tmp_path / "Band 1").mkdir()
    sf.write(tmp_path / "Band 1" / "guitar.wav", noise, 1000)
    options = ("--stem", "other", "--out", tmp_path / "tracks", "--seconds", 10)
    assert "2 pieces" in run_recipe("cut_recordings.py", tmp_path / "Band 1" / "guitar.wav", *options)
    tracks = sorted((tmp_path / "tracks" / "train").iterdir())
    assert [track.name for track in tracks] == ["Band_1-guitar-00", "Band_1-guitar-02"]
    assert json.loads((tracks[0] / "track.json").read_text("utf-8")) == {"unknown": ["drums", "bass", "vocals"]}
    assert sf.info(tracks[1] / "other.flac").frames == 10000


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    for package in ("mido", "scipy", "soundfile"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(RECIPES))
    for name in ("music", "music.score", "music.render"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import music.render

    return music.render


def test_a_compressed_mixture_is_still_the_sum_of_its_stems(render) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    stems = {name: rng.standard_normal((2, render.RATE)).astype(np.float32) for name in ("drums", "bass")}
    for audio in stems.values():
        audio[:, : 3 * render.RATE // 4] *= 0.1
    changed = [render.compress(np.random.default_rng(seed), stems) for seed in range(8)]
    compressed = [audio for audio in changed if audio is not stems]
    assert 0 < len(compressed) < 8
    for audio in compressed:
        gain = audio["drums"] / stems["drums"]
        np.testing.assert_allclose(audio["bass"], gain * stems["bass"], atol=1e-5)
        assert gain[:, : render.RATE // 2].min() > 0.999 > gain[:, -render.RATE // 8 :].max()


def test_the_drums_of_a_hydrogen_kit_are_found_by_their_names(render, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    names = {"Bass Drum 1": "bd", "Snare Rock": "sn", "Closed HH": "hh", "Ride Bell": "rd", "Piano": "p"}
    layers = "".join(
        f"<instrument><name>{name}</name><layer><filename>{file}.wav</filename></layer></instrument>"
        for name, file in names.items()
    )
    (tmp_path / "drumkit.xml").write_text(f'<drumkit_info xmlns="http://x"><name>K</name>{layers}</drumkit_info>')
    for file in names.values():
        (tmp_path / f"{file}.wav").touch()
    found = {drum: [path.stem for path in paths] for drum, paths in render.hydrogen_drums(tmp_path).items()}
    assert found == {"kick": ["bd"], "snare": ["sn"], "hat": ["hh"], "shaker": ["hh"], "ride": ["rd"]}


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
