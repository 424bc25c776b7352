"""Help, info, convert and demo."""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

import metatasnet_fast
from metatasnet_fast.cli.common import ProgressDisplay
from metatasnet_fast.cli.info import PACKAGES
from metatasnet_fast.cli.main import COMMANDS, build_parser
from metatasnet_fast.model import load_checkpoint
from metatasnet_fast.page import RANGE_DB, Axis, encode_png, levels, magma
from metatasnet_fast.separation import Progress
from tests.cli.conftest import RATE, Command

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("argv", [["--help"], ["separate", "--help"], ["train", "--help"], ["--version"], ["separate"]])
def test_help_and_mistakes_come_without_torch(argv: list[str]) -> None:
    code = f"import sys; from metatasnet_fast.cli.main import main; main({argv}); sys.exit('torch' in sys.modules)"
    assert python(code).returncode == 0


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def test_help_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for parser in parsers(build_parser()) for line in parser.format_help().splitlines()]
    assert len(lines) > 300
    assert [line for line in lines if len(line) > 80] == []


def test_info_fits_eighty_columns_but_for_paths(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = command("info").out.splitlines()
    assert [line for line in lines if len(line) > 80 and " " in line.strip()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_loads_no_other_commands_modules(name: str) -> None:
    modules = {module for module, _, _ in COMMANDS.values()} - {COMMANDS[name][0], "main"}
    code = (
        f"import sys; from metatasnet_fast.cli.main import main; main([{name!r}, '--help']); "
        f"sys.exit([m for m in {sorted(modules)} if f'metatasnet_fast.cli.{{m}}' in sys.modules] or 0)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: metatasnet-fast {name}") and "options" in done.stdout


def test_every_command_that_prints_results_has_json() -> None:
    leaves = {each.prog: each for each in parsers(build_parser()) if each.get_default("run")}
    without = {prog for prog, parser in leaves.items() if "--json" not in parser._option_string_actions}
    assert without == {"metatasnet-fast completion"}
    assert len(leaves) == len(COMMANDS) + 5  # catalogue's three for itself, models' two, bench's compare


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_prints_a_script_that_knows_the_commands(command: Command, shell: str) -> None:
    script = command("completion", shell).out
    assert all(name in script for name in ("separate", "catalogue", "score"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="the program bash is not installed")
def test_bash_completes_options_and_commands(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(command("completion", "bash").out, encoding="utf-8")

    def completed(*words: str) -> list[str]:
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
        code = f"source {script}; {line}; _shtab_metatasnet_fast; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60).stdout.split()

    assert "separate" in completed("metatasnet-fast", "se")
    assert "--format" in completed("metatasnet-fast", "separate", "--fo")
    assert "fetch" in completed("metatasnet-fast", "models", "fe")
    assert set(completed("metatasnet-fast", "export", "--format", "")) == {"onnx", "pt2"}
    (tmp_path / "song.mp3").touch()
    assert f"{tmp_path}/song.mp3" in completed("metatasnet-fast", "separate", f"{tmp_path}/so")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "metatasnet_fast", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"metatasnet-fast {metatasnet_fast.__version__}\n")
    wrong = subprocess.run([*command[:-1], "nothing"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_info_says_what_is_there_and_why_the_rest_is_not(command: Command) -> None:
    outcome = command("info", "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 0
    assert (found["metatasnet_fast"], found["torch"]) == (metatasnet_fast.__version__, torch.__version__)
    assert found["packages"]["av"]["version"] == importlib.metadata.version("av")
    assert found["backends"]["reference"]["reason"] is None and found["auto"]["cpu"].endswith(" in float32")
    assert (found["cpu"]["compiled_isas"] is None) == (found["cpu"]["reason"] is not None)
    assert set(found["models"]) == set(metatasnet_fast.bundled_models())
    text = command("info").out
    assert all(name in text for name in (*PACKAGES, *found["backends"], *found["models"]))


def test_info_names_the_extra_that_installs_a_package(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, extra in PACKAGES.items():
        block = re.search(rf"^{extra} = \[(.*?)^\]", declared, re.MULTILINE | re.DOTALL)
        assert block and re.search(rf'"{package}(\[\w+\])?>', block[1])

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert "not installed; pip install 'metatasnet-fast[audio]'" in command("info").out


def test_convert_there_and_back_is_exact(command: Command, model: Path) -> None:
    assert command("convert", model, "there.pt").code == 0
    assert command("convert", "there.pt", "back").code == 0
    before, after = load_checkpoint(model).state_dict(), load_checkpoint("back").state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert Path("back/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_half_is_about_half_as_large(command: Command, model: Path) -> None:
    assert command("convert", model, "half", "--half").code == 0
    assert Path("half/model.safetensors").stat().st_size < 0.75 * (model / "model.safetensors").stat().st_size


def test_convert_prints_an_object(command: Command, model: Path) -> None:
    (entry,) = command("convert", model, "folder", "--json").entries
    files = ["folder/config.json", "folder/model.safetensors"]
    assert entry == {"target": "folder", "files": files, "bytes": sum(Path(file).stat().st_size for file in files)}
    (entry,) = command("convert", "folder", "x.pt", "--json").entries
    assert entry == {"target": "x.pt", "files": ["x.pt"], "bytes": Path("x.pt").stat().st_size}


def test_export_prints_an_object(command: Command, model: Path) -> None:
    (entry,) = command("export", model, "network.pt2", "--json").entries
    size = Path("network.pt2").stat().st_size
    assert entry == {"target": "network.pt2", "format": "pt2", "backend": "reference", "bytes": size}


def test_convert_refuses_in_one_sentence(command: Command, model: Path, song: Path) -> None:
    assert command("convert", model, "x").code == 0
    for source, target, options, says in [
        (model, "x", [], "exists"),
        (model, "x.pt", ["--half"], "folders only"),
        ("no one", "y", [], "no checkpoint 'no one'"),
        (song, "y", [], "no checkpoint that can be loaded"),
        (model, "absent/y.pt", [], "cannot be written"),
    ]:
        outcome = command("convert", source, target, *options)
        assert outcome.code == 2 and says in outcome.one_sentence()
    assert command("convert", model, "x", "--overwrite").code == 0


@pytest.fixture
def short_excerpt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, song: Path) -> None:
    """The demo on half a second of noise, not on the excerpt."""
    shutil.copy(song, tmp_path / "noise.wav")
    monkeypatch.setattr("metatasnet_fast.cli.separate.EXCERPT", str(tmp_path / "noise.wav"))


@pytest.mark.usefixtures("short_excerpt")
def test_the_demo_writes_stems_and_a_page_that_needs_nothing_else(
    command: Command, model: Path, tmp_path: Path, sound: np.ndarray
) -> None:
    outcome = command("demo", "-o", "out", "--model", model)
    assert outcome.code == 0 and "x real time" in outcome.out and str(Path("out/index.html")) in outcome.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["index.html", "drums.wav", "bass.wav", "other.wav", "vocals.wav"]
    )
    text = (tmp_path / "out/index.html").read_text("utf-8")
    sounds = re.findall(r'"(?:sound|reference)": "data:audio/mpeg;base64,([^"]*)"', text)
    assert len(sounds) == 5
    for content in sounds[:2]:
        (tmp_path / "sound.mp3").write_bytes(base64.b64decode(content))
        assert sf.info(tmp_path / "sound.mp3").channels == 2
    assert text.count('data-picture="data:image/png;base64,iVBORw0KGgo') == 5


@pytest.mark.usefixtures("short_excerpt")
def test_the_demo_prints_an_object(command: Command, model: Path) -> None:
    (entry,) = command("demo", "-o", "out", "--model", model, "--json").entries
    assert entry["files"] == {stem: f"out/{stem}.wav" for stem in ("drums", "bass", "other", "vocals")}
    assert (entry["model"], entry["page"], entry["picture"]) == ("tiny", "out/index.html", None)
    assert entry["duration"] == pytest.approx(0.4) and entry["seconds"] > 0 and entry["backend"]


@pytest.mark.usefixtures("short_excerpt")
def test_the_demo_draws_a_picture(command: Command, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert command("demo", "--model", model, "--picture", "images/stems.png").code == 0
    assert (tmp_path / "images/stems.png").read_bytes().startswith(b"\x89PNG")


def test_the_excerpt_is_there() -> None:
    from metatasnet_fast.cli import separate

    package = Path(metatasnet_fast.__file__).parent
    assert sf.info(package / separate.EXCERPT).duration == 25.0
    mixture, _ = sf.read(package / separate.EXCERPT)
    stems = sum(
        sf.read(package / separate.DEMO / f"sodium-{stem}.ogg")[0] for stem in ("drums", "bass", "other", "vocals")
    )
    assert np.square(mixture - stems).sum() < 0.05 * np.square(mixture).sum()


def test_a_picture_holds_the_levels_it_was_given() -> None:
    values = torch.arange(12, dtype=torch.uint8).reshape(3, 4) * 20
    png = encode_png(values)
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        chunks[png[at + 4 : at + 8]] = png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size)[0] == zlib.crc32(png[at + 4 : at + 8 + size])
        at += 12 + size
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (4, 3, 8, 3, 0, 0, 0)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(3, 5)
    assert (lines[:, 0] == 0).all() and (lines[:, 1:] == values.numpy()).all()
    assert chunks[b"PLTE"] == magma().tobytes() and (np.diff(magma().astype(int).sum(1)) >= 0).all()


@pytest.mark.parametrize("hertz", [100.0, 1000.0, 5000.0])
def test_a_tone_is_brightest_at_its_height(hertz: float) -> None:
    tone = torch.sin(2 * torch.pi * hertz * torch.arange(2 * RATE) / RATE)[None]
    rows = 60
    picture = levels({"tone": tone, "quiet": 0.1 * tone, "silence": 0 * tone}, RATE, rows, 40)
    edges = Axis.of(RATE).edges(rows).flip(0)
    band = int(picture["tone"][:, 20].argmax())
    assert edges[band + 2 if band + 2 <= rows else rows] <= hertz <= edges[max(0, band - 1)]
    assert picture["tone"].shape == (rows, 40) and picture["tone"].max() == 255
    assert abs(int(picture["quiet"].max()) - round(255 * (1 - 20 / RANGE_DB))) <= 1
    assert picture["silence"].max() == 0


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metatasnet_fast._terminal.LINE_SECONDS", 0.0)
    with ProgressDisplay("song.wav") as display:
        display(Progress(0.0, 1.0, None, "read"))
        display(Progress(0.5, 60.0, 120.0, "separate"))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("song.wav: 60 of 120 s, ")
