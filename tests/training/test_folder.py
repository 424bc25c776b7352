"""A run's folder belongs to one run at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metatasnet_fast.errors import CheckpointError, TrainingError
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.model.checkpoints import Checkpoint, read_original, write_original
from metatasnet_fast.training.launch import claim, plan_run, train
from metatasnet_fast.training.settings import TrainingSettings
from tests.support import TINY
from tests.training.songs import SMALL, write_cache
from tests.training.test_runs import Watcher

fcntl = pytest.importorskip("fcntl")


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    cache, out, errors = write_cache(tmp_path / "cache", seconds=1.0), tmp_path / "run", list[str]()

    def another(step: int) -> None:
        before = (out / "settings.json").read_text()
        with pytest.raises(TrainingError) as raised:
            train(cache, out, plan_run(out, {**SMALL, "steps": 9}))
        errors.append(str(raised.value))
        assert (out / "settings.json").read_text() == before

    train(cache, out, plan_run(out, {**SMALL, "steps": 1}), display=Watcher(another))
    assert len(errors) == 1 and "Another process is training in" in errors[0]
    assert train(cache, out, plan_run(out, {"steps": 2})) is None


@pytest.mark.parametrize("before", [0, 1])
def test_a_run_that_went_on_after_it_was_looked_at_is_not_trained_from_the_older_state(
    tmp_path: Path, before: int
) -> None:
    cache, out = write_cache(tmp_path / "cache", seconds=1.0), tmp_path / "run"
    if before:
        train(cache, out, plan_run(out, {**SMALL, "steps": before}))
    plan = plan_run(out, {**SMALL, "steps": 9})
    train(cache, out, plan_run(out, {**SMALL, "steps": before + 1}))
    settings = (out / "settings.json").read_text()
    with pytest.raises(TrainingError, match=r"last.pt was written .* give the same command again"):
        train(cache, out, plan)
    assert (out / "settings.json").read_text() == settings
    assert read_original(out / "last.pt").steps == before + 1


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".best.pt.123.part", ".last.pt.4567.part", ".log.jsonl.part", "mine.part", "best.pt"):
        (tmp_path / name).write_bytes(b"half")
    with claim(tmp_path, print):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "best.pt", "mine.part"]


def test_a_file_system_without_locks_is_said_and_keeps_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".best.pt.123.part").touch()
    notes: list[str] = []
    with claim(tmp_path, notes.append):
        assert (tmp_path / ".best.pt.123.part").exists()
    assert len(notes) == 1 and "cannot be locked" in notes[0]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="choose another folder"), claim(tmp_path / "file" / "run", print):
        pass


def checkpoint() -> Checkpoint:
    return Checkpoint(MultiTasNet(TINY).state_dict(), TrainingSettings().to_namespace(TINY, "cache", "run"))


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def sync(handle: int) -> None:
        if not (tmp_path / "last.pt").exists():  # the folder is flushed after that
            synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    write_original(checkpoint(), tmp_path / "last.pt")
    assert synced == [(tmp_path / "last.pt").stat().st_size]


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    write_original(checkpoint(), path)
    before, real = path.read_bytes(), Path.open
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs a device that is always full")
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r": real(full, "wb") if self.suffix == ".part" else real(self, mode)
    )
    with pytest.raises(CheckpointError, match="no space left on the disk"):
        write_original(checkpoint(), path)
    assert path.read_bytes() == before and read_original(path).config == TINY
