"""Training items that differ from the tracks they are cut from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metatasnet_fast import MetaTasNetConfig
from metatasnet_fast.training.data import BatchSource, Cache
from metatasnet_fast.training.data.crops import Variety, draw_changes, resample, rest, retune
from tests.training.songs import write_cache

CONFIG = MetaTasNetConfig(N=8, B=8, H=8, layers=1, stack=1, num_mels=8, stages_num=2)
ALL = Variety(speed=0.2, balance=3.0, level=12.0, tone=3.0, rests=0.5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache.open(write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=3.0))


def source(cache: Cache, variety: Variety, **more: Any) -> BatchSource:
    return BatchSource(cache, CONFIG, **{"items": 6, "seconds": 0.5, "variety": variety, **more})


def tone(frequency: float, rate: int, samples: int) -> torch.Tensor:
    return torch.sin(2 * np.pi * frequency * torch.arange(samples, dtype=torch.float64) / rate)


def test_a_batch_depends_on_nothing_but_its_number(cache: Cache) -> None:
    first, second = (source(cache, ALL, workers=workers).batch(5) for workers in (1, 4))
    for a, b in zip(first.sources + first.mixes, second.sources + second.mixes, strict=True):
        assert torch.equal(a, b)


def test_the_ranks_together_have_the_global_batch(cache: Cache) -> None:
    whole = source(cache, ALL).batch(3)
    parts = [source(cache, ALL, rank=rank, world=3).batch(3) for rank in range(3)]
    for stage in range(2):
        assert torch.equal(torch.cat([part.sources[stage] for part in parts]), whole.sources[stage])


def test_the_mixture_is_the_sum_of_the_varied_sources(cache: Cache) -> None:
    batch = source(cache, ALL).batch(0)
    for mix, sources in zip(batch.mixes, batch.sources, strict=True):
        assert torch.allclose(mix, sources.sum(1), atol=1e-5)


@pytest.mark.parametrize("kind", ["balance", "level", "rests"])
def test_one_kind_leaves_the_crops_and_the_other_kinds_as_they_are(kind: str, cache: Cache) -> None:
    plain = source(cache, Variety()).batch(2).sources[0]
    varied = source(cache, Variety(**{kind: getattr(ALL, kind)})).batch(2).sources[0]
    assert not torch.equal(varied, plain)
    changes = draw_changes(42, 2, Variety(**{kind: getattr(ALL, kind)}), 6, 4)
    expected = plain * torch.from_numpy(changes.gains).float()[..., None, None]
    for item in range(6):
        for stem in range(4):
            middle, length, gain = changes.rests[item, stem]
            if gain != 1:
                expected[item, stem] *= rest(plain.shape[-1], 8000, middle, length, gain)
    assert torch.allclose(varied, expected, atol=1e-6)


@pytest.mark.parametrize("speed", [0.83, 1.2])
def test_all_rates_see_one_speed(speed: float) -> None:
    low = resample(tone(440, 8000, 6000), 4000, 400, speed)
    high = resample(tone(440, 16000, 12000), 8000, 800, speed)
    assert (high[::2] - low).abs().max() < 0.02


def test_a_faster_tone_is_a_higher_tone() -> None:
    speed, samples, margin = 1.25, 4000, 400
    found = resample(tone(440, 8000, 6100), samples, margin, speed)
    expected = tone(440 * speed, 8000, samples + margin)[margin:]
    assert found.shape == (samples,)
    assert (found - expected).abs().max() < 0.02


def test_speed_one_changes_nothing() -> None:
    x = torch.randn(3, 1000)
    assert torch.equal(resample(x, 900, 50, 1.0), x[:, 50:950])


def test_a_tone_has_the_gain_of_its_frequency() -> None:
    gains = [0.0, 0.0, 6.0, -12.0, 0.0, 0.0]
    for frequency, decibels in ((600, 6.0), (1800, -12.0), (100, 0.0)):
        x = tone(frequency, 16000, 16000)
        assert torch.allclose(retune(x, 16000, gains), x * 10 ** (decibels / 20), atol=1e-3)


def test_silence_stays_silence(cache: Cache) -> None:
    silent = torch.zeros(4, 2000)
    assert not resample(silent, 1000, 100, 0.9).any()
    assert not retune(silent, 8000, [3.0] * 6).any()


def test_a_rest_of_the_whole_item_is_silence() -> None:
    assert not rest(4000, 8000, 0.5, 1.5, 0.0).any()
    gains = rest(4000, 8000, 0.5, 0.4, 0.25)
    assert gains[2000] == pytest.approx(0.25)
    assert (gains[0], gains[-1]) == (1, 1)


def test_hopeless_and_trivial_sources_do_not_count(cache: Cache) -> None:
    batch = source(cache, Variety(balance=20.0), least_share=0.01).batch(0)
    everything = source(cache, Variety(balance=20.0)).batch(0)
    own = everything.sources[-1].square().sum((-2, -1))
    rest_of_it = (everything.mixes[-1][:, None] - everything.sources[-1]).square().sum((-2, -1))
    share = own / (own + rest_of_it)
    expected = (share >= 0.01) & (share <= 0.99)
    assert not expected.all()
    assert torch.equal(batch.masks()[0][..., 0].bool(), expected)
    assert everything.masks()[0].all()


def test_tracks_must_be_long_enough_for_the_highest_speed(tmp_path: Path) -> None:
    short = Cache.open(write_cache(tmp_path / "cache", seconds=0.55))
    assert source(short, Variety()).tracks
    with pytest.raises(Exception, match="as long as 0.72 s"):
        source(short, Variety(speed=0.2))
