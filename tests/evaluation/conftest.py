"""Short tracks laid out like MUSDB18, and a tiny network on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metatasnet_fast import MultiTasNet
from tests.support import TINY

RATE = 44100
STEMS = ("drums", "bass", "other", "vocals")


def write_track(folder: Path, seed: int, silent: str | None = None) -> None:
    soundfile = pytest.importorskip("soundfile")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    stems = {name: 0.1 * rng.standard_normal((int(1.5 * RATE), 2)) for name in STEMS}
    if silent:
        stems[silent][:] = 0
    for name, audio in {**stems, "mixture": sum(stems.values())}.items():
        soundfile.write(folder / f"{name}.wav", audio, RATE, subtype="FLOAT")


@pytest.fixture
def musdb_root(tmp_path: Path) -> Path:
    (tmp_path / "musdb" / "train").mkdir(parents=True)
    for seed, name in enumerate(("A - One", "B - Two", "C - Three")):
        write_track(tmp_path / "musdb" / "test" / name, seed)
    return tmp_path / "musdb"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MultiTasNet(TINY).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"
