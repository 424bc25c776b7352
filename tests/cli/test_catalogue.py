"""``catalogue run``, ``status`` and ``verify`` from the command line."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from metatasnet_fast.catalogue.destination import song_folder
from metatasnet_fast.catalogue.inputs import read_manifest
from metatasnet_fast.cli.main import main
from metatasnet_fast.errors import ConfigError

from .conftest import RATE, Command, sf

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def refusing_store() -> Iterator[None]:
    """``refusing://``: an object store whose client has no credentials, and exceptions of its own."""
    fsspec = pytest.importorskip("fsspec")

    class NoCredentialsError(Exception):
        pass

    class Refusing(fsspec.AbstractFileSystem):  # type: ignore[misc, name-defined]
        protocol = "refusing"

        def ls(self, path: str, detail: bool = True, **more: object) -> object:
            raise NoCredentialsError("no credentials found")

        info = find = isdir = exists = cat_file = makedirs = ls

    fsspec.register_implementation("refusing", Refusing, clobber=True)
    yield
    importlib.import_module("fsspec.registry")._registry.pop("refusing")


@pytest.fixture
def album(tmp_path: Path, sound: np.ndarray) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for index in range(3):
        sf.write(folder / f"{index}.wav", sound * (index + 1), RATE, subtype="FLOAT")
    (folder / "bad.mp3").write_text("this is no music")
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))  # so old that their times of change can be relied on
    return folder


@pytest.mark.parametrize(("engine", "function"), [("local", "local.run_local"), ("ray", "ray_engine.run_ray")])
def test_every_engine_gets_what_was_asked_for(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, function: str
) -> None:
    asked: dict[str, object] = {}

    def separate(songs: object, settings: object, destination: str, *listening: object, **options: object) -> None:
        asked.update(options, destination=destination)
        raise ConfigError("enough")

    monkeypatch.setattr(f"metatasnet_fast.catalogue.{function}", separate)
    words = ["--engine", engine, "--shard", "1/2", "--workers", "1", "--grace", "7.5", "--price-per-hour", "3"]
    assert main(["catalogue", "run", str(album), "--out", str(tmp_path / "out"), *words]) == 2
    expected = {"shard": "1/2", "workers": 1, "grace": 7.5, "price_per_hour": 3.0, "destination": str(tmp_path / "out")}
    assert {name: asked[name] for name in expected} == expected


def arguments(model: Path, *words: str | Path) -> list[str]:
    return ["catalogue", "run", *map(str, words), "--model", str(model), "--device", "cpu", "--threads", "2"]


def test_a_catalogue_from_the_first_run_to_the_last(command: Command, model: Path, album: Path) -> None:
    first = command(*arguments(model, "album", "--out", "out", "--json"))
    assert first.code == 3
    kinds = [entry["event"] for entry in first.entries]
    assert kinds[0] == "run_started" and kinds[-1] == "run_ended" and kinds.count("song_ended") == 4
    end = first.entries[-1]
    assert end["failures"] == {"not_audio": 1} and end["remaining"] == 0 and end["exit_code"] == 3
    [failed] = [entry for entry in first.entries if entry.get("status") == "failed"]
    assert failed["failure"] == "not_audio" and "manifest" in failed["hint"] and failed["uri"].endswith("bad.mp3")

    dry = command(*arguments(model, "album", "--out", "out", "--dry-run", "--json"))
    assert dry.entries[0] == {
        "songs": 4, "todo": 0, "done": 3, "failed": 1, "missing": 0, "expected_hours": 0
    }  # fmt: skip

    shutil.rmtree(Path("out") / song_folder(read_manifest(str(album / "0.wav"))[0].id))
    second = command(*arguments(model, "album", "--out", "out", "--json", "--workers", "2"))
    outcomes = {Path(entry["uri"]).name: entry for entry in second.entries if entry["event"] == "song_ended"}
    assert {name: entry["status"] for name, entry in outcomes.items()} == {"0.wav": "done", "bad.mp3": "failed"}
    assert [entry["songs"] for entry in second.entries if entry["event"] == "songs_skipped"] == [2]
    assert second.code == 3 and "report: " in second.err

    status = command("catalogue", "status", "out", "--json")
    assert status.entries[0]["done"] == 3 and status.entries[0]["failed"] == {"not_audio": 1}
    assert "bad" in command("catalogue", "status", "out").out
    assert command("catalogue", "verify", "out").code == 0
    stem = next(Path("out/songs").rglob("bass.flac"))
    stem.write_bytes(stem.read_bytes()[:-1])
    broken = command("catalogue", "verify", "out", "--repair")
    assert broken.code == 3 and "bass has" in broken.out
    (album / "bad.mp3").unlink()
    assert command(*arguments(model, "album", "--out", "out")).code == 0
    assert command("catalogue", "verify", "out", "--json").entries[-1] == {
        "verified": 3, "findings": 0, "repaired": False
    }  # fmt: skip


