"""The paper's ablations are settings files that `metatasnet-fast train` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from metatasnet_fast import load_checkpoint
from metatasnet_fast.cli.main import main
from metatasnet_fast.training.settings import read_settings_file
from tests.training.songs import SMALL, write_cache

ABLATIONS = sorted((Path(__file__).parents[2] / "recipes" / "ablations").glob("*.toml"))
SIZES = {name: SMALL[name] for name in ("B", "H", "layers", "stack", "batch_size", "time_length", "stats_items")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=1.0)


def test_every_ablation_of_the_paper_has_its_file() -> None:
    assert [file.stem for file in ABLATIONS] == [
        "no_auxiliary_losses",
        "no_spectrogram",
        "one_stage",
        "single_filter",
        "specialised_networks",
    ]


@pytest.mark.parametrize("file", ABLATIONS, ids=lambda file: file.stem)
def test_an_ablation_trains_and_separates(file: Path, cache: Path, tmp_path: Path) -> None:
    settings = read_settings_file(file)
    small = SIZES if "num_mels" in settings else {**SIZES, "num_mels": SMALL["num_mels"]}
    small = {**small, "N": 32} if "N" in settings else {**small, "N": 8}
    flags = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    out = tmp_path / "run"
    assert main(["train", str(cache), "-o", str(out), "--config", str(file), "--steps", "3", *flags]) == 0
    trained = load_checkpoint(out / "last.pt").config
    assert all(getattr(trained, name) == value for name, value in settings.items() if name not in small)
