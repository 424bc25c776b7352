"""A track is in one split only, whatever the source and earlier runs say."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metatasnet_fast.errors import TrainingDataError
from metatasnet_fast.training.data import Cache, write_manifest, write_track
from metatasnet_fast.training.data.prepare import Preparation, prepare
from metatasnet_fast.training.data.sources import find_stems

pytest.importorskip("soundfile")

RATES = (8000, 16000)
WriteStems = Callable[..., Path]


@pytest.fixture
def songs(tmp_path: Path, write_stems: WriteStems) -> Path:
    """Two songs in a folder without splits."""
    for seed, name in enumerate(("a", "v")):
        write_stems(tmp_path / "songs" / name, seed=seed, seconds=0.1)
    return tmp_path / "songs"


def run(songs: Path, out: Path, held_out: tuple[str, ...] = (), **options: Any) -> Preparation:
    return prepare(find_stems(songs, held_out), out, rates=RATES, **options)


def names(cache: Path) -> list[list[str]]:
    opened = Cache.open(cache)
    return [[track.name for track in opened.tracks(split)] for split in ("train", "valid", "test")]


def statuses(result: Preparation) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in result.outcomes}


def files(cache: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(cache)): p.read_bytes()
        for p in cache.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def test_holding_out_another_track_moves_both_without_converting_them_again(tmp_path: Path, songs: Path) -> None:
    out = tmp_path / "cache"
    run(songs, out, ("a",))
    result = run(songs, out, ("v",))
    assert names(out) == [["a"], ["v"], []]
    assert statuses(result) == {"a": "kept", "v": "kept"}
    assert set(result.migration.moved) == {("a", "valid", "train"), ("v", "train", "valid")}
    run(songs, tmp_path / "fresh", ("v",))
    assert files(out) == files(tmp_path / "fresh")


def test_a_track_moves_even_if_its_new_split_is_not_prepared(tmp_path: Path, songs: Path) -> None:
    run(songs, tmp_path / "cache")
    found = find_stems(songs, ["v"])
    prepare([t for t in found if t.split == "train"], tmp_path / "cache", rates=RATES, source=found)
    assert names(tmp_path / "cache") == [["a"], ["v"], []]


def test_a_folder_that_moved_to_another_split_of_the_source_moves_in_the_cache(tmp_path: Path, songs: Path) -> None:
    run(songs, tmp_path / "cache")
    for name, split in (("a", "train"), ("v", "valid")):
        (songs / split).mkdir()
        (songs / name).rename(songs / split / name)
    assert statuses(run(songs, tmp_path / "cache")) == {"a": "kept", "v": "kept"}
    assert names(tmp_path / "cache") == [["a"], ["v"], []]


def test_a_held_out_track_that_can_no_longer_be_prepared_leaves_the_training_tracks(
    tmp_path: Path, songs: Path
) -> None:
    run(songs, tmp_path / "cache")
    (songs / "v" / "bass.wav").write_text("no sound")
    assert statuses(run(songs, tmp_path / "cache", ("v",))) == {"a": "kept", "v": "failed"}
    assert names(tmp_path / "cache") == [["a"], ["v"], []]


def test_a_cache_that_has_a_track_in_two_splits_is_refused_and_mended_by_preparing(tmp_path: Path, songs: Path) -> None:
    out = tmp_path / "cache"
    run(songs, out, ("a",))
    shutil.copytree(out / "valid" / "a", out / "train" / "a")
    write_manifest(out, RATES)
    with pytest.raises(TrainingDataError, match=r"a is in two splits of the cache .*, train and valid; delete .* and"):
        Cache.open(out)
    assert set(statuses(run(songs, out, ("a",))).values()) == {"kept"}
    assert names(out) == [["v"], ["a"], []]


def test_tracks_that_the_source_no_longer_has_are_named_and_left(
    tmp_path: Path, songs: Path, write_stems: WriteStems
) -> None:
    run(songs, tmp_path / "cache")
    write_stems(tmp_path / "more" / "b")
    assert run(tmp_path / "more", tmp_path / "cache").migration.gone == [], "those of other sources are no news"
    shutil.rmtree(songs / "v")
    assert run(songs, tmp_path / "cache").migration.gone == ["train/v"]
    assert names(tmp_path / "cache") == [["a", "b", "v"], [], []]


def test_copies_of_a_song_in_two_splits_of_a_source_are_refused(tmp_path: Path, write_stems: WriteStems) -> None:
    write_stems(tmp_path / "songs" / "train" / "a")
    shutil.copytree(tmp_path / "songs" / "train" / "a", tmp_path / "songs" / "valid" / "a")
    (failure,) = run(tmp_path / "songs", tmp_path / "cache").failures
    assert "none may be in two splits" in str(failure.error)
    assert names(tmp_path / "cache") == [["a"], [], []]


def test_a_song_of_the_same_name_from_elsewhere_is_not_validated_on(
    tmp_path: Path, songs: Path, write_stems: WriteStems
) -> None:
    """It may be another edition of the song."""
    run(songs, tmp_path / "cache")
    write_stems(tmp_path / "more" / "a", seed=9)
    (failure,) = run(tmp_path / "more", tmp_path / "cache", ("a",)).failures
    assert "train/a holds a track of this name already, from" in str(failure.error)
    assert names(tmp_path / "cache") == [["a", "v"], [], []]


def test_numbered_songs_of_a_source_with_splits_are_different_songs(tmp_path: Path, write_stems: WriteStems) -> None:
    for seed, split in enumerate(("train", "valid", "test")):
        write_stems(tmp_path / "songs" / split / "1", seed=seed)
    assert run(tmp_path / "songs", tmp_path / "cache").failures == []
    assert names(tmp_path / "cache") == [["1"], ["1"], ["1"]]


def test_nothing_is_known_of_tracks_without_an_origin_so_that_one_name_is_one_song(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        write_track(tmp_path, split, "a", {8000: random.standard_normal((4, 1, 800)).astype(np.float32)})
    write_manifest(tmp_path, (8000,))
    with pytest.raises(TrainingDataError, match="two splits"):
        Cache.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_move_no_track_is_in_two_splits_and_no_conversion_is_lost(tmp_path: Path, songs: Path) -> None:
    run(songs, tmp_path / "old", ("a",))
    run(songs, tmp_path / "expected", ("v",))
    instant, killed = 0, True
    while killed:
        instant += 1
        out = tmp_path / str(instant)
        shutil.copytree(tmp_path / "old", out)
        child = os.fork()
        if child == 0:
            _die_before(instant, out)
            try:
                run(songs, out, ("v",))
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        for name in ("a", "v"):
            assert sum((out / split / name).exists() for split in ("train", "valid")) == 1
        assert set(statuses(run(songs, out, ("v",))).values()) == {"kept"}
        assert files(out) == files(tmp_path / "expected")
    assert instant > 6


def _die_before(instant: int, out: Path) -> None:
    """End this process before its ``instant``-th file operation in a folder."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(out) in str(arguments[0]):
            seen += 1
            if seen == instant:
                os._exit(9)

    sys.addaudithook(watch)
