"""One more instrument for a trained network, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast import MultiTasNet, load_checkpoint
from metatasnet_fast.cli.main import main
from metatasnet_fast.precision import Precision
from metatasnet_fast.training.data import Cache, write_manifest, write_track
from metatasnet_fast.training.data.sources import stems_found
from metatasnet_fast.training.journal import read_journal
from metatasnet_fast.training.state import EMBEDDING, add_instrument
from metatasnet_fast.training.validation import score_track
from tests.training.songs import SMALL, music

RATES = (8000, 16000)
STEMS = stems_found(["drums", "bass", "other", "vocals", "bell"])


def bell(seed: int, seconds: float, rate: int) -> np.ndarray:
    """A fifth stem, (1, 1, samples)."""
    t = np.arange(int(seconds * rate)) / rate
    pitch = np.random.default_rng(seed).uniform(600, 900)
    return (0.1 * np.sin(2 * np.pi * pitch * t) * np.exp(-4 * (t % 0.5)))[None, None].astype(np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("songs") / "cache"
    for split, seed in (("train", 0), ("train", 1), ("valid", 100)):
        signals = {rate: np.concatenate([music(seed, 2.0, rate), bell(seed, 2.0, rate)]) for rate in RATES}
        write_track(path, split, f"{split}-{seed}", signals, stems=STEMS)
    write_manifest(path, RATES, stems=STEMS)
    return path


@pytest.fixture(scope="module")
def base(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the four instruments of the paper."""
    out = tmp_path_factory.mktemp("runs") / "base"
    sizes = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    four = ["--instruments", "drums,bass,other,vocals"]
    assert main(["train", str(cache), "-o", str(out), "--steps", "2", *sizes, *four]) == 0
    return out / "last.pt"


@pytest.fixture
def train(cache: Path, tmp_path: Path) -> Callable[..., int]:
    def run(out: str, *words: str) -> int:
        sizes = ["--batch_size", "2", "--time_length", "0.2", "--threads", "1", "--validate_every", "4"]
        return main(["train", str(cache), "-o", str(tmp_path / out), "--steps", "4", *sizes, *words])

    return run


def separated(network: MultiTasNet) -> list[torch.Tensor]:
    mixes = [torch.from_numpy(music(7, 1.0, rate).sum(0))[None] for rate in RATES]
    with torch.no_grad():
        return network.inference(mixes)


def same_old_instruments(before: Path, after: Path) -> bool:
    pairs = zip(separated(load_checkpoint(before)), separated(load_checkpoint(after)), strict=True)
    return all(torch.equal(old, new[:, :4]) for old, new in pairs)


def test_a_new_instrument_is_learned_and_the_old_ones_stay(
    train: Callable[..., int], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("bell", "--from", str(base), "--add-instrument", "bell", "--learning_rate", "0.1") == 0
    assert "bell is added" in capsys.readouterr().out
    found = load_checkpoint(tmp_path / "bell" / "last.pt")
    assert found.config.instruments == ("drums", "bass", "other", "vocals", "bell")
    assert same_old_instruments(base, tmp_path / "bell" / "last.pt")
    rows = found.get_parameter("stages.0.instrument_embedding.weight")
    assert not any(torch.equal(rows[4], row) for row in rows[:4])


def test_the_average_begins_with_the_embedding_that_the_network_begins_with(
    train: Callable[..., int], base: Path, tmp_path: Path
) -> None:
    words = ("--from", str(base), "--add-instrument", "bell", "--steps", "1")
    assert train("plain", *words) == train("averaged", *words, "--ema", "0.999") == 0
    first = [
        next(entry["sdr"] for entry in read_journal(tmp_path / out) if entry["kind"] == "valid")
        for out in ("plain", "averaged")
    ]
    assert first[0] == first[1]


def test_the_generator_may_learn_after_the_embedding(
    train: Callable[..., int], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("bell", "--from", str(base), "--add-instrument", "bell") == 0
    best = tmp_path / "bell" / "best.pt"
    assert train("more", "--from", str(best), "--unfreeze", "generator", "--learning_rate", "0.01") == 0
    assert "SDR before and after the training: drums" in capsys.readouterr().out
    assert not same_old_instruments(best, tmp_path / "more" / "last.pt")
    valid = [entry["step"] for entry in read_journal(tmp_path / "more") if entry["kind"] == "valid"]
    assert valid == [0, 4]
    assert json.loads((tmp_path / "more" / "settings.json").read_text())["training"]["unfreeze"] == "generator"


def test_the_embedding_goes_on_learning_where_nothing_else_is_said(
    train: Callable[..., int], base: Path, tmp_path: Path
) -> None:
    assert train("bell", "--from", str(base), "--add-instrument", "bell", "--steps", "2") == 0
    assert train("bell") == 0
    assert train("longer", "--from", str(tmp_path / "bell" / "last.pt"), "--steps", "6") == 0
    assert same_old_instruments(base, tmp_path / "longer" / "last.pt")


def test_what_a_run_trains_stays(train: Callable[..., int], base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("bell", "--from", str(base), "--add-instrument", "bell", "--steps", "2") == 0
    assert train("bell", "--unfreeze", "all") == 2
    assert "start another run with --from" in capsys.readouterr().err


def test_a_bundled_network_is_extended_by_its_name(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--from", "open-small", "--add-instrument", "bell", "--steps", "1", "--time_length", "0.5")
    assert train("bell", *words) == 0
    assert train("bell", *words) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_new_instrument_does_not_change_the_scores_of_the_old_ones(cache: Path, base: Path) -> None:
    small = load_checkpoint(base)
    config, state = add_instrument(small.config, small.state_dict(), "bell")
    large = MultiTasNet(config)
    large.load_state_dict(state)
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if name.endswith(EMBEDDING):
                parameter[4] = parameter[2]
    (track,) = Cache.open(cache).tracks("valid")
    places = Cache.open(cache).places_of(config.instruments)
    before = score_track(small, track, places[:4], "reference", Precision.float32)
    after = score_track(large.eval(), track, places, "reference", Precision.float32)
    assert after.sdr[:4] == pytest.approx(before.sdr, abs=1e-4)
