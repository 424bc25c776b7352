"""The configuration takes the authors' arguments, and refuses what cannot be built."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatasnet_fast import MetaTasNetConfig, MultiTasNet
from metatasnet_fast.errors import ConfigError
from tests.support import TINY

sizes = st.integers(1, 12).map(lambda n: 8 * n)
configs = st.builds(
    MetaTasNetConfig,
    N=sizes,
    B=sizes,
    H=sizes,
    layers=st.integers(1, 7),
    stack=st.integers(1, 4),
    filters=st.integers(1, 3),
    num_mels=st.integers(1, 300),
    stages_num=st.integers(1, 4),
    independent_params=st.booleans(),
    residual_bias=st.booleans(),
)


@given(configs)
def test_json_and_namespace_round_trip(config: MetaTasNetConfig) -> None:
    assert MetaTasNetConfig.from_json(config.to_json()) == config
    assert MetaTasNetConfig.from_namespace(config.to_namespace(batch_size=12)) == config


@given(configs)
def test_every_stage_has_the_same_number_of_frames(config: MetaTasNetConfig) -> None:
    samples = 1000 * config.W
    assert {stage.sampling_rate // config.sampling_rate * samples // stage.W for stage in config.stages} == {1000}


def test_defaults_are_the_authors_network() -> None:
    trainable = sum(p.numel() for p in MultiTasNet(MetaTasNetConfig()).parameters() if p.requires_grad)
    assert trainable == 45_531_260


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kernel": 5}, "kernel"),
        ({"N": 100}, "N"),
        ({"B": 0}, "B"),
        ({"H": -8}, "H"),
        ({"E_1": None}, "E_1"),
        ({"L": 21}, "L"),
        ({"L": 10}, "L"),
        ({"sampling_rate": 4000}, "sampling_rate"),
        ({"dropout": 1.0}, "dropout"),
        ({"stages_num": 0}, "stages_num"),
        ({"layers": 2.5}, "layers"),
        ({"residual_bias": 1}, "residual_bias"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MetaTasNetConfig(**settings)


def test_missing_and_unknown_settings_are_named() -> None:
    incomplete = argparse.Namespace(**{k: v for k, v in TINY.to_dict().items() if k != "num_mels"})
    with pytest.raises(ConfigError, match="num_mels"):
        MultiTasNet(incomplete)
    with pytest.raises(ConfigError, match="colour"):
        MetaTasNetConfig.from_dict({"colour": "blue"})


@pytest.mark.parametrize("text", ["", "[1, 2]", '"B"', "null", "{"])
def test_text_that_is_no_object_of_settings_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="JSON|names with values"):
        MetaTasNetConfig.from_json(text)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_loss_weight_must_be_finite(weight: float) -> None:
    with pytest.raises(ConfigError, match="similarity_loss_weight must be finite"):
        MetaTasNetConfig(similarity_loss_weight=weight)
