"""Folders built alike give their songs the same ids; at one destination none takes another's place unasked."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metatasnet_fast.catalogue import Failure, Outcome, Status
from metatasnet_fast.catalogue.destination import Destination, LedgerWriter
from metatasnet_fast.catalogue.inputs import read_manifest
from metatasnet_fast.catalogue.survey import Finding, survey, verify
from metatasnet_fast.catalogue.worker import Worker

from .conftest import settings, write_song
from .stand_ins import SleepingDevice

NAME = "01 Intro.wav"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def first(tmp_path: Path, out: Path, small_windows: object) -> Path:
    """An album whose only song is done."""
    folder = album(tmp_path / "first", seed=1)
    assert run(folder, out).status is Status.done
    return folder


def album(folder: Path, seed: int, seconds: float = 0.3) -> Path:
    write_song(folder / NAME, seconds, seed=seed)
    return folder


def run(folder: Path, out: Path, **more: Any) -> Outcome:
    with Worker(settings(Path("no model"), **more), str(out), engine=SleepingDevice()) as worker:
        [outcome] = worker.process(read_manifest(str(folder)))
    return outcome


def stored(out: Path) -> list[str]:
    """Where the songs came from whose stems are whole."""
    checked = list(verify(Destination(str(out))))
    assert not any(isinstance(found, Finding) for found in checked)
    return [found.uri for found in checked if not isinstance(found, Finding)]


@pytest.mark.parametrize("change", [{}, {"format": "wav"}])
def test_a_second_folder_does_not_replace_the_first_ones_stems(
    first: Path, tmp_path: Path, out: Path, change: dict[str, Any]
) -> None:
    second = album(tmp_path / "second", seed=2)
    outcome = run(second, out, **change)
    assert outcome.status is Status.failed and stored(out) == [str(first / NAME)]
    assert outcome.failure is Failure.taken and outcome.attempts == 1
    assert str(first / NAME) in str(outcome.error) and "another DEST" in str(outcome.hint)
    assert run(first, out).status is Status.skipped


def test_a_song_that_found_its_id_taken_counts_as_failed(first: Path, tmp_path: Path, out: Path) -> None:
    destination = Destination(str(out))
    for folder, failed in ((album(tmp_path / "second", seed=2), {"taken": 1}), (first, {})):
        with closing(LedgerWriter(destination, "run")) as ledger:
            ledger.add(run(folder, out))
        found = survey(destination)
        assert (found.done, found.failed) == (1, failed)


def test_overwriting_puts_a_song_in_anothers_place(first: Path, tmp_path: Path, out: Path) -> None:
    second = album(tmp_path / "second", seed=2)
    assert run(second, out, overwrite=True).status is Status.done
    assert stored(out) == [str(second / NAME)]


def test_a_folder_that_moved_keeps_its_songs(first: Path, tmp_path: Path, out: Path) -> None:
    moved = first.rename(tmp_path / "moved")
    assert run(moved, out).status is Status.skipped
    assert run(moved, out, format="wav").status is Status.done


def test_a_song_that_changed_is_the_same_by_way_of_a_link(first: Path, tmp_path: Path, out: Path) -> None:
    album(first, seed=3)
    (tmp_path / "link").symlink_to(first)
    assert run(tmp_path / "link", out).status is Status.done
    assert stored(out) == [str(tmp_path / "link" / NAME)]
