"""Settings: the authors' names and values, from files and flags."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.training.settings import TrainingSettings, read_settings_file, split_settings
from tests.support import GOLDEN


def test_the_defaults_are_the_authors() -> None:
    args = torch.load(GOLDEN / "original_checkpoint.pt", weights_only=False)["args"]
    settings = TrainingSettings()
    shared = {field.name for field in dataclasses.fields(settings)} & vars(args).keys()
    assert shared >= {"batch_size", "clip_gradient", "epochs", "learning_rate", "seed", "sgdr_period", "shuffle_p"}
    for name in shared:
        assert getattr(settings, name) == getattr(args, name), name


def test_the_namespace_holds_every_argument_of_the_authors() -> None:
    args = torch.load(GOLDEN / "original_checkpoint.pt", weights_only=False)["args"]
    made = TrainingSettings().to_namespace(MetaTasNetConfig(), "data", "runs/x")
    assert vars(args).keys() <= vars(made).keys()
    assert {name: type(value) for name, value in vars(made).items()} == {
        name: type(getattr(args, name)) for name in vars(made)
    }


def test_the_loss_that_stops_a_training_grows_with_the_estimates() -> None:
    authors, most = MetaTasNetConfig(), MetaTasNetConfig(instruments=tuple(f"i{n}" for n in range(32)))
    assert TrainingSettings().largest_loss(authors) == 1000
    assert TrainingSettings().largest_loss(most) == 8000 > 80 * 32 * 3
    assert TrainingSettings(max_loss=5.0).largest_loss(most) == 5


def test_the_recipe_has_250_epochs_of_1250_steps() -> None:
    assert TrainingSettings().steps_per_epoch == 1250
    assert TrainingSettings().total_steps == 312_500
    assert TrainingSettings(steps=7).total_steps == 7
    assert TrainingSettings(minutes=1.0).total_steps is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 1.5}, "batch_size must be of type int"),
        ({"recompute": 1}, "recompute must be of type bool"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite"),
        ({"shuffle_p": 1.5}, "shuffle_p"),
        ({"ema": 1.0}, "ema"),
        ({"best": "worst"}, "best must be one of all, original"),
        ({"augmentation": "more"}, "augmentation must be one of"),
        ({"dtype": "float16"}, "loss scaling"),
        ({"steps": 0}, "steps"),
        ({"seed": 2**63}, "seed must be less than 2"),
    ],
)
def test_impossible_values_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainingSettings(**given)


def test_files_hold_settings_flat_or_in_sections(tmp_path: Path) -> None:
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps({"N": 64, "batch_size": 3}))
    toml = tmp_path / "run.toml"
    toml.write_text("[network]\nN = 64\n[training]\nbatch_size = 3\n")
    assert read_settings_file(flat) == {"N": 64, "batch_size": 3}
    if pytest.importorskip("tomllib", reason="TOML needs Python 3.11"):
        assert read_settings_file(toml) == {"N": 64, "batch_size": 3}
    assert split_settings({"N": 64, "batch_size": 3}) == ({"N": 64}, {"batch_size": 3})


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent.json"):
        read_settings_file(tmp_path / "absent.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match="JSON or TOML"):
        read_settings_file(broken)
    broken.write_text("[]")
    with pytest.raises(ConfigError, match="object"):
        read_settings_file(broken)
    with pytest.raises(ConfigError, match="Unknown settings learning_rat"):
        split_settings({"learning_rat": 1.0})
