"""Where the recipe's codec starts, and the music that it learns from."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.reference.generator import generate

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from training.codec import decode, encode, parameters  # noqa: E402
from training.codec_start import pair_signs, reconstruction, tilted  # noqa: E402

CONFIG = MetaTasNetConfig(N=48, L=40, W=20, B=16, H=16, stack=1, num_mels=16, stages_num=2)
SAMPLES = 4000


def network(paired: bool) -> MultiTasNet:
    torch.manual_seed(3)
    made = MultiTasNet(CONFIG)
    if paired:
        pair_signs(made)
    return made


def signals(seed: int, slope: float = 0.0) -> list[torch.Tensor]:
    noise = torch.randn(2, 2 * SAMPLES, generator=torch.Generator().manual_seed(seed))
    return tilted([noise[:, ::2], noise], [8000, 16000], torch.full((2,), slope))


@torch.no_grad()
def even_share(made: MultiTasNet, seed: int) -> float:
    """Of what the last stage's codec gives, how much is the same for x and -x: nothing for a linear one."""
    config, signal = made.config.stage(1), signals(seed)[1]
    weights = generate(config, parameters(made)[1])
    found, turned = (decode(weights.decoder, config, encode(weights.encoder, config, x)) for x in (signal, -signal))
    return float((found + turned).norm() / (found - turned).norm())


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_a_paired_codec_is_nearly_linear_and_a_random_one_is_not(seed: int) -> None:
    assert even_share(network(paired=True), seed) < 0.3
    assert even_share(network(paired=False), seed) > 0.5


def test_a_paired_codec_learns_white_noise_in_steps_that_do_not_help_a_random_one() -> None:
    qualities = []
    for paired in (True, False):
        made = network(paired)
        optimizer = torch.optim.Adam(made.parameters(), lr=3e-3, betas=(0.9, 0.98))
        for seed in range(40):
            quality = reconstruction(made, signals(seed))
            optimizer.zero_grad()
            (-quality).backward()
            optimizer.step()
        qualities.append(float(quality.detach()))
    print(qualities)
    assert qualities[0] > qualities[1] + 10


@given(slope=st.floats(0, 1.2), rate=st.sampled_from([8000, 16000]))
@settings(max_examples=30, deadline=None)
def test_a_tilt_is_six_decibels_an_octave_for_each_unit_of_slope(slope: float, rate: int) -> None:
    time = np.arange(rate) / rate
    tones = torch.from_numpy(np.sin(2 * np.pi * 500 * time) + np.sin(2 * np.pi * 2000 * time)).float()[None]
    (found,) = tilted([tones], [rate], torch.tensor([slope]))
    assert found.std().item() == pytest.approx(1.0, abs=1e-4)
    spectrum = torch.fft.rfft(found)[0].abs()
    assert 20 * torch.log10(spectrum[2000] / spectrum[500]).item() == pytest.approx(12.04 * slope, abs=0.01)


def test_silence_stays_silence() -> None:
    assert tilted([torch.zeros(1, 800)], [8000], torch.ones(1))[0].abs().max() == 0
