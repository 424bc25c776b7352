"""Preparing a cache: what arrives in it, and what is skipped or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metatasnet_fast.audio import resample
from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.errors import TrainingDataError
from metatasnet_fast.training.data import Cache
from metatasnet_fast.training.data.prepare import prepare
from metatasnet_fast.training.data.sources import find_musdb, find_stems, parse_instruments
from tests.training.data.preparing import RATES, contents, run, statuses

sf = pytest.importorskip("soundfile")

WriteStems = Callable[..., Path]


def test_stems_arrive_resampled_at_every_rate(tmp_path: Path, write_stems: WriteStems) -> None:
    song = write_stems(tmp_path / "songs" / "a", rate=44100, seconds=1.0)
    run(tmp_path / "songs", tmp_path / "cache")
    (track,) = Cache.open(tmp_path / "cache").tracks("train")
    for rate in RATES:
        stems = track.stems(rate)
        assert stems.shape == (4, 2, rate)
        for index, name in enumerate(INSTRUMENTS):
            audio = torch.from_numpy(sf.read(song / f"{name}.wav", dtype="float32")[0].T.copy())
            expected = resample(audio, 44100, rate).numpy()
            assert np.abs(stems[index] - expected).max() <= stems.scale[index, 0, 0] * 1.7


def test_stems_of_several_formats_rates_and_widths_make_one_track(tmp_path: Path) -> None:
    song = tmp_path / "songs" / "a"
    song.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, rate, channels in (("Drums.FLAC", 48000, 2), ("bass.wav", 22050, 1), ("vocals.ogg", 44100, 2)):
        sf.write(song / name, 0.1 * random.standard_normal((rate, channels)), rate)
    sf.write(song / "other.aiff", np.zeros(32000), 32000)
    run(tmp_path / "songs", tmp_path / "cache")
    (track,) = Cache.open(tmp_path / "cache").tracks("train")
    stems = track.stems(16000)
    assert stems.shape == (4, 2, 16000)
    assert not stems[2].any()
    assert np.array_equal(stems[1, 0], stems[1, 1]) and stems[1].any()


def test_a_quartet_with_a_bass_needs_no_drums(tmp_path: Path, write_stems: WriteStems) -> None:
    song = write_stems(tmp_path / "songs" / "a", stems=("viola", "bass", "cello"))
    (song / "track.json").write_text('{"unknown": ["vocals"]}')
    assert statuses(run(tmp_path / "songs", tmp_path / "cache")) == {"a": "done"}
    cache = Cache.open(tmp_path / "cache")
    assert cache.instruments == ("bass", "vocals", "cello", "viola")
    assert cache.tracks("train")[0].counts == (True, False, True, True)


def test_the_order_of_a_caches_instruments_stays(tmp_path: Path, write_stems: WriteStems) -> None:
    write_stems(tmp_path / "songs" / "a", stems=("viola", "cello"))
    run(tmp_path / "songs", tmp_path / "cache", stems=parse_instruments("viola,cello"))
    with pytest.raises(TrainingDataError, match="holds the instruments viola,cello, not cello,viola"):
        run(tmp_path / "songs", tmp_path / "cache", stems=parse_instruments("cello,viola"))


def test_a_short_stem_is_continued_with_silence_and_reported(tmp_path: Path, write_stems: WriteStems) -> None:
    song = write_stems(tmp_path / "songs" / "a", seconds=1.0)
    write_stems(song, seconds=0.5, stems=("bass",))
    (outcome,) = run(tmp_path / "songs", tmp_path / "cache").outcomes
    assert outcome.status == "done"
    assert outcome.warnings == ("bass ends 0.500 s before the longest stem; silence was added",)
    (track,) = Cache.open(tmp_path / "cache").tracks("train")
    assert track.seconds == 1.0
    assert not track.stems(16000)[1, :, 8100:].any()
    assert track.entry.warnings == outcome.warnings


def test_splits_are_the_folders_or_the_tracks_held_out(tmp_path: Path, songs: Path, write_stems: WriteStems) -> None:
    run(songs, tmp_path / "flat", ("two",))
    for place in ("train/x", "valid/y", "test/z"):
        write_stems(tmp_path / "folders" / place)
    run(tmp_path / "folders", tmp_path / "split")
    flat, split = Cache.open(tmp_path / "flat"), Cache.open(tmp_path / "split")
    names = [[[t.name for t in cache.tracks(s)] for s in ("train", "valid", "test")] for cache in (flat, split)]
    assert names == [[["one", "three"], ["two"], []], [["x"], ["y"], ["z"]]]


def test_an_annotated_stem_may_be_missing_and_does_not_count(tmp_path: Path, write_stems: WriteStems) -> None:
    song = write_stems(tmp_path / "songs" / "a", stems=("drums", "other", "vocals"))
    (song / "track.json").write_text('{"unknown": ["bass", "other"]}')
    run(tmp_path / "songs", tmp_path / "cache")
    (track,) = Cache.open(tmp_path / "cache").tracks("train")
    assert track.counts == (True, False, False, True)
    assert not track.stems(8000)[1].any() and track.stems(8000)[2].any()


def test_a_second_run_keeps_what_is_done_and_makes_anew_what_changed(
    tmp_path: Path, songs: Path, write_stems: WriteStems
) -> None:
    cache = tmp_path / "cache"
    assert statuses(run(songs, cache)) == {"one": "done", "two": "done", "three": "done"}
    before = contents(cache)
    assert statuses(run(songs, cache)) == {"one": "kept", "two": "kept", "three": "kept"}
    assert contents(cache) == before
    write_stems(songs / "two", seed=9, stems=("vocals",))
    assert statuses(run(songs, cache)) == {"one": "kept", "two": "done", "three": "kept"}
    changed = {
        name.split(os.sep)[1] for name, data in contents(cache).items() if before[name] != data and os.sep in name
    }
    assert changed == {"two"}


def test_a_new_annotation_changes_the_entry_only(tmp_path: Path, songs: Path) -> None:
    cache = tmp_path / "cache"
    run(songs, cache)
    before = contents(cache)
    (songs / "one" / "track.json").write_text('{"unknown": ["bass"]}')
    assert statuses(run(songs, cache))["one"] == "kept"
    changed = {Path(name).name for name, data in contents(cache).items() if before[name] != data}
    assert changed == {"entry.json", "manifest.json"}
    assert Cache.open(cache).tracks("train")[0].counts == (True, False, True, True)


def test_several_sources_share_a_cache(tmp_path: Path, songs: Path, write_stems: WriteStems) -> None:
    write_stems(tmp_path / "more" / "four")
    run(songs, tmp_path / "cache")
    run(tmp_path / "more", tmp_path / "cache")
    assert [t.name for t in Cache.open(tmp_path / "cache").tracks("train")] == ["four", "one", "three", "two"]


def test_two_tracks_of_one_name_do_not_replace_each_other(tmp_path: Path, songs: Path, write_stems: WriteStems) -> None:
    write_stems(tmp_path / "more" / "one", seed=7)
    run(songs, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    (outcome,) = run(tmp_path / "more", tmp_path / "cache").outcomes
    assert outcome.error is not None and "another track of this name" in outcome.error
    after = contents(tmp_path / "cache")
    assert {name for name in after if after[name] != before[name]} == {"manifest.json"}


def test_a_name_that_is_no_text_is_kept(tmp_path: Path, write_stems: WriteStems) -> None:
    name = os.fsdecode(b"caf\xe9 \xff")
    (tmp_path / "songs").mkdir()
    write_stems(tmp_path / "written").rename(tmp_path / "songs" / name)
    run(tmp_path / "songs", tmp_path / "cache")
    (track,) = Cache.open(tmp_path / "cache").tracks("train")
    assert track.name == name and np.asarray(track.stems(8000)).any()
    assert statuses(run(tmp_path / "songs", tmp_path / "cache")) == {name: "kept"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": (8000, 16000, 32000)}, "8000, 16000 Hz"),
        ({"dtype": "float32"}, "as int16"),
        ({"dtype": "int8"}, "sample type"),
        ({"stems": {"drums": ("drums",)}}, "holds the instruments"),
        ({"workers": 0}, "workers"),
        ({"rates": (8000, 11025)}, "multiple"),
    ],
)
def test_other_settings_are_refused_before_anything_is_touched(
    tmp_path: Path, songs: Path, options: dict[str, Any], message: str
) -> None:
    run(songs, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    with pytest.raises(TrainingDataError, match=message):
        prepare(find_stems(songs), tmp_path / "cache", **{"rates": RATES, **options})
    assert contents(tmp_path / "cache") == before


def test_stems_are_safe_from_a_cache_in_their_own_folder(tmp_path: Path, write_stems: WriteStems) -> None:
    write_stems(tmp_path / "songs" / "train" / "a")
    before = contents(tmp_path / "songs")
    for place in (".", "train", "valid", "train/a", "train/a/cache", "train/cache"):
        with pytest.raises(TrainingDataError, match="where the songs are; choose another folder"):
            run(tmp_path / "songs", tmp_path / "songs" / place)
    assert contents(tmp_path / "songs") == before


def test_a_cache_does_not_turn_a_folder_of_songs_into_one_with_splits(tmp_path: Path, songs: Path) -> None:
    before = contents(songs)
    for place in (".", "train", "one"):
        with pytest.raises(TrainingDataError, match="where the songs are; choose another folder"):
            run(songs, songs / place)
    assert contents(songs) == before
    for _ in range(2):
        assert len(run(songs, songs / "cache").outcomes) == 3, "a folder beside the songs is none of them"


def test_a_cache_is_not_prepared_again(tmp_path: Path, songs: Path) -> None:
    run(songs, tmp_path / "cache")
    for find in (find_stems, find_musdb):
        with pytest.raises(TrainingDataError, match="is a track of a cache, so that .*cache needs no preparing"):
            find(tmp_path / "cache")


@pytest.mark.skipif(os.name != "posix", reason="locks are those of POSIX")
def test_two_runs_into_one_cache_do_not_mix(tmp_path: Path, songs: Path) -> None:
    import fcntl

    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainingDataError, match="Another process"):
            run(songs, tmp_path / "cache")
    assert len(run(songs, tmp_path / "cache").outcomes) == 3


@pytest.mark.parametrize(
    ("layout", "held_out", "message"),
    [
        ({}, (), "holds no tracks"),
        ({"notes/readme.txt": "x"}, (), "holds no tracks"),
        ({"a/drums.wav": "x"}, ("b",), "no training track 'b' to hold out; there are a"),
    ],
)
def test_folders_without_tracks_are_refused(
    tmp_path: Path, layout: dict[str, str], held_out: tuple[str, ...], message: str
) -> None:
    for name, text in layout.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(TrainingDataError, match=message):
        find_stems(tmp_path, held_out)
    with pytest.raises(TrainingDataError, match="no folder"):
        find_stems(tmp_path / "nowhere")


def test_processes_make_the_same_cache(tmp_path: Path, songs: Path) -> None:
    (songs / "two" / "bass.wav").unlink()
    one, many = run(songs, tmp_path / "one"), run(songs, tmp_path / "many", workers=2)
    assert statuses(one) == statuses(many)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
