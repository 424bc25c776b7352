"""Loudness: the tables and the calibration of ITU-R BS.1770."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metatasnet_fast.training.data.loudness import high_pass, integrated_loudness, levels, shelf


def tone(seconds: float, rate: int, hertz: float = 997.0) -> torch.Tensor:
    t = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    return torch.sin(2 * math.pi * hertz * t).float()[None]


def test_the_filters_are_those_of_the_recommendation_at_48_khz() -> None:
    (b1, a1), (b2, a2) = shelf(48000), high_pass(48000)
    assert np.abs(b1 - [1.53512485958697, -2.69169618940638, 1.19839281085285]).max() < 1e-8
    assert np.abs(a1 - [1, -1.69065929318241, 0.73248077421585]).max() < 1e-8
    assert np.abs(b2 - [1, -2, 1]).max() == 0
    assert np.abs(a2 - [1, -1.99004745483398, 0.99007225036621]).max() < 1e-8


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_full_scale_tone_of_997_hz_in_one_channel_has_minus_3_01_lufs(rate: int) -> None:
    loudness = integrated_loudness(tone(2, rate), rate)
    assert loudness == pytest.approx(-3.01, abs=0.05)
    assert integrated_loudness(tone(2, rate).expand(2, -1), rate) == pytest.approx(0, abs=0.05)
    assert integrated_loudness(0.01 * tone(2, rate), rate) == pytest.approx(-43.01, abs=0.05)


def test_pauses_do_not_make_music_quieter() -> None:
    music = tone(3, 16000)
    with_pause = torch.cat([music, 1e-5 * music, 0.01 * music], -1)
    # The blocks in which the pause begins count in part.
    assert integrated_loudness(with_pause, 16000) == pytest.approx(-3.01, abs=0.3)


def test_silence_has_no_level_and_short_sounds_no_loudness() -> None:
    assert levels(torch.zeros(2, 16000), 16000) == {"lufs": None, "rms_dbfs": None, "peak_dbfs": None}
    assert levels(torch.full((1, 100), -0.5), 16000) == {"lufs": None, "rms_dbfs": -6.02, "peak_dbfs": -6.02}
    assert integrated_loudness(1e-6 * tone(1, 16000), 16000) is None
