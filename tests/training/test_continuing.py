"""Which run goes on, from what, and with which of its scores and clocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast.errors import CheckpointError, TrainingError
from metatasnet_fast.model.checkpoints import read_original
from metatasnet_fast.training.journal import read_journal
from metatasnet_fast.training.launch import plan_run, train
from tests.training.songs import SMALL, write_cache
from tests.training.test_runs import Watcher, go


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("songs") / "cache", seconds=1.0)


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that was validated; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    go(cache, out, steps=2, validate_every=2)
    return out


def progress(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=False)["metatasnet_fast"]["progress"]
    return found


def test_the_same_command_with_a_checkpoint_goes_on(cache: Path, run: Path, tmp_path: Path) -> None:
    again = {"checkpoint": run / "best.pt", "threads": 1, "batch_size": 4}
    for steps in (3, 4, 5):  # also after it has gone on once
        assert go(cache, tmp_path / "run", steps=steps, **again) is None
        assert read_original(tmp_path / "run" / "last.pt").steps == steps
    with pytest.raises(TrainingError, match="holds a run already"):
        plan_run(tmp_path / "run", {}, run / "last.pt")


def test_a_new_run_from_a_checkpoint_has_its_own_scores_and_clock(cache: Path, run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "best.pt", weights_only=False)
    content["metatasnet_fast"]["progress"].update(best=1000.0, elapsed=1e6)
    torch.save(content, tmp_path / "good.pt")
    given = {**SMALL, "validate_every": 3, "minutes": 1.0, "steps": 3}
    network = {"N", "B", "H", "layers", "stack", "num_mels", "stages_num"}
    plan = plan_run(tmp_path / "run", {k: v for k, v in given.items() if k not in network}, tmp_path / "good.pt")
    assert "steps" not in plan.changes and "validate_every" not in plan.changes
    train(cache, tmp_path / "run", plan)
    found = progress(tmp_path / "run" / "best.pt")
    assert found["step"] == 3 and found["best"] < 1000 and found["elapsed"] < 1e5
    before, after = (torch.load(path, weights_only=False) for path in (run / "best.pt", tmp_path / "run" / "last.pt"))
    assert after["optimizer"]["state"][0]["step"] == before["optimizer"]["state"][0]["step"] + 1


def test_a_run_without_a_step_to_take_says_so(cache: Path, run: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    assert go(cache, run, watcher) is None
    assert any("nothing to do: step 2 of 2" in note for note in watcher.notes)
    go(cache, tmp_path / "run", watcher := Watcher(), minutes=0.01)
    assert not any("nothing to do" in note for note in watcher.notes)
    go(cache, tmp_path / "run", watcher := Watcher())
    assert any("nothing to do: 0.0 of 0.01 minutes" in note for note in watcher.notes)


def test_scores_of_two_rules_are_not_compared(cache: Path, tmp_path: Path) -> None:
    go(cache, tmp_path / "run", steps=1, validate_every=1)
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=False)
    content["metatasnet_fast"]["progress"].update(best=1000.0, best_step=1, rule="all")
    torch.save(content, tmp_path / "run" / "last.pt")
    go(cache, tmp_path / "run", watcher := Watcher(), steps=2, best="original")
    assert any("judged by all: it begins again with original" in note for note in watcher.notes)
    found = progress(tmp_path / "run" / "best.pt")
    assert found["step"] == found["best_step"] == 2 and found["best"] < 1000 and found["rule"] == "original"


def test_another_cache_is_said_to_be_a_change(
    cache: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan_run(run, {}, cache=tmp_path / "other").changes == {"cache": (str(cache), str(tmp_path / "other"))}
    monkeypatch.chdir(cache.parent)
    assert plan_run(run, {}, cache="cache").changes == {}


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_damaged_state_names_what_is_left(cache: Path, tmp_path: Path, keep: int) -> None:
    go(cache, tmp_path / "run", steps=1)
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"last.pt is damaged: move .*last.pt away to start again"):
        plan_run(tmp_path / "run", {})
    (tmp_path / "run" / "best.pt").touch()
    advice = r"with --checkpoint .*best.pt and a new --out, or move .*last.pt and best.pt away to start again"
    with pytest.raises(CheckpointError, match=advice):
        plan_run(tmp_path / "run", {})


@pytest.mark.parametrize("checkpoint", [None, "last.pt"])
def test_a_run_that_has_lost_its_state_keeps_its_best_and_its_log(
    cache: Path, run: Path, tmp_path: Path, checkpoint: str | None
) -> None:
    for name in ("best.pt", "log.jsonl", "settings.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    given = SMALL if checkpoint is None else {}
    origin = None if checkpoint is None else run / checkpoint
    with pytest.raises(TrainingError, match=r"no last.pt to go on from: .* --checkpoint .*best.pt and a new --out, or"):
        plan_run(tmp_path, given, origin)
    assert (tmp_path / "best.pt").read_bytes() == (run / "best.pt").read_bytes()
    (tmp_path / "best.pt").unlink()
    assert not plan_run(tmp_path, given, origin).resumed


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"network": {"N": "many"}, "training": {"seed": 1}}'])
def test_a_run_without_its_settings_says_how_to_go_on(cache: Path, run: Path, tmp_path: Path, text: str | None) -> None:
    (tmp_path / "last.pt").write_bytes((run / "last.pt").read_bytes())
    if text is not None:
        (tmp_path / "settings.json").write_text(text)
    with pytest.raises(TrainingError, match=r"settings.json is missing or damaged: start another run"):
        plan_run(tmp_path, {})


def test_the_folder_tells_what_it_was_started_from(cache: Path, run: Path, tmp_path: Path) -> None:
    go(cache, tmp_path / "run", checkpoint=run / "best.pt", steps=3, threads=1, batch_size=4, validate_every=0)
    go(cache, tmp_path / "run", steps=4)
    about = json.loads((tmp_path / "run" / "settings.json").read_text())["run"]
    assert about["checkpoint"] == str(run / "best.pt") and about["cache"] == str(cache)
    assert all(entry["step"] > 2 for entry in read_journal(tmp_path / "run"))
