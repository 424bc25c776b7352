"""Batches: what they are made of, and that nothing but their number decides it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import TrainingDataError
from metatasnet_fast.training.data import Batch, BatchSource, Cache, write_manifest, write_track
from metatasnet_fast.training.data.crops import Plan, draw_plan, uniforms
from metatasnet_fast.training.validation import validation_signals

AUGMENTATIONS = ("same", "original", "none")

DRAWS = {
    (42, 0): [0.8201981478608876, 0.18924562408645496, 0.8676608148821462],
    (2**64 - 1, 2**63): [0.018036689247070026, 0.6074267568595223, 0.3990883805491455],
}
"""The first three of a seed and a batch number, recorded with numpy 2.4."""


@pytest.fixture
def source(cache: Cache, config: MetaTasNetConfig) -> Any:
    def make(**options: Any) -> BatchSource:
        return BatchSource(cache, config, **{"items": 8, "seconds": 0.5, "seed": 1, **options})

    return make


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.number == b.number
    assert all(torch.equal(x, y) for x, y in zip(a.sources, b.sources, strict=True))
    assert torch.equal(a.counts, b.counts)


def test_shapes_and_types(source: Any) -> None:
    batch = source().batch(0)
    assert [x.shape for x in batch.sources] == [(8, 4, 1, 4000), (8, 4, 1, 8000)]
    assert {x.dtype for x in batch.sources} == {torch.float32}
    assert batch.counts.shape == (8, 4) and batch.counts.dtype == torch.bool
    assert [x.shape for x in batch.mixes] == [(8, 1, 4000), (8, 1, 8000)]
    assert [x.shape for x in batch.masks()] == [(8, 4, 1), (8, 4, 1)]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_batch_depends_on_nothing_but_its_number(source: Any, augmentation: str) -> None:
    first, second = source(augmentation=augmentation), source(augmentation=augmentation, workers=5)
    expected = first.batch(3)
    second.batch(100)
    assert_equal(second.batch(3), expected)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_have_the_global_batch(source: Any, world: int, augmentation: str) -> None:
    whole = source(augmentation=augmentation).batch(7)
    parts = [source(augmentation=augmentation, rank=rank, world=world).batch(7) for rank in range(world)]
    together = [torch.cat(x) for x in zip(*(part.sources for part in parts), strict=True)]
    mixes = [torch.cat([part.mixes[stage] for part in parts]) for stage in range(len(together))]
    assert_equal(Batch(mixes, together, torch.cat([part.counts for part in parts]), 7), whole)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_stream_goes_on_where_it_is_told_to(source: Any, workers: int) -> None:
    batches = source(workers=workers)
    with contextlib.closing(batches.stream(5)) as stream:
        for number, batch in zip(range(5, 12), stream, strict=False):
            assert_equal(batch, batches.batch(number))


def test_another_number_or_seed_gives_another_batch(source: Any) -> None:
    batch = source().batch(0)
    for other in (source().batch(1), source(seed=2).batch(0), source(seed=2**64 - 1).batch(0)):
        assert not torch.equal(batch.sources[0], other.sources[0])


def test_the_draws_are_those_of_earlier_versions() -> None:
    """Else a run that is resumed under a newer numpy would go on with other batches."""
    for (seed, number), expected in DRAWS.items():
        assert uniforms(seed, number, 3).tolist() == expected


def by_the_authors_words(source: BatchSource, cache: Cache, number: int) -> list[np.ndarray]:
    """A batch as SPEC's words have it, item by item and stage by stage, from the same draws."""
    items, stages = source.items, len(source.rates)
    draws = uniforms(source.seed, number, items * (3 + 8 * stages))
    tracks = cache.tracks("train")
    picked, moved, order = draws[: 3 * items].reshape(3, items)
    channels, gains = draws[3 * items :].reshape(2, stages, items, 4)
    found = []
    for stage, rate in enumerate(source.rates):
        ratio, own = rate // source.rates[0], stage if source.augmentation == "original" else 0
        batch = []
        for j in range(items):
            track = tracks[int(picked[j] * len(tracks))]
            length = int(source.seconds * source.rates[0])
            start = int(moved[j] * (track.samples(source.rates[0]) - length)) * ratio
            audio = track.stems(rate)[:, :, start : start + length * ratio] / track.deviation(rate)
            chosen = [int(channels[own, j, i] * track.channels) for i in range(4)]
            batch.append([audio[i, chosen[i]] * (0.75 + 0.5 * gains[own, j, i]) for i in range(4)])
        portion = int(items * source.shuffle_p + 0.5)
        rotated = [[batch[(j + i) % portion][i] for i in range(4)] for j in range(portion)] + batch[portion:]
        found.append(np.array([rotated[j] for j in np.argsort(order)])[:, :, None])
    return found


@pytest.mark.parametrize("augmentation", ["same", "original"])
@pytest.mark.parametrize("shuffle_p", [0.0, 0.5, 1.0])
def test_the_augmentation_is_the_authors(source: Any, cache: Cache, augmentation: str, shuffle_p: float) -> None:
    batches = source(augmentation=augmentation, shuffle_p=shuffle_p)
    for number in range(3):
        for value, expected in zip(
            batches.batch(number).sources, by_the_authors_words(batches, cache, number), strict=True
        ):
            assert np.abs(value.numpy() - expected).max() <= 2e-6


