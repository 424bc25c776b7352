"""Training that goes on from a finished checkpoint."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from metatasnet_fast.model import MultiTasNet

from .test_training_data import write_track

pytest.importorskip("safetensors")
sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
train_checkpoint = pytest.importorskip("train_checkpoint")
SIZES = {"N": 16, "L": 40, "W": 40, "B": 16, "H": 16, "stack": 1, "num_mels": 8}


def arguments(folder: Path, **changes: object) -> Namespace:
    settings = train_checkpoint.arguments(
        ["--data", str(folder), "--out", str(folder / "out"), "--precision", "float32"]
    )
    return Namespace(**(vars(settings) | {"start": str(folder / "finished"), "seconds": 2.0} | SIZES | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, song in (("a@1.0", True), ("piece-000", False)):
        write_track(tmp_path, name, song, True, (10.0, 14.0) if song else (0.0, 0.0))
    torch.manual_seed(5)
    network = MultiTasNet(train_checkpoint.configuration(arguments(tmp_path)))
    with torch.no_grad():
        for buffer in network.buffers():
            buffer.add_(0.25)
    network.save_pretrained(tmp_path / "finished")
    return tmp_path


def test_network_and_average_start_as_the_finished_one_with_its_statistics(folder: Path) -> None:
    training = train_checkpoint.Training(arguments(folder))
    finished = MultiTasNet.from_pretrained(folder / "finished").state_dict()
    before = training.network.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in finished.items())
    training.start()
    for part in (training.network, training.average):
        assert all(torch.equal(part.state_dict()[name], value) for name, value in finished.items())


@pytest.mark.parametrize("finished", [True, False])
def test_only_a_codec_that_begins_anew_is_taught_alone_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    monkeypatch.setattr(train_checkpoint, "CODEC_STEPS", 1)
    changes = {} if finished else {"start": None}
    train_checkpoint.train(arguments(folder, out=tmp_path / "out", batch=2, minutes=0.0, **changes))
    notes = (tmp_path / "out" / "log.jsonl").read_text("utf-8")
    assert ("codec" in notes) is not finished


def test_a_finished_checkpoint_of_other_settings_is_refused(folder: Path) -> None:
    training = train_checkpoint.Training(arguments(folder, H=24))
    with pytest.raises(SystemExit, match="other settings"):
        training.start()
