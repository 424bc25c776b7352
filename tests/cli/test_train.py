"""``train`` and ``plot`` from the command line."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast import _terminal, load_checkpoint
from metatasnet_fast.cli.training import TrainingDisplay
from metatasnet_fast.training import launch
from metatasnet_fast.training.data import write_manifest, write_track
from metatasnet_fast.training.journal import read_journal
from metatasnet_fast.training.step import GradientStep
from tests.cli.conftest import Command
from tests.training.songs import SMALL, music, write_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=1.0, train=2, rates=(8000, 16000))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**SMALL, "learning_rate": 0.01}))
    return path


def test_a_run_is_trained_continued_and_drawn(command: Command, cache: Path, config: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    start = ("train", cache, "--out", "run", "--config", config)
    first = command(*start, "--steps", "2", "--validate-every", "2", "--learning_rate", "2e-3", "--no-recompute")
    assert first.code == 0
    assert "N=8" in first.out and "learning_rate=0.002" in first.out and "batch_size=4" in first.out
    assert "validation at step 2" in first.out and "best so far" in first.out
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["training"]["learning_rate"] == 2e-3
    assert f"backend {settings['run']['backend']}, device cpu, float32" in first.out
    again = command("train", cache, "--out", "run", "--steps", "4", "--log_every", "1")
    assert again.code == 0
    assert "goes on from run/last.pt, step 2" in again.out and "changed: steps from 2 to 4" in again.out
    assert "learning_rate=0.002" in again.out
    assert "step 4 of 4" in again.out and "steps/s" in again.out and "audio-s/s" in again.out
    assert load_checkpoint(tmp_path / "run" / "best.pt").config.N == 8
    replayed = command("train", cache, "--out", "copy", "--config", "run/settings.json", "--steps", "1")
    assert replayed.code == 0
    drawn = command("plot", "run")
    assert drawn.code == 0 and (tmp_path / "run" / "run.png").read_bytes().startswith(b"\x89PNG")
    assert command("plot", "run", "-o", "run.svg", "--json").entries == [{"run": "run", "image": "run.svg"}]


def test_a_run_prints_its_events_as_objects(command: Command, cache: Path, config: Path) -> None:
    start = ("train", cache, "--out", "run", "--config", config, "--log_every", "1", "--validate-every", "2", "--json")
    outcome = command(*start, "--steps", "2")
    events = outcome.entries
    assert outcome.code == 0 and [event["event"] for event in events if event["event"] != "note"] == [
        "start", "summary", "summary", "validation", "end"
    ]  # fmt: skip
    first, last = events[0], events[-1]
    assert (first["run"], first["origin"], first["step"], first["changes"]) == ("run", None, 0, {})
    assert first["network"]["N"] == 8 and first["training"]["steps"] == 2
    assert last == {"event": "end", "run": "run", "interrupted": False}
    summary, validation = (next(e for e in events if e["event"] == kind) for kind in ("summary", "validation"))
    assert summary["step"] == 1 and summary["total"] == 2 and summary["loss"] > 0 and "drums" in summary["sdr"]
    assert validation["step"] == 2 and validation["best"] and validation["tracks"] == 1
    again = command(*start, "--steps", "3").entries[0]
    assert (again["origin"], again["step"], again["changes"]["steps"]) == ("run/last.pt", 2, [2, 3])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_an_interrupted_run_is_saved(
    command: Command, cache: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def interrupt(self: TrainingDisplay, step: int, total: int | None, loss: float) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingDisplay, "step", interrupt)
    outcome = command("train", cache, "--out", "run", "--config", config, "--steps", "5")
    assert outcome.code == code
    assert "goes on from run" in outcome.out
    assert (tmp_path / "run" / "last.pt").exists()
    assert outcome.err == ""


def test_output_that_cannot_be_written_ends_no_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with TrainingDisplay() as display:
        display.note("one")
        display.note("two")
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_progress_before_the_first_step_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_terminal, "LINE_SECONDS", 0.0)
    with TrainingDisplay() as display:
        for done in (8, 16):
            display.preparing("statistics", done, 16, "items")
        display.preparing("encoder and decoder", 1, 2, "steps")
    assert capsys.readouterr().err.splitlines() == [
        "statistics: 8 of 16 items",
        "statistics: 16 of 16 items",
        "encoder and decoder: 1 of 2 steps",
    ]


def test_a_stem_that_no_track_counts_has_no_score(command: Command, config: Path, tmp_path: Path) -> None:
    rates = (8000, 16000)
    for split, seed in (("train", 1), ("valid", 2)):
        signals = {rate: music(seed, 1.0, rate) for rate in rates}
        write_track(tmp_path / "cache", split, f"{split}-song", signals, counts=(True, True, False, True))
    write_manifest(tmp_path / "cache", rates)
    outcome = command("train", "cache", "--out", "run", "--config", config, "--steps", "1", "--validate_every", "1")
    assert outcome.code == 0
    assert outcome.out.count("other -,") == 2
    (entry,) = [entry for entry in read_journal(tmp_path / "run") if entry["kind"] == "train"]
    assert entry["si_sdr"]["stage1/other"] is None and entry["si_sdr"]["stage1/bass"] is not None


@pytest.mark.parametrize("when", ["_mixtures", "write_settings"])
def test_a_run_that_is_terminated_before_its_first_step_ends_well(
    command: Command, cache: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    real = getattr(launch, when)

    def terminated(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(launch, when, terminated)
    start = ("train", cache, "--out", "run", "--config", config, "--steps", "1")
    outcome = command(*start)
    assert outcome.code == 0 and outcome.err == ""
    assert "nothing is lost" in outcome.out
    monkeypatch.setattr(launch, when, real)
    assert command(*start).code == 0
    assert (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--N", "7"], "N must be a multiple"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--batch_size", "many"], "--batch_size"),
        (["--seed", "99999999999999999999999"], "seed must be less than 2^63"),
        (["--config", "absent.toml"], "absent.toml cannot be read"),
        (["--checkpoint", "absent.pt"], "no checkpoint 'absent.pt'"),
        (["--backend", "abacus"], "Unknown backend 'abacus'"),
        (["--backend", "cuda"], "cuda cannot serve"),
        (["--device", "abacus"], "Unknown device 'abacus'"),
        (["--dtype", "float8"], "Unknown dtype 'float8'"),
        (["--dtype", "float16"], "loss scaling"),
        (["--time_length", "0.001"], "choose another length"),
        (["--stages_num", "3"], "lacks 32000 Hz"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    command: Command, cache: Path, config: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    given = [] if "--config" in options else ["--config", config]
    outcome = command("train", cache, "--out", "run", *given, *options)
    assert outcome.code == 2 and says in outcome.one_sentence()
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_fit_into_memory_is_one_sentence(
    command: Command, cache: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(GradientStep, "__call__", exhausted)
    outcome = command("train", cache, "--out", "run", "--config", config, "--steps", "1")
    assert outcome.code == 2 and "--micro_batch 2 or --recompute" in outcome.one_sentence()


def test_one_process_of_several_without_its_rank_is_one_sentence(
    command: Command, cache: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    outcome = command("train", cache, "--out", "run", "--config", config, "--steps", "1")
    assert outcome.code == 2 and "RANK is not set" in outcome.one_sentence()
    assert not (tmp_path / "run").exists()


def test_folders_that_are_something_else_are_refused(command: Command, config: Path, tmp_path: Path) -> None:
    assert "no finished cache" in command("train", tmp_path, "--out", "run", "--config", config).one_sentence()
    assert "no log of a run" in command("plot", tmp_path).one_sentence()


def test_tensorboard_that_is_missing_is_named(
    command: Command, cache: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = command("train", cache, "--out", "run", "--config", config, "--tensorboard", "--steps", "1")
    assert outcome.code == 2 and "pip install tensorboard" in outcome.one_sentence()
