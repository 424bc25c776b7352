"""A tiny network on disk, in windows of 0.32 s, and short recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast.catalogue import Settings, Song
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.separation.fast_mode import WindowShape
from tests.support import TINY, recipe_state

sf = pytest.importorskip("soundfile")
pytest.importorskip("safetensors")

SMALL = WindowShape(window=128, context=16, fade=4)
"""Windows of 0.32 s, so that a short song has many."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``tiny`` with a network that runs in milliseconds."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network = MultiTasNet(TINY)
    network.load_state_dict(recipe_state(TINY, 1))
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[WindowShape]:
    """The worker and ``Separator`` both cut songs into many short windows, in this process."""
    import metatasnet_fast.catalogue.worker as worker
    import metatasnet_fast.separation.separator as separator

    for module in (worker, separator):
        monkeypatch.setattr(module, "default_shape", lambda config: SMALL)
    yield SMALL


def settings(model: Path, **more: object) -> Settings:
    return Settings(**{"model": str(model), "device": "cpu", "threads": 2, "attempts": 2, **more})  # type: ignore[arg-type]


def write_song(path: Path, seconds: float, channels: int = 2, rate: int = 16000, seed: int = 0) -> Path:
    """Noise with a swelling chord, in whatever format the name ends in."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    chord = np.sin(2 * np.pi * np.outer(time, generator.uniform(80, 1500, 4))).sum(1)
    sound = 0.05 * generator.standard_normal((len(time), channels)) + 0.05 * chord[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, sound.astype(np.float32), rate)
    return path


def songs_of(*paths: Path) -> list[Song]:
    return [Song(path.stem, str(path)) for path in paths]
