"""A small cache of generated music, and the settings of runs that take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metatasnet_fast.training.data import write_manifest, write_track

RATES = (8000, 16000, 32000)


def music(seed: int, seconds: float, rate: int) -> np.ndarray:
    """Four unlike stems, (4, 1, samples): bright bursts on a beat, a low pulse wave, plucked chords, a gliding voice.

    The same seed gives the same music at every rate.
    """
    random = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    beat = 60 / random.uniform(90, 150)
    high = random.uniform(1500, 3500, (12, 1))
    clicks = np.exp(-20 * (t % beat)) * np.sin(2 * np.pi * high * t + random.uniform(0, 6, (12, 1))).sum(0)
    low = np.sign(np.sin(2 * np.pi * random.uniform(50, 90) * t)) * (np.floor(t / beat) % 4 < 3)
    chord = sum(np.sin(2 * np.pi * f * t) for f in random.uniform(300, 900, 3)) * np.exp(-3 * (t % (2 * beat)))
    pitch = 2 * np.pi * random.uniform(180, 260) * t + 6 * np.sin(2 * np.pi * random.uniform(0.3, 5) * t)
    voice = sum(np.sin(k * pitch) / k for k in range(1, 8)) * (np.sin(2 * np.pi * t / (3 * beat)) > -0.5)
    stems = np.stack([clicks, low, chord, voice])[:, None]
    return (0.1 * stems / stems.std(-1, keepdims=True)).astype(np.float32)


def write_cache(path: Path, seconds: float = 4.0, train: int = 3, valid: int = 1, rates: Sequence[int] = RATES) -> Path:
    """Tracks ``train-0`` ... and ``valid-0`` ... at the given rates."""
    for split, first, count in (("train", 0, train), ("valid", 100, valid)):
        for index in range(count):
            signals = {rate: music(first + index, seconds, rate) for rate in rates}
            write_track(path, split, f"{split}-{index}", signals)
    write_manifest(path, rates)
    return path


SMALL = {
    "N": 8,
    "B": 8,
    "H": 8,
    "layers": 2,
    "stack": 1,
    "num_mels": 8,
    "stages_num": 2,
    "batch_size": 4,
    "time_length": 0.2,
    "stats_items": 8,
    "threads": 1,
    "validate_every": 0,
}
"""Settings with which a step takes about 50 ms."""
