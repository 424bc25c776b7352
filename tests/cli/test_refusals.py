"""Every wrong command and every bad file is one sentence with the right exit code, before anything is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
import torch

from metatasnet_fast.audio import AudioWriter
from tests.cli.conftest import RATE, Command


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--stems", "drums,horn"], "no stem 'horn'"),
        (["--stems", ""], "no stem ''"),
        (["--two-stems", "horn"], "no stem 'horn'"),
        (["--stems", "bass", "--two-stems", "bass"], "not allowed with"),
        (["--int24", "--float32"], "not allowed with"),
        (["--format", "m4a"], "Cannot write 'm4a'"),
        (["--format", "flac", "--float32"], "flac files cannot hold 'float32'"),
        (["--backend", "abacus"], "Unknown backend 'abacus'"),
        (["--dtype", "float8"], "Unknown dtype 'float8'"),
        (["--mode", "slow"], "Unknown mode 'slow'"),
        (["--device", "abacus"], "Unknown device 'abacus'"),
        (["--device", "cuda:99"], "CUDA device"),
        (["--filename", "{stem}"], "must end in .{ext}"),
        (["--filename", "{stem}.wav"], "must end in .{ext}"),
        (["--filename", "{name}/{stem}.{ext}"], "placeholder {name}"),
        (["--filename", "{}/{stem}.{ext}"], "placeholder {}"),
        (["--filename", "{track.parent}/{stem}.{ext}"], "placeholder {track.parent}"),
        (["--filename", "{stem:>20}.{ext}"], "placeholder {stem:>20}"),
        (["--filename", "{stem.{ext}"], "cannot be read"),
        (["--filename", "../{stem}.{ext}"], "leads out of"),
        (["--filename", "/{stem}.{ext}"], "leads out of"),
        (["--filename", "{track}.{ext}"], "use {stem} in the name"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_options(separate: Command, song: Path, tmp_path: Path, options: list[str], says: str) -> None:
    outcome = separate(song, *options)
    assert outcome.code == 2 and says in outcome.one_sentence()
    assert outcome.out == "" and not (tmp_path / "separated").exists()


@pytest.mark.parametrize("argv", [[], ["separate"], ["sing", "song.wav"], ["convert", "one"]])
def test_incomplete_commands(command: Command, argv: list[str]) -> None:
    outcome = command(*argv)
    assert outcome.code == 2 and "--help" in outcome.one_sentence()


def another_network(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings["config"]["B"] = 32
    (folder / "config.json").write_text(json.dumps(settings))


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (another_network, "does not fit its own settings"),
        (flip_a_byte, "is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "does not describe a Meta-TasNet"),
        (lambda folder: (folder / "model.safetensors").unlink(), "lacks model.safetensors"),
    ],
)
def test_bad_checkpoints(command: Command, model: Path, song: Path, tmp_path: Path, spoil: Any, says: str) -> None:
    spoil(shutil.copytree(model, tmp_path / "bad").absolute())
    outcome = command("separate", song, "--model", "bad")
    assert outcome.code == 2 and says in outcome.one_sentence() and outcome.out == ""


def test_unknown_models(command: Command, song: Path) -> None:
    assert "no checkpoint 'no one'" in command("separate", song, "--model", "no one").one_sentence()
    outcome = command("separate", song, "--model", song)
    assert outcome.code == 2 and "no checkpoint that can be loaded" in outcome.one_sentence()


def test_without_a_bundled_model_one_must_be_named(
    command: Command, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metatasnet_fast.model.pretrained.bundled_models", dict)
    outcome = command("separate", song)
    assert outcome.code == 2 and "--model" in outcome.one_sentence()


def test_stems_in_the_working_folder_do_not_hide_the_bundled_model(
    command: Command, model: Path, song: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metatasnet_fast.model.bundled_models", lambda: {"tiny": model})
    monkeypatch.setattr("metatasnet_fast.model.pretrained.bundled_models", lambda: {"tiny": model})
    first, second = (command("separate", song, "-o", ".", "--stems", stem) for stem in ("bass", "drums"))
    assert (first.code, second.code, second.err) == (0, 0, "")


def test_a_file_in_the_way_of_the_output_folder(separate: Command, song: Path) -> None:
    outcome = separate(song, "-o", song)
    assert outcome.code == 2 and "choose another" in outcome.one_sentence() and outcome.out == ""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder(separate: Command, song: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    outcome = separate(song, "-o", "locked")
    assert outcome.code == 2 and "choose another" in outcome.one_sentence()


def text_file(path: Path) -> Path:
    path.write_text("This is not music.")
    return path


def empty_file(path: Path) -> Path:
    path.touch()
    return path


def wav_without_samples(path: Path) -> Path:
    sf.write(path, [], RATE)
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path, "There is no file"),
        (text_file, "cannot be read as audio"),
        (empty_file, "is an empty file"),
        (wav_without_samples, "holds no samples"),
        (empty_folder, "holds no audio files"),
    ],
)
def test_bad_inputs(separate: Command, tmp_path: Path, make: Any, says: str) -> None:
    outcome = separate(make(tmp_path / "bad.wav"))
    assert outcome.code == 3 and says in outcome.one_sentence()
    assert list((tmp_path / "separated/tiny").iterdir()) == []


def test_a_name_that_the_system_refuses_fails_alone(separate: Command, song: Path) -> None:
    outcome = separate("x" * 300 + ".wav", song)
    assert outcome.code == 3 and "File name too long" in outcome.one_sentence() and "1 done" in outcome.out


def test_a_stem_whose_name_is_too_long_is_one_sentence(separate: Command, song: Path, tmp_path: Path) -> None:
    outcome = separate(song, "--stems", "bass", "--filename", "x" * 300 + "{stem}.{ext}")
    assert outcome.code == 3 and "File name too long" in outcome.one_sentence()
    assert list((tmp_path / "separated/tiny").iterdir()) == []


def test_an_empty_name_is_not_the_working_folder(separate: Command, song: Path, tmp_path: Path) -> None:
    outcome = separate("")
    assert outcome.code == 2 and "is empty" in outcome.one_sentence() and not (tmp_path / "separated").exists()


def test_tracks_of_one_name_that_nothing_tells_apart_fail_alone(separate: Command, song: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copy(song, tmp_path / f"{name}.wav")
    outcome = separate(song, "a.wav", "b.wav", "--filename", "{stem}.{ext}", "--stems", "bass")
    assert outcome.code == 3 and outcome.err.count("would both go to") == 3
    assert not list((tmp_path / "separated").rglob("*.wav"))


def test_an_input_is_never_overwritten(separate: Command, song: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    song = song.rename(tmp_path / "tiny/bass.wav")
    before = song.read_bytes()
    outcome = separate(song, "-o", ".", "--filename", "{stem}.{ext}", "--overwrite")
    assert outcome.code == 2 and "overwrite an input" in outcome.one_sentence() and song.read_bytes() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing_half_written(
    separate: Command, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    opened = []

    def write(self: AudioWriter, block: torch.Tensor) -> None:
        opened.extend((tmp_path / "separated/tiny/song").iterdir())
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(AudioWriter, "write", write)
    # A shell starts background jobs with SIGINT ignored, and Python leaves it so.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert separate(song).code == code
    finally:
        signal.signal(signal.SIGINT, ours)
    assert len(opened) == 4 and [path for path in (tmp_path / "separated").rglob("*") if path.is_file()] == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "--musdb", "closed"],
        ["prepare", "--musdb", "closed", "--out", "cache"],
        ["plot", "closed"],
        ["convert", "open-small", "closed/here.pt"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_folder_that_is_closed_to_this_user_is_one_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    (tmp_path / "closed").mkdir()
    ask = os.stat

    def refusing(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if Path(str(path)).parts[:1] == ("closed",) and len(Path(str(path)).parts) > 1:
            raise PermissionError(13, "Permission denied", str(path))
        return ask(path, *args, **options)

    monkeypatch.setattr(os, "stat", refusing)
    outcome = command(*argv)
    assert outcome.code == 2 and "(Permission denied)" in outcome.one_sentence()
