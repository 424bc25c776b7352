"""Stems on disk are kept for the recording and the model that they are of, and for no other."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from metatasnet_fast.cli.common import model_name
from metatasnet_fast.model import MultiTasNet
from tests.cli.conftest import RATE, Command
from tests.support import TINY, recipe_state


@pytest.fixture
def other(tmp_path: Path, song: Path, sound: np.ndarray) -> Path:
    """Another recording of the same name, size and time of change."""
    path = tmp_path / "other" / song.name
    path.parent.mkdir()
    sf.write(path, sound[::-1], RATE, subtype="FLOAT")
    times = (song.stat().st_atime_ns, song.stat().st_mtime_ns)
    os.utime(path, ns=times)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_song_of_the_same_name_fails_and_hears_whose_the_stems_are(
    separate: Command, song: Path, other: Path, tmp_path: Path
) -> None:
    assert separate(song).code == 0
    before = content(tmp_path / "separated")
    outcome = separate(other, "--json")
    assert outcome.code == 3 and outcome.entries[0]["status"] == "failed"
    sentence = outcome.one_sentence()
    assert f"are of {song}," in sentence and "--overwrite" in sentence and "--output" in sentence
    assert content(tmp_path / "separated") == before


def test_another_model_of_the_same_name_fails_and_hears_whose_the_stems_are(
    separate: Command, model: Path, song: Path, tmp_path: Path
) -> None:
    network = MultiTasNet(TINY)
    network.load_state_dict(recipe_state(TINY, 2))
    network.save_pretrained(tmp_path / "newer" / "tiny")
    assert separate(song).code == 0
    outcome = separate(song, "--model", tmp_path / "newer" / "tiny")
    assert outcome.code == 3 and f"by another model, {model} (" in outcome.one_sentence()


def test_overwrite_replaces_the_stems_and_whose_they_are(separate: Command, song: Path, other: Path) -> None:
    assert separate(song).code == 0
    assert "1 done" in separate(other, "missing.wav", "--overwrite").out
    assert "skipped" in separate(other).out
    assert separate(song).code == 3


def test_the_same_song_is_skipped_wherever_it_lies_and_whenever_it_was_touched(
    separate: Command, song: Path, tmp_path: Path
) -> None:
    assert separate(song).code == 0
    (tmp_path / "copy").mkdir()
    copied = shutil.copy(song, tmp_path / "copy")
    os.utime(song, (1, 1))
    assert all("skipped" in separate(path).out for path in (song, copied))


def test_a_song_that_changed_fails(separate: Command, song: Path, sound: np.ndarray) -> None:
    assert separate(song).code == 0
    sf.write(song, sound[: RATE // 4], RATE, subtype="FLOAT")
    outcome = separate(song)
    assert outcome.code == 3 and "as it was before it changed" in outcome.one_sentence()


def test_a_song_that_is_gone_is_skipped(separate: Command, song: Path) -> None:
    assert separate(song).code == 0
    song.unlink()
    assert "skipped" in separate(song).out


def test_stems_of_an_unknown_recording_are_kept(separate: Command, song: Path, other: Path, tmp_path: Path) -> None:
    assert separate(song).code == 0
    (tmp_path / "separated/tiny/song/.stems.json").unlink()
    outcome = separate(other)
    assert outcome.code == 0 and "skipped" in outcome.out


def test_stems_of_two_songs_are_not_mixed(separate: Command, song: Path, other: Path, tmp_path: Path) -> None:
    assert separate(song, "--stems", "bass").code == 0
    assert separate(other).code == 3
    assert sorted(path.name for path in (tmp_path / "separated/tiny/song").glob("*.wav")) == ["bass.wav"]


def test_every_stem_has_its_own_origin(separate: Command, song: Path, other: Path) -> None:
    assert separate(song, "--stems", "bass").code == 0
    assert separate(other, "--stems", "drums").code == 0
    assert separate(other, "--stems", "vocals", "--format", "flac").code == 0
    assert "skipped" in separate(other, "--stems", "drums").out and "skipped" in separate(song, "--stems", "bass").out
    assert separate(other, "--stems", "bass").code == separate(song, "--stems", "drums").code == 3
    assert separate(song, "--stems", "vocals", "--format", "flac").code == 3


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("{track}-{stem}.{ext}", ".song-stems.json"),
        ("{stem}/{track}.{ext}", ".stems-song.json"),
        ("a/{{stem}} {stem}.{ext}", "a/.{stem} stems.json"),
        ("{track}.{ext}", ".song.json"),
    ],
)
def test_the_record_follows_the_template(
    separate: Command, song: Path, other: Path, tmp_path: Path, name: str, record: str
) -> None:
    command = ["--stems", "bass", "--filename", name]
    assert separate(song, *command).code == 0
    assert (tmp_path / "separated/tiny" / record).is_file()
    assert "skipped" in separate(song, *command).out and separate(other, *command).code == 3


def test_a_record_of_a_name_of_any_length_is_written(
    separate: Command, song: Path, other: Path, tmp_path: Path
) -> None:
    command = ["--stems", "bass", "--filename", "x" * 246 + "-{stem}.{ext}"]
    assert separate(song, *command).code == 0
    assert separate(other, *command).code == 3


@pytest.mark.parametrize("text", ["", "[]", '{"bass.wav": {"input": 1}}', '{"bass.wav": 3}'])
def test_a_damaged_record_is_named(separate: Command, song: Path, tmp_path: Path, text: str) -> None:
    assert separate(song, "--stems", "bass").code == 0
    record = tmp_path / "separated/tiny/song/.stems.json"
    record.write_text(text)
    outcome = separate(song, "--stems", "bass")
    assert outcome.code == 3 and ".stems.json" in outcome.one_sentence()
    assert separate(song, "--stems", "bass", "--overwrite").code == 0 and "bass.wav" in json.loads(record.read_text())


def test_a_record_that_cannot_be_written_is_a_failure_and_the_old_one_goes(
    separate: Command, song: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert separate(song).code == 0
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    outcome = separate(other, "--overwrite")
    assert outcome.code == 3 and "No space left on device" in outcome.one_sentence()
    assert [path for path in content(tmp_path / "separated") if not path.endswith(".wav")] == []


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoints_of_a_run_are_called_as_the_run(tmp_path: Path, name: str) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        (tmp_path / run / f"{name}.pt").touch()
        assert model_name(str(tmp_path / run / f"{name}.pt")) == f"{run}-{name}"


def test_other_checkpoints_are_called_as_their_file_or_folder(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for path in ("net/model.safetensors", "song.pt"):
        (tmp_path / path).touch()
    assert model_name(str(tmp_path / "net/model.safetensors")) == model_name(str(tmp_path / "net")) == "net"
    assert model_name(str(tmp_path / "song.pt")) == "song"
