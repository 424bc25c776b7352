"""The mean of several trainings' weights."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
average_checkpoints = pytest.importorskip("average_checkpoints")
CONFIG = MetaTasNetConfig(N=16, L=40, W=40, B=16, H=16, layers=2, stack=1, num_mels=8, stages_num=1)


def test_every_weight_and_statistic_is_the_mean() -> None:
    networks = [MultiTasNet(CONFIG) for _ in range(2)]
    for value in networks[1].buffers():
        value.add_(0.5)
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    found = average_checkpoints.average(networks).state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, (before[0][name] + before[1][name]) / 2)


def test_networks_of_other_settings_are_refused() -> None:
    other = MultiTasNet(dataclasses.replace(CONFIG, stack=2))
    with pytest.raises(SystemExit, match="different settings"):
        average_checkpoints.average([MultiTasNet(CONFIG), other])
