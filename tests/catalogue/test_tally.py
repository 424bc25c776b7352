"""What the events of workers add up to."""

from __future__ import annotations

import pytest

from metatasnet_fast.catalogue import Failure, Outcome, SongEnded, SongStarted, Status, WorkerLoad
from metatasnet_fast.catalogue import events as module
from metatasnet_fast.catalogue.events import StageLoad, Tally


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def ended(id: str, status: Status = Status.done, seconds: float = 10.0, worker: int = 0) -> SongEnded:
    failure = Failure.decode if status is Status.failed else None
    return SongEnded(Outcome(id, id, status, "key", failure, duration=seconds, bytes_in=5, bytes_out=7), worker)


def load(worker: int, wall: float, busy: float, peak: int = 1) -> WorkerLoad:
    stages = {name: StageLoad(2, 3, wall) for name in ("read", "separate", "write")}
    return WorkerLoad(worker, wall, {**stages, "device": StageLoad(1, 6, busy)}, 8, 2, wall / 2, peak)


def test_songs_are_counted_by_what_became_of_them(clock: list[float]) -> None:
    tally = Tally(5)
    for event in (SongStarted("a", "a"), SongStarted("b", "b"), ended("a"), ended("c", Status.skipped)):
        tally(event)
    tally(ended("d", Status.failed, 0.0))
    clock[0] += 20
    progress = tally.progress()
    assert (progress.done, progress.skipped, progress.failed, progress.in_flight) == (1, 1, 1, 1)
    assert (progress.audio_seconds, progress.bytes_in, progress.bytes_out) == (10, 5, 7)
    assert progress.real_time_factor == 0.5
    assert progress.eta_seconds == 2 * 20 / 2


def test_the_rest_is_foretold_by_hours_of_audio_if_they_are_known(clock: list[float]) -> None:
    tally = Tally(3, expected_seconds=100)
    tally(ended("a", seconds=40))
    clock[0] += 8
    assert tally.progress().eta_seconds == pytest.approx(60 * 8 / 40)
    assert Tally(3).progress().eta_seconds is None
    assert Tally(0).progress().eta_seconds == 0


def test_workers_add_up_and_one_that_is_started_anew_counts_on() -> None:
    tally = Tally(9)
    for event in (load(0, 10, 8, 5), load(1, 10, 4, 3), load(0, 12, 10, 6), load(0, 1, 1, 2), load(0, 4, 2, 2)):
        tally(event)
    progress = tally.progress()
    assert progress.stage_seconds == {"read": 26, "separate": 26, "write": 26, "device": 16}
    assert progress.device_busy_share == pytest.approx(16 / 26)
    assert progress.stage_busy_share["read"] == pytest.approx(0.5)
    assert progress.peak_memory == 9 and progress.cpu_seconds == 13
    assert progress.queues == {"read": 6, "device": 12, "write": 6}


@pytest.mark.parametrize(("statuses", "code"), [(["done", "skipped"], 0), (["done", "failed"], 3), (["done"], 3)])
def test_only_a_run_without_failures_and_rest_ends_well(statuses: list[str], code: int, clock: list[float]) -> None:
    tally = Tally(2)
    for index, status in enumerate(statuses):
        tally(ended(str(index), Status(status)))
    clock[0] += 1800
    end = tally.finish("run", price_per_hour=4.0)
    assert end.exit_code == code and end.remaining == 2 - len(statuses)
    assert (end.cost, end.cost_per_1000_songs) == (2.0, 2000.0)
    assert end.to_json()["exit_code"] == code
    assert tally.finish("run", None).cost is None
