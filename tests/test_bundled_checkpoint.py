"""The checkpoint that comes with the library, on music that it was not trained on.

`data/sodium-stems.ogg` holds drums, bass, other and vocals of the demo song, mono, 16 kHz: 4 s in which drums, bass and other
sound, then 4 s in which drums, other and vocals do (nowhere in the song do bass and vocals sound together).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metatasnet_fast.audio import resample
from metatasnet_fast.config import INSTRUMENTS, MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet, bundled_models, load_checkpoint
from metatasnet_fast.reference import si_sdr

sf = pytest.importorskip("soundfile")
pytest.importorskip("safetensors")

NAME = "open-small"
STEMS = Path(__file__).parent / "data" / "sodium-stems.ogg"
EXCERPT = Path(bundled_models()[NAME]).parents[1] / "demo" / "sodium-excerpt.ogg"
PIECE = 4 * 16000


@cache
def network() -> MultiTasNet:
    return load_checkpoint(NAME)


def separate(mix: Tensor) -> Tensor:
    """(T,) at 16 kHz to (4, T), each rate divided by its own deviation."""
    rates = [resample(mix, 16000, 8000), mix]
    with torch.no_grad():
        return network().inference([(x / x.std())[None, None] for x in rates], n_chunks=1)[-1][0, :, 0]


@cache
def true_stems() -> Tensor:
    """(2, 4, 64000): the two pieces."""
    audio, rate = sf.read(STEMS, dtype="float32")
    assert rate == 16000
    return torch.from_numpy(audio.T.copy()).unflatten(1, (2, PIECE)).transpose(0, 1)


@cache
def improvements() -> dict[tuple[int, str], float]:
    """SI-SDR gained over the mixture, dB, by piece and stem."""
    found = {}
    for piece, stems in enumerate(true_stems()):
        mix = stems.sum(0)
        gained = si_sdr(separate(mix), stems) - si_sdr(mix.expand(4, -1), stems)
        found.update({(piece, name): float(value) for name, value in zip(INSTRUMENTS, gained, strict=True)})
    return found


def test_the_settings_are_those_of_its_file() -> None:
    settings = json.loads((bundled_models()[NAME] / "config.json").read_text("utf-8"))
    assert network().config == MetaTasNetConfig.from_dict(settings["config"])
    assert network().config.output_rate == 16000
    assert not network().training


def test_every_weight_is_finite() -> None:
    assert all(bool(value.isfinite().all()) for value in network().state_dict().values())


def test_the_stems_that_sound_in_the_demo_excerpt_are_different_ones() -> None:
    """Its first 4 s are the first piece of the true stems; there are no vocals, so what is called so is leakage."""
    audio, rate = sf.read(EXCERPT, dtype="float32", stop=4 * 44100)
    stems = separate(resample(torch.from_numpy(audio.mean(1)), rate, 16000)[:PIECE])
    assert stems.isfinite().all()
    correlation = torch.corrcoef(stems[:3]) - torch.eye(3)
    print(f"largest correlation {correlation.abs().max():.3f}, allowed {CORRELATION}")
    assert correlation.abs().max() < CORRELATION


CORRELATION = 0.2
LEAST = {
    (0, "drums"): 9.5,
    (0, "bass"): 8.8,
    (0, "other"): 23.2,
    (1, "drums"): 8.7,
    (1, "other"): 1.7,
    (1, "vocals"): 6.1,
}
"""SI-SDR gained, dB: what the checkpoint reached when it was made, less half a decibel at most."""


@pytest.mark.parametrize(("piece", "name"), LEAST)
def test_a_stem_is_nearer_to_the_truth_than_the_mixture(piece: int, name: str) -> None:
    gained, least = improvements()[piece, name], LEAST[piece, name]
    print(f"{name}: {gained:.2f} dB gained, at least {least} expected")
    assert gained > least
