"""Small tracks: as arrays in a cache, and as files to prepare one from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast.config import INSTRUMENTS, MetaTasNetConfig
from metatasnet_fast.training.data import Cache, write_manifest, write_track

RATES = (8000, 16000)


@pytest.fixture(scope="session")
def config() -> MetaTasNetConfig:
    """Two stages; nothing else of it matters here."""
    return MetaTasNetConfig(stages_num=len(RATES))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Five training tracks of noise of 1 to 1.4 s: c is mono, b has an unknown bass, d has silent vocals."""
    path = tmp_path_factory.mktemp("caches") / "noise"
    random = np.random.default_rng(0)
    for index, name in enumerate("abcde"):
        shape = (4, 1 if name == "c" else 2, 8000 + 801 * index)
        audio = {rate: 0.1 * random.standard_normal((*shape[:2], shape[2] * (rate // 8000))) for rate in RATES}
        if name == "d":
            for signal in audio.values():
                signal[3] = 0
        counts = [True, name != "b", True, True]
        write_track(path, "train", name, {r: x.astype(np.float32) for r, x in audio.items()}, counts=counts)
    write_track(path, "valid", "v", {r: x.astype(np.float32) for r, x in audio.items()})
    write_manifest(path, RATES)
    return Cache.open(path)


WriteStems = Callable[..., Path]


@pytest.fixture
def write_stems() -> WriteStems:
    """Write ``folder/{drums,bass,other,vocals}.wav``: noise that depends on ``seed``."""
    sf = pytest.importorskip("soundfile")

    def write(
        folder: Path,
        *,
        seed: int = 0,
        seconds: float = 0.5,
        rate: int = 16000,
        channels: int = 2,
        stems: tuple[str, ...] = INSTRUMENTS,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        for stem in stems:
            audio = 0.1 * random.standard_normal((int(seconds * rate), channels)).astype(np.float32)
            sf.write(folder / f"{stem}.wav", audio, rate, subtype="FLOAT")
        return folder

    return write


@pytest.fixture
def songs(tmp_path: Path, write_stems: WriteStems) -> Path:
    """Three songs in a folder without splits."""
    for seed, name in enumerate(("one", "two", "three")):
        write_stems(tmp_path / "songs" / name, seed=seed)
    return tmp_path / "songs"