def test_what_one_format_cannot_hold_is_done_in_the_next_run_with_another(
    command: Command, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "wide").mkdir()
    sf.write(tmp_path / "wide" / "nine.wav", np.full((RATE // 4, 9), 0.1), RATE)
    os.utime(tmp_path / "wide" / "nine.wav", (1e9, 1e9))  # so old that its time of change can be relied on
    first = command(*arguments(model, "wide", "--out", "out", "--json"))
    assert first.code == 3 and first.entries[-1]["failures"] == {"does_not_fit": 1}
    assert command(*arguments(model, "wide", "--out", "out", "--format", "wav", "--json")).code == 0


def test_a_folder_of_stems_does_not_hide_the_bundled_model(
    command: Command, model: Path, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tiny").mkdir()
    words = arguments(Path("tiny"), "album", "--out", "out", "--dry-run", "--json")
    assert command(*words).code == 2
    monkeypatch.setattr("metatasnet_fast.model.pretrained.bundled_models", lambda: {"tiny": model})
    assert command(*words).entries[0]["todo"] == 4


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere", "--out", "out"], "no manifest"),
        (["", "--out", "out"], "name is empty"),
        (["album", "--out", ""], "--out is empty"),
        (["album", "--out", "out", "--shard", "3/2"], "i/n"),
        (["album", "--out", "out", "--mode", "reference"], "fast mode"),
        (["album", "--out", "out", "--format", "mp4"], "mp4"),
        (["album", "--out", "out", "--stems", "guitar"], "guitar"),
        (["album", "--out", "out", "--device", "tpu"], "Unknown device 'tpu'"),
        (["album", "--out", "out", "--threads", "0"], "at least 1"),
        (["album", "--out", "out", "--workers", "0"], "at least 1"),
        (["album", "--out", "out", "--listen", "-1"], "from 0 to 100"),
        (["album", "--out", "out", "--workers", "5000000"], "get into each other's way"),
        (["album", "--out", "out", "--songs-in-flight", "9" * 20], "at most 4096"),
        (["album", "--out", "out", "--batch-size", "9" * 20], "at most 65536"),
        (["album", "--out", "out", "--address", "auto"], "--engine ray"),
        (["album", "--out", "out", "--memory-gib", "nan"], "--memory-gib must be"),
        (["album", "--out", "out", "--memory-gib", "1e300"], "--memory-gib must be"),
        (["album", "--out", "out", "--grace", "-1"], "--grace must be"),
        (["album", "--out", "out", "--price-per-hour", "inf"], "--price-per-hour must be"),
        (["album", "--out", "out", "--max-hours", "inf"], "max_hours must be"),
        (["album", "--out", "memory://out"], "gone at its end"),
        (["album", "--out", "refusing://out", "--dry-run"], "NoCredentials"),
        (["refusing://album", "--out", "out"], "NoCredentials"),
        (["album", "--out", "/proc/nowhere", "--dry-run", "--dtype", "float3"], "float3"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(
    command: Command, model: Path, album: Path, refusing_store: None, words: list[str], reason: str
) -> None:
    outcome = command("catalogue", "run", "--model", model, "--device", "cpu", *words)
    assert outcome.code == 2 and reason in outcome.one_sentence()


@pytest.mark.parametrize("action", ["status", "verify"])
def test_a_folder_of_songs_that_may_not_be_read_is_not_passed_over(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    for name in ("ab/cd/a", "ef/01/b"):
        (tmp_path / "out/songs" / name).mkdir(parents=True)
        (tmp_path / "out/songs" / name / "result.json").touch()
    scan = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "ef":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    outcome = command("catalogue", action, "out")
    assert outcome.code == 2 and "Permission denied" in outcome.one_sentence()


@pytest.mark.parametrize("action", ["status", "verify"])
def test_a_place_without_a_catalogue_says_so(command: Command, action: str) -> None:
    outcome = command("catalogue", action, "nowhere")
    assert outcome.code == 2 and "no catalogue" in outcome.one_sentence()


def processes_that_name(path: Path) -> list[str]:
    """Command lines of this machine's processes in which a path stands."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process that has just ended
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(path) in line]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigterm_finishes_the_songs_in_flight_and_says_what_remains(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal((20 * RATE, 2)).astype(np.float32)
    for index in range(16):
        sf.write(folder / f"{index}.flac", noise, RATE)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "metatasnet_fast", *arguments(model, folder, "--out", out, "--json")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(json.loads(line))
        if lines[-1]["event"] == "song_ended":
            process.send_signal(signal.SIGTERM)
            break
    rest, said = process.communicate(timeout=60)
    lines += [json.loads(line) for line in rest.splitlines()]
    end = lines[-1]
    done = sum(entry["event"] == "song_ended" for entry in lines)
    assert process.returncode == 3
    assert end["event"] == "run_ended" and not end["complete"] and end["remaining"] == 16 - done > 0
    assert f"{16 - done} songs remain" in said
    assert len(list((out / "songs").rglob("result*.json"))) == done
    assert not list((out / ".staging").iterdir())
    time.sleep(0.1)
    assert not processes_that_name(out)


@pytest.mark.parametrize("action", ["status", "verify"])
def test_a_store_that_refuses_is_one_sentence(command: Command, refusing_store: None, action: str) -> None:
    outcome = command("catalogue", action, "refusing://out")
    assert outcome.code == 2 and "no credentials found" in outcome.one_sentence()


def test_a_dry_run_counts_what_cannot_be_opened(command: Command, model: Path, album: Path) -> None:
    (album / "round.wav").symlink_to("round.wav")
    dry = command(*arguments(model, "album", "--out", "out", "--dry-run", "--json"))
    assert dry.code == 0 and (dry.entries[0]["todo"], dry.entries[0]["missing"]) == (4, 1)


def test_names_that_are_no_text_reach_the_report(command: Command, model: Path, tmp_path: Path) -> None:
    album = tmp_path / "album"
    album.mkdir()
    try:
        Path(os.fsdecode(bytes(album) + b"/br\xffken.wav")).write_bytes(b"RIFF" + bytes(3000))
    except OSError:
        pytest.skip("names are text here")
    outcome = command(*arguments(model, "album", "--out", "out"))
    assert outcome.code == 3 and "report: " in outcome.out
    assert "br\\udcffken.wav" in next(Path("out/runs").rglob("report.html")).read_text("utf-8")


def test_a_run_goes_on_when_nobody_reads_its_output(model: Path, album: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "metatasnet_fast"]
    words = arguments(model, album, "--out", tmp_path / "out", "--json")
    with subprocess.Popen(
        [*program, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "run_started" in process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 3 and "Traceback" not in said and "the work goes on" in said
    assert len(list((tmp_path / "out" / "songs").rglob("result*.json"))) == 3


def test_a_count_that_nobody_reads_is_no_error(model: Path, album: Path, command: Command) -> None:
    command(*arguments(model, "album", "--out", "out"))
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "metatasnet_fast", "catalogue", "status", str(Path("out").resolve())]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        found = subprocess.run(words, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert found.returncode == 141 and found.stderr == ""