def test_without_augmentation_the_channels_mean_is_cropped_and_nothing_else(source: Any, cache: Cache) -> None:
    batches = source(augmentation="none")
    plan, batch = batches.plan(2), batches.batch(2)
    for item, (track_index, start) in enumerate(zip(plan.tracks[:, 0], plan.starts[:, 0], strict=True)):
        track = batches.tracks[track_index]
        for ratio, rate, value in zip((1, 2), batches.rates, batch.sources, strict=True):
            expected = track.stems(rate)[:, :, start * ratio : (start + 4000) * ratio].mean(1) / track.deviation(rate)
            assert np.abs(value[item, :, 0].numpy() - expected).max() <= 2e-6


def plan_of(items: int, augmentation: str = "same", shuffle_p: float = 0.5, number: int = 0) -> Plan:
    lengths, channels = np.full(1000, 10**9), np.full(1000, 2)
    return draw_plan(
        5,
        number,
        items=items,
        stages=3,
        sources=4,
        lengths=lengths,
        channels=channels,
        crop=8,
        augmentation=augmentation,
        shuffle_p=shuffle_p,
    )


def test_all_rates_share_channels_and_gains_but_for_original() -> None:
    same, original = plan_of(64), plan_of(64, "original")
    assert same.channels is not None and original.channels is not None
    for values, equal in (
        (same.channels, True),
        (same.gains, True),
        (original.channels, False),
        (original.gains, False),
    ):
        assert np.array_equal(values[0], values[1]) is equal
        assert np.array_equal(values[0], values[2]) is equal
    assert np.array_equal(same.starts, original.starts)


@given(items=st.integers(1, 24), shuffle_p=st.floats(0, 1), number=st.integers(0, 2**64 - 1))
def test_sources_are_only_exchanged_within_the_shuffled_portion(items: int, shuffle_p: float, number: int) -> None:
    plan = plan_of(items, shuffle_p=shuffle_p, number=number)
    crops = [
        [(int(t), int(s)) for t, s in zip(*row, strict=True)] for row in zip(plan.tracks, plan.starts, strict=True)
    ]
    drawn = {row[0] for row in crops}
    assert len(drawn) == items
    for source in range(4):
        assert {row[source] for row in crops} == drawn, "every source of every item is there once"
    portion = int(items * shuffle_p + 0.5)
    whole = sum(len(set(row)) == 1 for row in crops)
    assert whole == items - (portion if portion > 1 else 0)


def test_draws_are_spread_evenly() -> None:
    plans = [plan_of(16, number=number) for number in range(300)]
    gains = np.concatenate([plan.gains[0].ravel() for plan in plans])
    channels = np.concatenate([plan.channels[0].ravel() for plan in plans if plan.channels is not None])
    tracks = np.concatenate([plan.tracks[:, 0] for plan in plans])
    assert 0.75 <= gains.min() < 0.751 and 1.249 < gains.max() < 1.25
    assert abs(gains.mean() - 1) < 0.005
    assert abs(channels.mean() - 0.5) < 0.02
    assert abs(tracks.mean() - 499.5) < 20


def test_what_is_unknown_or_silent_is_masked(source: Any, cache: Cache) -> None:
    batches = source(items=16)
    names = [track.name for track in batches.tracks]
    seen = set()
    for number in range(4):
        plan, batch = batches.plan(number), batches.batch(number)
        for item, stem in itertools.product(range(16), range(4)):
            name = names[plan.tracks[item, stem]]
            unknown, silent = (name, stem) == ("b", 1), (name, stem) == ("d", 3)
            seen |= {what for what, found in (("unknown", unknown), ("silent", silent)) if found}
            assert batch.counts[item, stem] == (not unknown)
            for mask in batch.masks():
                assert mask[item, stem, 0] == (not unknown and not silent)
    assert seen == {"unknown", "silent"}


