"""A codec that crashes its process takes down one song."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from metatasnet_fast.catalogue import Failure, Notice, Outcome, Song, SongEnded, SongStarted, Status, supervised
from metatasnet_fast.catalogue.supervised import ChildProcess, Gone, Order, Ready, SupervisedWorker, WorkerLostError
from metatasnet_fast.errors import MetaTasNetError

from .conftest import settings, songs_of, write_song

POISONED = """
import os, signal, sys
from metatasnet_fast.catalogue import pipeline, worker
before = pipeline.open_audio
def open_audio(path, **how):
    if "poison" in str(path):
        os.kill(os.getpid(), signal.{signal})
    return before(path, **how)
pipeline.open_audio = open_audio
sys.exit(worker.main())
"""


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding a file called ``poison`` ends the process as a fault in a codec would."""
    monkeypatch.setattr(supervised, "COMMAND", [sys.executable, "-c", POISONED.format(signal="SIGSEGV")])


def by_id(outcomes: list[Outcome]) -> dict[str, Outcome]:
    assert len({outcome.id for outcome in outcomes}) == len(outcomes), "a song has two outcomes"
    return {outcome.id: outcome for outcome in outcomes}


@pytest.mark.usefixtures("poisoned")
def test_a_codec_that_crashes_takes_down_one_song(model: Path, tmp_path: Path) -> None:
    songs = [write_song(tmp_path / f"{name}.wav", 0.3, seed=i) for i, name in enumerate(["a", "poison", "b", "c"])]
    events: list[object] = []
    with SupervisedWorker(Order(settings(model), str(tmp_path / "out")), events.append) as worker:
        found = by_id(list(worker.process(songs_of(*songs))))
    assert found.pop("poison").failure is Failure.decode
    assert {outcome.status for outcome in found.values()} == {Status.done} and len(found) == 3
    assert any(isinstance(event, Notice) and "SIGSEGV" in event.text for event in events)
    ended = [event for event in events if isinstance(event, SongEnded)]
    assert len(ended) == 4


def test_a_worker_that_is_killed_goes_on(model: Path, tmp_path: Path) -> None:
    songs = [write_song(tmp_path / f"{i}.wav", 0.3, seed=i) for i in range(6)]
    killed: list[int] = []

    def kill_once(event: object) -> None:
        if isinstance(event, SongEnded) and not killed and isinstance(worker.child, ChildProcess):
            killed.append(worker.child.pid)
            os.kill(worker.child.pid, signal.SIGKILL)

    with SupervisedWorker(Order(settings(model), str(tmp_path / "out")), kill_once) as worker:
        found = by_id(list(worker.process(songs_of(*songs))))
    assert len(found) == 6 and killed
    assert {outcome.status for outcome in found.values()} <= {Status.done, Status.skipped}
    assert not Path(f"/proc/{killed[0]}").exists()


def test_when_stopped_songs_in_flight_are_finished(model: Path, tmp_path: Path) -> None:
    songs = [write_song(tmp_path / f"{i:02}.wav", 0.3, seed=i) for i in range(30)]
    stop = threading.Event()
    begun: set[str] = set()

    def listen(event: object) -> None:
        if isinstance(event, SongStarted):
            begun.add(event.id)
        if isinstance(event, SongEnded):
            stop.set()

    with SupervisedWorker(Order(settings(model), str(tmp_path / "out")), listen, stop) as worker:
        found = by_id(list(worker.process(songs_of(*songs))))
    assert set(found) == begun and 0 < len(found) < 30
    assert {outcome.status for outcome in found.values()} == {Status.done}


