"""``metatasnet-fast prepare``."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.training.data import Cache

from .conftest import Command, sf

RATES = ("--rates", "8000,16000", "--workers", "1")


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Two songs of half a second."""
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        folder = tmp_path / "songs" / name
        folder.mkdir(parents=True)
        for stem in INSTRUMENTS:
            sf.write(folder / f"{stem}.wav", 0.1 * random.standard_normal((8000, 2)), 16000)
    return tmp_path / "songs"


def test_songs_become_a_cache(command: Command, songs: Path) -> None:
    outcome = command("prepare", "--stems", songs, "--held-out", "two", "--out", "cache", *RATES)
    assert outcome.code == 0 and outcome.err == ""
    assert "[1/2] one: 0.5 s of audio" in outcome.out
    cache = Cache.open("cache")
    assert cache.rates == (8000, 16000)
    assert [len(cache.tracks(split)) for split in ("train", "valid", "test")] == [1, 1, 0]
    assert "[1/2] one: kept" in command("prepare", "--stems", songs, "--held-out", "two", "-o", "cache", *RATES).out


def test_a_bad_track_is_one_line_and_exit_code_3(command: Command, songs: Path) -> None:
    (songs / "one" / "bass.wav").write_bytes(b"")
    outcome = command("prepare", "--stems", songs, "--out", "cache", *RATES)
    assert outcome.code == 3
    error, summary = outcome.err.splitlines()
    assert error.startswith("metatasnet-fast: error: ") and "bass.wav" in error
    assert summary == "metatasnet-fast: 1 tracks failed: one"
    assert [track.name for track in Cache.open("cache").tracks("train")] == ["two"]


def test_json_has_a_line_for_each_track_and_one_for_the_cache(command: Command, songs: Path) -> None:
    (songs / "one" / "bass.wav").write_bytes(b"")
    outcome = command("prepare", "--stems", songs, "--out", "cache", "--json", *RATES)
    assert outcome.code == 3
    *tracks, cache = map(json.loads, outcome.out.splitlines())
    assert {track["name"]: track["status"] for track in tracks} == {"one": "failed", "two": "done"}
    assert all(("bass.wav" in (track["error"] or "")) == (track["status"] == "failed") for track in tracks)
    assert cache["cache"] == "cache" and cache["seconds"]["train"] == pytest.approx(0.5)


def test_warnings_name_their_track(command: Command, songs: Path) -> None:
    sf.write(songs / "one" / "bass.wav", np.full((800, 2), 0.1), 16000)
    outcome = command("prepare", "--stems", songs, "--out", "cache", *RATES)
    assert outcome.code == 0
    assert outcome.err == (
        "metatasnet-fast: warning: one: bass ends 0.450 s before the longest stem; silence was added\n"
    )


def test_another_held_out_track_changes_places_and_a_deleted_one_is_named(command: Command, songs: Path) -> None:
    assert command("prepare", "--stems", songs, "--held-out", "one", "--out", "cache", *RATES).code == 0
    outcome = command("prepare", "--stems", songs, "--held-out", "two", "--splits", "train", "--out", "cache", *RATES)
    assert outcome.code == 0 and outcome.err == ""
    assert "one: moved from valid to train" in outcome.out and "two: moved from train to valid" in outcome.out
    shutil.rmtree(songs / "two")
    outcome = command("prepare", "--stems", songs, "--out", "cache", *RATES)
    assert outcome.code == 0
    assert outcome.err == (
        "metatasnet-fast: warning: cache still holds what this source no longer has: valid/two; "
        "to remove a track, delete its folder there and prepare again.\n"
    )


def test_a_refused_folder_among_the_songs_is_not_made(command: Command, songs: Path) -> None:
    outcome = command("prepare", "--stems", songs, "--out", songs / "train", *RATES)
    assert outcome.code == 2 and "where the songs are" in outcome.one_sentence()
    assert sorted(path.name for path in songs.iterdir()) == ["one", "two"]


def test_any_stems_are_prepared_selected_and_summed(command: Command, songs: Path) -> None:
    outcome = command(
        "prepare", "--stems", songs, "--out", "cache", "--instruments", "rhythm=drums+bass,vocals", *RATES
    )
    assert outcome.code == 0
    assert Cache.open("cache").instruments == ("rhythm", "vocals")
    outcome = command("prepare", "--stems", songs, "--out", "cache", *RATES)
    assert outcome.code == 2 and "holds the instruments rhythm=drums+bass,vocals" in outcome.one_sentence()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "one of the arguments --musdb --stems --original is required"),
        (("--stems", "songs", "--musdb", "songs"), "not allowed with"),
        (("--stems", "nowhere"), "no folder"),
        (("--musdb", "songs"), "not MUSDB18"),
        (("--stems", "songs", "--held-out", "three"), "there are one, two"),
        (("--original", "songs", "--held-out", "one"), "--held-out"),
        (("--stems", "songs", "--rates", "8k"), "whole numbers"),
        (("--stems", "songs", "--rates", "8000,12000"), "multiple"),
        (("--stems", "songs", "--splits", "dev"), "no split 'dev'"),
        (("--stems", "songs", "--splits", "test"), "None of the 2 tracks"),
        (("--stems", "songs", "--workers", "0"), "workers"),
        (("--stems", "songs", "--out", "file"), "another"),
        (("--stems", "songs", "--out", "songs"), "where the songs are"),
    ],
)
def test_what_cannot_be_is_one_sentence(command: Command, songs: Path, words: tuple[str, ...], message: str) -> None:
    (songs.parent / "file").write_text("")
    out = () if "--out" in words else ("--out", "cache")
    outcome = command("prepare", *words, *out)
    assert outcome.code == 2
    assert message in outcome.one_sentence()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")
def test_terminated_it_leaves_a_cache_that_the_next_run_completes(command: Command, songs: Path) -> None:
    out = songs.parent / "cache"
    program = [sys.executable, "-m", "metatasnet_fast", "prepare", "--stems", str(songs), "--out", str(out), *RATES]
    pipe, here = subprocess.PIPE, Path(__file__).parents[2]
    process = subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True, cwd=here)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 143), errors
    assert "Traceback" not in errors
    assert not list(out.glob(".partial/*"))
    assert command("prepare", "--stems", songs, "--out", "cache", *RATES).code == 0
    assert len(Cache.open("cache").tracks("train")) == 2