def test_reading_ahead_is_bounded(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = source(workers=2)
    read = []
    original = batches._read

    def spy(number: int) -> Any:
        read.append(number)
        return original(number)

    monkeypatch.setattr(batches, "_read", spy)
    with contextlib.closing(batches.stream()) as stream:
        next(stream)
        time.sleep(0.2)
        assert max(read) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.fixture
def own(cache: Cache, tmp_path: Path) -> Cache:
    """A copy of the cache, to be damaged."""
    shutil.copytree(cache.path, tmp_path / "copy")
    return Cache.open(tmp_path / "copy")


def test_a_damaged_file_is_an_error_where_its_batch_is_due(own: Cache, config: MetaTasNetConfig) -> None:
    batches = BatchSource(own, config, items=4, seconds=0.5)
    for track in batches.tracks:
        track.file(16000).write_bytes(track.file(16000).read_bytes()[:5000])
    with pytest.raises(TrainingDataError, match="cut off"):
        batches.batch(0)
    with pytest.raises(TrainingDataError, match="cut off"), contextlib.closing(batches.stream()) as stream:
        next(stream)


def test_a_file_that_is_damaged_beforehand_is_an_error_at_once(own: Cache, config: MetaTasNetConfig) -> None:
    own.tracks("train")[1].file(8000).write_bytes(b"nonsense")
    with pytest.raises(TrainingDataError, match="prepare again"):
        BatchSource(own, config, items=4, seconds=0.5)


def test_a_missing_file_is_an_error_where_its_batch_is_due(own: Cache, config: MetaTasNetConfig) -> None:
    batches = BatchSource(own, config, items=4, seconds=0.5)
    for track in batches.tracks:
        track.file(8000).unlink()
    with pytest.raises(TrainingDataError, match="cannot be read"):
        batches.batch(0)


def test_tracks_shorter_than_an_item_are_left_out_and_named(
    source: Any, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    batches = source(seconds=1.2)
    assert [track.name for track in batches.skipped] == ["a", "b"]
    assert "a, b" in caplog.text
    assert {int(t) for number in range(20) for t in batches.plan(number).tracks.ravel()} == {0, 1, 2}


def test_lengths_that_are_whole_but_for_float_rounding_are_taken(source: Any) -> None:
    assert 1.005 * 8000 != 8040
    assert source(seconds=1.005).batch(0).sources[0].shape[-1] == 8040


def test_a_track_as_long_as_an_item_is_used(source: Any) -> None:
    batches = source(seconds=1.0)
    assert batches.skipped == [] and batches.tracks[0].samples(8000) == 8000
    number = next(number for number in itertools.count() if 0 in batches.plan(number).tracks)
    plan, batch = batches.plan(number), batches.batch(number)
    assert not plan.starts[plan.tracks == 0].any()
    assert batch.sources[0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 6, "world": 4}, "multiple of 4"),
        ({"items": 0}, "multiple"),
        ({"rank": 2, "world": 2}, "rank"),
        ({"augmentation": "mixup"}, "same, original, none"),
        ({"shuffle_p": 1.5}, "from 0 to 1"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"workers": 0}, "workers"),
        ({"seconds": 0.501}, "stride"),
        ({"seconds": 0.05}, "at least"),
        ({"seconds": 10.0}, "as long as"),
        ({"split": "test"}, "has no test tracks; prepare some"),
        ({"split": "dev"}, "no split"),
    ],
)
def test_settings_that_cannot_be_are_refused(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        source(**options)


def test_a_rate_that_is_not_cached_is_refused_with_the_remedy(cache: Cache) -> None:
    with pytest.raises(TrainingDataError, match="--rates 8000,16000,32000"):
        BatchSource(cache, MetaTasNetConfig())


def test_float32_caches_are_read_exactly(tmp_path: Path, config: MetaTasNetConfig) -> None:
    random = np.random.default_rng(3)
    audio = {rate: random.standard_normal((4, 2, rate)).astype(np.float32) for rate in (8000, 16000)}
    write_track(tmp_path, "train", "a", audio, dtype="float32")
    write_manifest(tmp_path, (8000, 16000))
    batches = BatchSource(Cache.open(tmp_path), config, items=2, seconds=1.0, augmentation="none")
    track = batches.tracks[0]
    for rate, value in zip(batches.rates, batches.batch(0).sources, strict=True):
        expected = audio[rate].mean(1) / track.deviation(rate)
        assert np.abs(value[0, :, 0].numpy() - expected).max() <= 2e-6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_an_error_that_names_the_file(
    tmp_path: Path, config: MetaTasNetConfig, value: float
) -> None:
    random = np.random.default_rng(3)
    audio = {rate: random.standard_normal((4, 2, rate)).astype(np.float32) for rate in (8000, 16000)}
    write_track(tmp_path, "train", "a", audio, dtype="float32")
    write_manifest(tmp_path, (8000, 16000))
    cache = Cache.open(tmp_path)
    (track,) = cache.tracks("train")
    damaged = np.load(track.file(16000))
    damaged[:, :, 5000] = value
    np.save(track.file(16000), damaged)
    batches = BatchSource(cache, config, items=2, seconds=1.0)
    with pytest.raises(TrainingDataError, match=r"a.16000\.npy holds NaN or infinity.*prepare again"):
        batches.batch(0)
    with pytest.raises(TrainingDataError, match=r"a.16000\.npy holds NaN or infinity.*prepare again"):
        validation_signals(track, cache.rates, range(4))


def test_a_validation_item_is_the_whole_track_in_units_of_its_mixture(cache: Cache) -> None:
    (track,) = cache.tracks("valid")
    mixes, items = validation_signals(track, cache.rates, range(4))
    assert [x.shape for x in items] == [(1, 4, 1, track.samples(rate)) for rate in cache.rates]
    for mix, item, rate in zip(mixes, items, cache.rates, strict=True):
        assert torch.equal(mix, item.sum(1))
        assert mix.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
        expected = track.stems(rate)[:].mean(1) / track.deviation(rate)
        assert np.abs(item[0, :, 0].numpy() - expected).max() <= 1e-6
