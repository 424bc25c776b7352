"""Encoder and decoder that learn alone before the masks: where they start, and what they learn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast.backends import Choice
from metatasnet_fast.cli.main import main
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision
from metatasnet_fast.training.codec import codec_quality, learn_codec, pair_signs, tilted
from metatasnet_fast.training.data import BatchSource, Cache
from tests.training.songs import SMALL, write_cache

CONFIG = MetaTasNetConfig(N=48, L=40, W=20, B=16, H=16, stack=1, num_mels=16, stages_num=2)
CHOICE = Choice("reference", Precision.float32)
SAMPLES = 4000


def network(paired: bool, config: MetaTasNetConfig = CONFIG) -> MultiTasNet:
    torch.manual_seed(3)
    made = MultiTasNet(config)
    if paired:
        pair_signs(made, torch.Generator().manual_seed(3))
    return made


def signals(seed: int, slope: float = 0.0) -> list[torch.Tensor]:
    noise = torch.randn(2, 1, 2 * SAMPLES, generator=torch.Generator().manual_seed(seed))
    return tilted([noise[..., ::2], noise], [8000, 16000], torch.full((2,), slope))


@torch.no_grad()
def even_share(made: MultiTasNet, seed: int) -> float:
    """Of what the last stage's codec gives, how much is the same for x and -x: nothing for a linear one."""
    engine = made.engine(CHOICE)
    backend, prepared, signal = engine.backend, engine.prepared[1], signals(seed)[1]
    found, turned = (backend.decode(prepared, backend.encode(prepared, x)) for x in (signal, -signal))
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
            quality = codec_quality(made, signals(seed), CHOICE)
            optimizer.zero_grad()
            (-quality).backward()
            optimizer.step()
        qualities.append(float(quality.detach()))
    assert qualities[0] > qualities[1] + 10


@given(slope=st.floats(0, 1.2), rate=st.sampled_from([8000, 16000]))
@settings(max_examples=30, deadline=None)
def test_a_tilt_is_six_decibels_an_octave_for_each_unit_of_slope(slope: float, rate: int) -> None:
    time = np.arange(rate) / rate
    tones = torch.from_numpy(np.sin(2 * np.pi * 500 * time) + np.sin(2 * np.pi * 2000 * time)).float()[None, None]
    (found,) = tilted([tones], [rate], torch.tensor([slope]))
    assert found.std().item() == pytest.approx(1.0, abs=1e-4)
    spectrum = torch.fft.rfft(found)[0, 0].abs()
    assert 20 * torch.log10(spectrum[2000] / spectrum[500]).item() == pytest.approx(12.04 * slope, abs=0.01)


def test_silence_stays_silence() -> None:
    assert tilted([torch.zeros(1, 1, 800)], [8000], torch.ones(1))[0].abs().max() == 0


@pytest.mark.parametrize("sizes", [{"N": 8}, {"filters": 5, "N": 64, "L": 20}])
def test_sizes_without_pairs_are_refused(sizes: dict[str, int]) -> None:
    config = MetaTasNetConfig(**{**CONFIG.to_dict(), **sizes})
    with pytest.raises(ConfigError, match="multiple of"):
        network(True, config)


@pytest.mark.parametrize(
    "sizes", [{"filters": 1}, {"num_mels": 0}, {"independent_params": True}, {"instruments": ("voice",)}, {"N": 80}]
)
def test_every_kind_of_network_begins_in_pairs(sizes: dict[str, object]) -> None:
    config = MetaTasNetConfig(**{**CONFIG.to_dict(), **sizes})
    quality = codec_quality(network(True, config), signals(1), CHOICE)
    assert quality.isfinite()
    assert quality > codec_quality(network(False, config), signals(1), CHOICE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=1.0, rates=(8000, 16000))


def taught(cache: Path, steps: int) -> tuple[MultiTasNet, MultiTasNet, float]:
    """A network before and after, and the quality it reached."""
    batches = BatchSource(Cache.open(cache), CONFIG, items=2, seconds=0.5)
    before, after = network(False), network(False)
    return before, after, learn_codec(after, batches, steps, "reference", Precision.float32)


def test_the_codec_alone_is_taught(cache: Path) -> None:
    before, after, quality = taught(cache, 5)
    assert np.isfinite(quality)
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        if ".encoder." not in name and ".decoder." not in name:
            assert torch.equal(old, new), name
        assert new.grad is None


def test_teaching_the_codec_is_repeatable(cache: Path) -> None:
    _, first, _ = taught(cache, 3)
    _, second, _ = taught(cache, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture
def small_run(cache: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def command(*words: str, out: str = "run") -> list[str]:
        sizes = {**SMALL, "N": 16}
        flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
        return ["train", str(cache), "-o", str(tmp_path / out), "--steps", "2", *flags, *words]

    return command


def test_a_new_run_teaches_its_codec_first_and_one_from_a_checkpoint_does_not(
    small_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_run("--codec-steps", "2")) == 0
    assert "alone for 2 steps" in capsys.readouterr().out
    assert main(small_run("--codec-steps", "2", "--from", str(tmp_path / "run" / "last.pt"), out="more")) == 0
    assert "alone for 2 steps" not in capsys.readouterr().out


def test_a_network_that_is_too_narrow_is_refused_before_anything_is_read(
    small_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_run("--codec-steps", "2", "--N", "8")) == 2
    assert "--codec-steps 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