def test_songs_in_flight_are_given_up_when_the_grace_is_over(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = POISONED.replace("os.kill(os.getpid(), signal.{signal})", "__import__('time').sleep(600)")
    monkeypatch.setattr(supervised, "COMMAND", [sys.executable, "-c", asleep])
    stop = threading.Event()
    said: list[object] = []

    def listen(event: object) -> None:
        said.append(event)
        if isinstance(event, SongStarted):
            stop.set()

    songs = songs_of(write_song(tmp_path / "poison.wav", 0.2))
    with SupervisedWorker(Order(settings(model), str(tmp_path / "out")), listen, stop, grace=0.3) as worker:
        assert isinstance(worker.child, ChildProcess)
        pid = worker.child.pid
        assert list(worker.process(songs)) == []
    assert any(isinstance(event, Notice) and "given up" in event.text for event in said)
    assert not Path(f"/proc/{pid}").exists()


def test_what_a_codec_prints_goes_to_the_log(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noisy = POISONED.replace("os.kill(os.getpid(), signal.{signal})", "print('odd frame', flush=True)")
    monkeypatch.setattr(supervised, "COMMAND", [sys.executable, "-c", noisy])
    songs = songs_of(write_song(tmp_path / "poison.wav", 0.2))
    with caplog.at_level("DEBUG"), SupervisedWorker(Order(settings(model), str(tmp_path / "out"))) as worker:
        assert [outcome.status for outcome in worker.process(songs)] == [Status.done]
    assert any(record.getMessage().endswith(": odd frame") for record in caplog.records)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MetaTasNetError, match="nowhere"):
        SupervisedWorker(Order(settings(tmp_path / "nowhere"), str(tmp_path / "out")))


def test_a_process_that_cannot_live_is_given_up(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "COMMAND", [sys.executable, "-c", "raise SystemExit('no driver')"])
    with pytest.raises(WorkerLostError, match="no driver"):
        SupervisedWorker(Order(settings(model), str(tmp_path / "out")))


LOST = """
import sys
from metatasnet_fast.catalogue import worker
from metatasnet_fast.errors import BackendUnavailableError
def run(*args):
    raise BackendUnavailableError("The device takes no further work.")
worker.Worker.run = run
sys.exit(worker.main())
"""


def test_the_reason_for_which_a_device_was_lost_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "COMMAND", [sys.executable, "-c", LOST])
    song = songs_of(write_song(tmp_path / "a.wav", 0.2))
    with SupervisedWorker(Order(settings(model), str(tmp_path / "out"))) as worker:
        [outcome] = worker.process(song)
    assert outcome.failure is Failure.unknown
    assert "(exit code 1: The device takes no further work.)" in str(outcome.error)


class LosingMachine:
    """A process whose machine is lost each time that it has begun a song."""

    made = 0

    def __init__(self, order: object) -> None:
        LosingMachine.made += 1
        self._messages: list[object] = [Ready(2, "key")]

    def send(self, message: object) -> None:
        if isinstance(message, Song):
            self._messages += [SongStarted(message.id, message.uri), self._end(message)]

    def _end(self, song: Song) -> object:
        if LosingMachine.made < 6:
            return Gone("the node is gone", machine_lost=True)
        return SongEnded(Outcome(song.id, song.uri, Status.done, "key"))

    def receive(self, seconds: float) -> object:
        return self._messages.pop(0) if self._messages else None

    def kill(self) -> None:
        pass


def test_a_song_that_is_named_again_is_done_once(model: Path, tmp_path: Path) -> None:
    song = songs_of(write_song(tmp_path / "a.wav", 0.3))
    with SupervisedWorker(Order(settings(model), str(tmp_path / "out"))) as worker:
        found = [outcome.status for outcome in worker.process(song * 3)]
    assert sorted(status.value for status in found) == ["done", "skipped", "skipped"]


def test_songs_are_not_blamed_for_a_machine_that_is_lost(tmp_path: Path) -> None:
    songs = [Song(str(i), f"{i}.wav") for i in range(5)]
    worker = SupervisedWorker(Order(settings(tmp_path), str(tmp_path / "out")), start=LosingMachine)
    assert {id for id, row in by_id(list(worker.process(songs))).items() if row.status is Status.done} == set("01234")


class DyingProcess:
    """A process that has ended, the first one with a song that it had begun; the fourth stays alive."""

    made = 0

    def __init__(self, order: object) -> None:
        DyingProcess.made += 1
        self._messages: list[object] = [Ready(1, "key")] if DyingProcess.made in (1, 4) else [Gone("exit code 1")]

    def send(self, message: object) -> None:
        if isinstance(message, Song):
            last = SongEnded(Outcome(message.id, message.uri, Status.done, "key"))
            self._messages += [
                SongStarted(message.id, message.uri),
                last if DyingProcess.made == 4 else Gone("SIGKILL"),
            ]

    def receive(self, seconds: float) -> object:
        return self._messages.pop(0) if self._messages else None

    def kill(self) -> None:
        pass


def test_an_end_with_a_song_is_no_failed_start(tmp_path: Path) -> None:
    worker = SupervisedWorker(Order(settings(tmp_path), str(tmp_path / "out")), start=DyingProcess)
    (done,) = worker.process([Song("a", "a.wav")])
    assert done.status is Status.done and DyingProcess.made == 4
