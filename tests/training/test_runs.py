"""Runs: they go on where they stopped, lose nothing, and say what is wrong."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metatasnet_fast import load_checkpoint
from metatasnet_fast.backends import Choice
from metatasnet_fast.errors import CheckpointError, ConfigError, TrainingDataError, TrainingError
from metatasnet_fast.model.checkpoints import read_original
from metatasnet_fast.training import trainer as trainer_module
from metatasnet_fast.training.data import Batch, BatchSource
from metatasnet_fast.training.journal import Display, read_journal
from metatasnet_fast.training.launch import plan_run, train
from metatasnet_fast.training.step import GradientStep, Items
from tests.model.test_checkpoints import same
from tests.support import GOLDEN
from tests.training.songs import SMALL, write_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=1.0)


class Watcher(Display):
    """Calls ``act`` after a step, and keeps the notes and what was prepared."""

    def __init__(self, act: Callable[[int], None] = lambda step: None) -> None:
        self.act, self.notes, self.prepared = act, list[str](), list[tuple[str, int, int, str]]()

    def preparing(self, what: str, done: int, total: int, unit: str) -> None:
        self.prepared.append((what, done, total, unit))

    def step(self, step: int, total: int | None, loss: float) -> None:
        self.act(step)

    def note(self, text: str) -> None:
        self.notes.append(text)


def go(
    cache: Path, out: Path, watcher: Watcher | None = None, checkpoint: Path | None = None, **given: Any
) -> int | None:
    """Start a small run, or go on with it."""
    settings = given if (out / "last.pt").exists() else {**SMALL, **given}
    return train(cache, out, plan_run(out, settings, checkpoint), display=watcher or Watcher())


def content(path: Path) -> dict[str, Any]:
    """A checkpoint without its clock."""
    found: dict[str, Any] = torch.load(path, weights_only=False)
    found["metatasnet_fast"]["progress"].pop("elapsed")
    del found["args"].directory
    return found


def test_what_comes_before_the_first_step_shows_its_progress(cache: Path, tmp_path: Path) -> None:
    watcher, seen = Watcher(), list[int]()
    watcher.act = lambda step: seen.append(len(watcher.prepared))
    go(cache, tmp_path / "run", watcher, steps=1, stats_items=7, batch_size=4, codec_steps=2, N=16, filters=1)
    assert watcher.prepared == [
        ("statistics", 4, 8, "items"),
        ("statistics", 8, 8, "items"),
        ("encoder and decoder", 1, 2, "steps"),
        ("encoder and decoder", 2, 2, "steps"),
    ]
    assert seen == [4], "all before the first step"


def sending(number: int, when: int) -> Watcher:
    """Sends this process a signal after a step."""
    return Watcher(lambda step: os.kill(os.getpid(), number) if step == when else None)


@pytest.mark.parametrize(
    "given",
    [{"validate_every": 3}, {"ema": 0.9, "dropout": 0.2, "micro_batch": 3, "validate_every": 2, "sgdr_period": 4}],
    ids=["plain", "average-dropout-micro-batches-restart"],
)
def test_an_interrupted_and_continued_run_equals_an_uninterrupted_one(
    cache: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    settings = {"steps": 6, "save_every": 100, **given}
    assert go(cache, tmp_path / "whole", **settings) is None
    assert go(cache, tmp_path / "parts", sending(signal.SIGTERM, when=2), **settings) == signal.SIGTERM
    assert read_original(tmp_path / "parts" / "last.pt").steps == 2
    assert go(cache, tmp_path / "parts", sending(signal.SIGINT, when=5)) == signal.SIGINT
    assert go(cache, tmp_path / "parts") is None
    for name in ("last.pt", "best.pt"):
        assert same(content(tmp_path / "whole" / name), content(tmp_path / "parts" / name)), name
    whole, parts = (
        [entry for entry in read_journal(tmp_path / run) if entry["kind"] == "valid"] for run in ("whole", "parts")
    )
    assert [{**entry, "seconds": 0} for entry in whole] == [{**entry, "seconds": 0} for entry in parts]


def test_a_killed_run_goes_on_from_its_last_checkpoint(cache: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == 5:
            raise Killed

    settings = {"steps": 6, "save_every": 2, "log_every": 1}
    go(cache, tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        go(cache, tmp_path / "parts", Watcher(kill), **settings)
    assert [entry["step"] for entry in read_journal(tmp_path / "parts")][-1] == 4
    assert go(cache, tmp_path / "parts") is None
    assert same(content(tmp_path / "whole" / "last.pt"), content(tmp_path / "parts" / "last.pt"))
    assert [entry["step"] for entry in read_journal(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]


def test_an_interrupted_validation_is_done_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 4, "validate_every": 2}
    go(cache, tmp_path / "whole", **settings)
    real = trainer_module.validate

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(trainer_module, "validate", interrupted)
    assert go(cache, tmp_path / "parts", **settings) == signal.SIGTERM
    assert not (tmp_path / "parts" / "best.pt").exists()
    monkeypatch.setattr(trainer_module, "validate", real)
    assert go(cache, tmp_path / "parts") is None
    assert same(content(tmp_path / "whole" / "best.pt"), content(tmp_path / "parts" / "best.pt"))


def test_a_second_ctrl_c_ends_at_once(cache: Path, tmp_path: Path) -> None:
    def twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        go(cache, tmp_path / "run", Watcher(twice), steps=4)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_costs_no_checkpoint(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = torch.save, False

    def save(value: Any, file: Any) -> None:
        if full:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        real(value, file)

    def fill(step: int) -> None:
        nonlocal full
        full = step in (3, 4)

    monkeypatch.setattr(torch, "save", save)
    watcher = Watcher(fill)
    assert go(cache, tmp_path / "run", watcher, steps=6, save_every=2) is None
    assert any("no space left on the disk" in note for note in watcher.notes)
    assert read_original(tmp_path / "run" / "last.pt").steps == 6

    def fill_at_the_end(step: int) -> None:
        nonlocal full
        full = step == 8

    with pytest.raises(CheckpointError, match=r"no space left on the disk\): make room"):
        go(cache, tmp_path / "run", Watcher(fill_at_the_end), steps=8)
    assert read_original(tmp_path / "run" / "last.pt").steps == 6
    assert not list((tmp_path / "run").glob(".*.part"))


def test_a_loss_that_is_no_number_stops_and_keeps_its_batch(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BatchSource._to_device

    def poisoned(self: BatchSource, host: Any) -> Batch:
        batch = real(self, host)
        if batch.number == 3:
            batch.sources[1][0, 0, 0, 5] = math.nan
        return batch

    monkeypatch.setattr(BatchSource, "_to_device", poisoned)
    with pytest.raises(
        TrainingError, match=r"Step 4 got samples that are not finite from the drums of train-\d"
    ) as raised:
        go(cache, tmp_path / "run", steps=6, save_every=2)
    assert "failed.pt; last.pt is of step 2" in str(raised.value) and "learning_rate" not in str(raised.value)
    failed = torch.load(tmp_path / "run" / "failed.pt", weights_only=False)
    assert failed["step"] == 4
    assert failed["sources"][1].isnan().sum() == 1
    assert all(value.isfinite().all() for value in failed["state_dict"].values())
    assert read_original(tmp_path / "run" / "last.pt").steps == 2


def test_a_damaged_track_costs_no_step_that_was_taken(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BatchSource._read

    def damaged(self: BatchSource, number: int) -> Any:
        if number == 3:
            raise TrainingDataError("train-1 is cut off; prepare it again.")
        return real(self, number)

    monkeypatch.setattr(BatchSource, "_read", damaged)
    with pytest.raises(TrainingDataError, match="train-1 is cut off"):
        go(cache, tmp_path / "run", steps=6)
    assert read_original(tmp_path / "run" / "last.pt").steps == 3


def test_an_exploding_loss_can_be_repeated_from_what_was_kept(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Step 1 .*smaller --learning_rate") as raised:
        go(cache, tmp_path / "run", steps=6, max_loss=1.0)
    assert "last.pt" not in str(raised.value)
    failed = torch.load(tmp_path / "run" / "failed.pt", weights_only=False)
    network = load_checkpoint(tmp_path / "run" / "failed.pt")
    found = GradientStep(network, Choice())(Items(failed["mixes"], failed["sources"], failed["masks"]), failed["step"])
    assert found.loss == failed["loss"]
    assert found.norm == failed["gradient_norm"]


def test_training_of_the_authors_goes_on_with_its_optimiser(cache: Path, tmp_path: Path) -> None:
    original = GOLDEN / "original_checkpoint.pt"
    small = {name: SMALL[name] for name in ("batch_size", "time_length", "threads", "validate_every")}
    plan = plan_run(tmp_path / "run", {**small, "steps": 1236}, original)
    assert plan.config.N == 16
    assert plan.settings.learning_rate == 1e-3
    assert plan.changes["batch_size"] == (12, 4)
    assert train(cache, tmp_path / "run", plan, display=Watcher()) is None
    before, after = (torch.load(path, weights_only=False) for path in (original, tmp_path / "run" / "last.pt"))
    assert after["steps"] == 1236
    assert before.keys() <= after.keys()
    assert vars(before["args"]).keys() <= vars(after["args"]).keys()
    assert isinstance(after["args"], argparse.Namespace)
    assert list(after["state_dict"]) == list(before["state_dict"])
    assert after["optimizer"]["param_groups"][0].keys() == before["optimizer"]["param_groups"][0].keys()
    for index, state in before["optimizer"]["state"].items():
        assert after["optimizer"]["state"][index]["step"] == state["step"] + 2
        assert state.keys() == after["optimizer"]["state"][index].keys()


def test_a_run_can_start_from_weights_alone(cache: Path, tmp_path: Path) -> None:
    go(cache, tmp_path / "first", steps=1)
    load_checkpoint(tmp_path / "first" / "last.pt").save_pretrained(tmp_path / "weights")
    assert go(cache, tmp_path / "second", checkpoint=tmp_path / "weights", steps=1) is None
    assert read_original(tmp_path / "second" / "last.pt").steps == 1


def test_what_is_given_anew_is_changed_and_the_rest_stays(cache: Path, tmp_path: Path) -> None:
    go(cache, tmp_path / "run", steps=1, learning_rate=3e-4)
    plan = plan_run(tmp_path / "run", {"steps": 2, "weight_decay": 0.1})
    assert plan.changes == {"steps": (1, 2), "weight_decay": (5e-4, 0.1)}
    assert plan.settings.learning_rate == 3e-4
    assert plan.config.N == SMALL["N"]
    train(cache, tmp_path / "run", plan)
    group = torch.load(tmp_path / "run" / "last.pt", weights_only=False)["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == 0.1
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["training"]["steps"] == 2


def test_a_run_with_another_network_is_refused(cache: Path, tmp_path: Path) -> None:
    go(cache, tmp_path / "run", steps=1)
    with pytest.raises(ConfigError, match="N=8"):
        plan_run(tmp_path / "run", {"N": 16})
    with pytest.raises(TrainingError, match="holds a run already"):
        plan_run(tmp_path / "run", {}, GOLDEN / "original_checkpoint.pt")
    assert plan_run(tmp_path / "run", {"dropout": 0.1}).config.dropout == 0.1


def test_an_ended_run_stays_as_it_is(cache: Path, tmp_path: Path) -> None:
    go(cache, tmp_path / "run", steps=2)
    before = content(tmp_path / "run" / "last.pt")
    assert go(cache, tmp_path / "run") is None
    assert same(before, content(tmp_path / "run" / "last.pt"))


def test_a_time_budget_ends_the_run_and_the_learning_rate(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(step=0.05)  # the clock at each look
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    go(cache, tmp_path / "run", minutes=0.02, log_every=1)
    entries = read_journal(tmp_path / "run")
    rates = [entry["learning_rate"] for entry in entries]
    assert len(rates) > 2
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 1e-4 > rates[-1]
    assert entries[-1]["elapsed"] >= 1.2


def test_at_a_restart_of_the_schedule_the_step_is_skipped(cache: Path, tmp_path: Path) -> None:
    for steps in (2, 3):
        go(cache, tmp_path / str(steps), steps=steps, sgdr_period=3)
    before, after = (content(tmp_path / str(steps) / "last.pt") for steps in (2, 3))
    assert same(before["state_dict"], after["state_dict"])
    assert after["steps"] == 3
    assert after["optimizer"]["state"][0]["step"] == 2


def test_data_and_processes_that_do_not_fit_are_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingDataError, match="to validate on"):
        go(write_cache(tmp_path / "cache", seconds=0.5, valid=0), tmp_path / "run", steps=1, validate_every=1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="4 items cannot be divided among 3"):
        go(cache, tmp_path / "run", steps=1)


def test_tensorboard_shows_what_the_log_holds(cache: Path, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plan = plan_run(tmp_path / "run", {**SMALL, "steps": 2, "validate_every": 2, "log_every": 1})
    train(cache, tmp_path / "run", plan, tensorboard=True)
    board = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    losses = [entry["loss"] for entry in read_journal(tmp_path / "run") if entry["kind"] == "train"]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert {"valid/sdr/vocals", "train/si_sdr/stage1/bass", "train/learning_rate"} <= set(board.Tags()["scalars"])
