"""``separate`` with odd files, names and surroundings: what can be done is done."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from metatasnet_fast.audio import Tags, read_tags
from metatasnet_fast.separation import separator
from tests.audio.support import encode, multiplex
from tests.cli.conftest import RATE, Command


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*.*") if path.is_file())


@pytest.mark.parametrize("where", ["open_audio", "separate_in_windows", "read_tags"])
def test_an_error_that_nobody_foresaw_fails_one_track(
    separate: Command, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    shutil.copy(song, tmp_path / "bad.wav")
    right, calls = getattr(separator, where), []

    def wrong(*args: Any, **named: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise ZeroDivisionError("division by zero")
        return right(*args, **named)

    monkeypatch.setattr(separator, where, wrong)
    outcome = separate("bad.wav", song, "--stems", "bass", "--json")
    assert outcome.code == 3 and [entry["status"] for entry in outcome.entries] == ["failed", "done"]
    assert "ZeroDivisionError (division by zero): this is a fault of metatasnet-fast" in outcome.one_sentence()
    assert names(tmp_path / "separated") == ["tiny/song/bass.wav"]


def test_a_file_of_which_most_is_lost_fails_unless_the_rest_is_wanted(
    separate: Command, song: Path, tmp_path: Path
) -> None:
    (tmp_path / "cut.wav").write_bytes(song.read_bytes()[: song.stat().st_size // 2])
    outcome = separate("cut.wav", song, "--stems", "bass")
    assert outcome.code == 3 and "Only 4" in outcome.one_sentence() and "1 done, 0 skipped, 1 failed" in outcome.out
    outcome = separate("cut.wav", "--stems", "bass", "--partial")
    assert outcome.code == 0 and "announces 6400 samples" in outcome.err


def test_files_that_differ_in_their_suffix_are_both_done(separate: Command, song: Path, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    for suffix in ("wav", "flac"):
        sf.write(tmp_path / f"album/song.{suffix}", np.zeros((1000, 1)), RATE)
    shutil.copy(song, tmp_path / "album/other.wav")
    outcome = separate("album", "--stems", "bass")
    assert outcome.code == 0 and outcome.err.count("warning") == 1 and "song.flac, song.wav" in outcome.err
    folders = ("other", "song.flac", "song.wav")
    assert names(tmp_path / "separated") == [f"tiny/{folder}/bass.wav" for folder in folders]


def test_files_of_one_name_in_several_folders_are_all_done(separate: Command, song: Path, tmp_path: Path) -> None:
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(song, tmp_path / folder / "01.wav")
    assert separate("a/01.wav", "b", "b/c/01.wav", "--stems", "bass").code == 0
    assert separate("a", "b/c", "-o", "out", "--stems", "bass").code == 0
    assert names(tmp_path / "separated") == ["tiny/01/bass.wav", "tiny/c/01/bass.wav"]
    assert names(tmp_path / "out") == ["tiny/a/01/bass.wav", "tiny/b/c/01/bass.wav"]


def test_tags_and_cover_go_into_the_stems(separate: Command, tmp_path: Path, sound: np.ndarray) -> None:
    from metatasnet_fast.audio import AudioWriter

    tags = Tags({"title": "Song", "artist": "Band"})
    with AudioWriter(tmp_path / "tagged.flac", RATE, 2, tags=tags) as writer:
        writer.write(torch.from_numpy(sound.T.copy()))
    assert separate("tagged.flac", "--stems", "bass").code == 0
    assert read_tags(tmp_path / "separated/tiny/tagged/bass.wav") == tags
    assert separate("tagged.flac", "--stems", "bass", "--no-tags", "--overwrite").code == 0
    assert read_tags(tmp_path / "separated/tiny/tagged/bass.wav") == Tags()


@pytest.mark.parametrize(
    ("subtype", "options", "written"),
    [
        ("PCM_24", ["--depth", "same"], "PCM_24"),
        ("FLOAT", ["--depth", "same"], "FLOAT"),
        ("PCM_32", ["--depth", "same"], "PCM_32"),
        ("FLOAT", ["--depth", "same", "--format", "flac"], "PCM_24"),
        ("PCM_24", ["--depth", "same", "--format", "ogg"], "VORBIS"),
        ("PCM_24", ["--depth", "int16"], "PCM_16"),
        ("PCM_24", [], "PCM_16"),
    ],
)
def test_stems_have_the_depth_that_was_asked_for(
    separate: Command, tmp_path: Path, sound: np.ndarray, subtype: str, options: list[str], written: str
) -> None:
    sf.write(tmp_path / "x.wav", sound, RATE, subtype=subtype)
    assert separate("x.wav", "--stems", "bass", *options).code == 0
    (path,) = (tmp_path / "separated/tiny/x").glob("bass.*")
    assert sf.info(path).subtype == written


def test_audio_tracks_are_chosen_by_number_or_all_of_them(separate: Command, tmp_path: Path, song: Path) -> None:
    sounds = [0.1 * torch.rand(1, 16_000), 0.1 * torch.rand(2, 16_000)]
    multiplex(tmp_path / "film.mka", sounds, RATE, "pcm_s16le", default=1)
    outcome = separate("film.mka", "--stems", "bass")
    assert outcome.code == 0 and "there are 2 audio tracks; number 2 was read" in outcome.err
    assert separate("film.mka", "--stems", "bass", "--audio-track", "1", "--overwrite").code == 0
    assert sf.info(tmp_path / "separated/tiny/film/bass.wav").channels == 1
    outcome = separate("film.mka", song, "--stems", "bass", "--audio-track", "all", "-o", "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert names(tmp_path / "out") == ["tiny/film-1/bass.wav", "tiny/film-2/bass.wav", "tiny/song/bass.wav"]
    assert sf.info(tmp_path / "out/tiny/film-2/bass.wav").channels == 2
    assert "neither a number" in separate(song, "--audio-track", "0").one_sentence()
    assert "--output is empty" in separate(song, "-o", "").one_sentence()
    assert "no audio track 2" in separate(song, "--audio-track", "2", "-o", "third").one_sentence()


def test_a_recording_on_standard_input_is_separated(
    separate: Command, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))

    given(song.read_bytes())
    (entry,) = separate("-", "--stems", "bass", "--json").entries
    assert (entry["status"], entry["input"], entry["track"]) == ("done", "standard input", "stdin")
    given(song.read_bytes())
    assert separate("-", "--stems", "bass", "--json").entries[0]["status"] == "skipped"
    given(b"")
    assert "standard input is an empty file" in separate("-", "-o", "out").one_sentence()
    assert "given twice" in separate("-", "-", "-o", "out").one_sentence()
    monkeypatch.setattr(sys, "stdin", None)
    assert "Standard input is not a file or a pipe" in separate("-").one_sentence()


def test_an_address_is_not_fetched(separate: Command, song: Path) -> None:
    outcome = separate("https://example.org/a.mp3", song, "--stems", "bass")
    assert outcome.code == 3 and "https://example.org/a.mp3 is an address" in outcome.one_sentence()


def test_control_characters_in_names_do_not_reach_the_terminal(separate: Command, song: Path, tmp_path: Path) -> None:
    song.rename(tmp_path / "a\x1b[31m\nred\x9b.wav")
    outcome = separate("a\x1b[31m\nred\x9b.wav", "\x1b]0;title\x07.wav", "--stems", "bass")
    assert outcome.code == 3 and not {"\x1b", "\x9b", "\x07"} & set(outcome.out + outcome.err)
    assert "a\\x1b[31m\\nred\\x9b.wav: bass in" in outcome.out and len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize(
    "redirections", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full"]
)
def test_closed_or_full_outputs_do_not_stop_the_work(
    model: Path, song: Path, tmp_path: Path, redirections: str
) -> None:
    command = f'exec "$0" -m metatasnet_fast separate --model "$1" --device cpu --stems bass "$2" {redirections}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(model), str(song)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONUNBUFFERED": "",
        },  # buffered, as by default
    )
    assert done.returncode == 0 and names(tmp_path / "separated") == ["tiny/song/bass.wav"]
    assert sf.info(tmp_path / "separated/tiny/song/bass.wav").frames == sf.info(song).frames


def test_a_reader_that_leaves_does_not_stop_the_work(model: Path, song: Path, tmp_path: Path) -> None:
    shutil.copy(song, tmp_path / "second.wav")
    words = ["-m", "metatasnet_fast", "separate", "--model", str(model), "--device", "cpu", "--stems", "bass"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *words, str(song), "second.wav"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "the work goes on" in done.stderr
    assert names(tmp_path / "separated") == ["tiny/second/bass.wav", "tiny/song/bass.wav"]


def test_an_mp3_with_a_tail_of_another_kind_is_done_whole(separate: Command, tmp_path: Path) -> None:
    parts = [encode(tmp_path / f"{c}.mp3", torch.rand(c, 44_100) - 0.5, 44100, "libmp3lame") for c in (1, 2)]
    (tmp_path / "x.mp3").write_bytes(b"".join(part.read_bytes() for part in parts))
    outcome = separate("x.mp3", "--stems", "bass")
    assert outcome.code == 0 and "was converted to 44100 Hz mono" in outcome.err
    assert sf.info(tmp_path / "separated/tiny/x/bass.wav").frames > 85_000
