"""Real runs on a Ray that is started here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from metatasnet_fast._terminal import handling
from metatasnet_fast.catalogue import Event, Failure, Notice, Settings, Song, SongEnded, Status, WorkerLoad
from metatasnet_fast.catalogue.cores import available_cores
from metatasnet_fast.catalogue.destination import Destination
from metatasnet_fast.errors import ConfigError, MetaTasNetError

from .conftest import settings, songs_of, write_song
from .watching import descendants, wait_until_gone

pytest.importorskip("ray")
from metatasnet_fast.catalogue import ray_engine  # noqa: E402
from metatasnet_fast.catalogue.ray_engine import FOLDER_PREFIX, run_ray  # noqa: E402

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are watched by /proc")


@pytest.fixture
def own_tmp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = descendants(os.getpid())
    yield
    assert list(Path("/tmp").glob(f"{FOLDER_PREFIX}{os.getpid()}-*")) == [], "Ray's files are left"
    assert wait_until_gone(descendants(os.getpid()) - before) == set(), "processes are left"


def test_a_worker_on_all_cpus_does_every_song_quietly_and_leaves_nothing(
    model: Path, tmp_path: Path, own_tmp: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Actors that hold all CPUs leave none for a reader: there must be none, or the run would wait forever."""
    songs = songs_of(*(write_song(tmp_path / f"{i}.wav", 0.3, seed=i) for i in range(6)))
    songs.append(Song("missing", str(tmp_path / "missing.wav")))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers

    options = settings(model, threads=available_cores())
    ended = run_ray(songs, options, str(tmp_path / "out"), listen, price_per_hour=3.0)
    assert ended.complete and ended.exit_code == 3 and ended.failures == {"not_found": 1}
    assert ended.progress.done == 6 and ended.progress.in_flight == 0 and ended.cost_per_1000_songs is not None
    rows = {row.id: row for row in Destination(str(tmp_path / "out")).ledger(ended.run)}
    assert {id for id, row in rows.items() if row.status is Status.done} == {song.id for song in songs[:6]}
    assert rows["missing"].failure is Failure.not_found
    assert len([event for event in events if isinstance(event, SongEnded)]) == 7
    assert any(isinstance(event, Notice) and "1 worker with" in event.text for event in events)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert list(own_tmp.iterdir()) == []
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


def test_what_a_killed_driver_left_of_ray_is_removed(own_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "LONGEST_FOLDER", 200)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for owner in (dead.pid, os.getpid()):
        (own_tmp / f"{FOLDER_PREFIX}{owner}-abc").mkdir()
    fresh = Path(ray_engine._short_folder())
    assert set(own_tmp.iterdir()) == {fresh, own_tmp / f"{FOLDER_PREFIX}{os.getpid()}-abc"}


def test_a_ray_that_does_not_come_up_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConfigError, match="Ray cannot be started on this machine .The current node timed out"):
        run_ray([], Settings(model="none"), str(tmp_path / "out"))


def test_ctrl_c_is_heard_while_ray_starts_and_left_by_what_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, masks = threading.Event(), []

    def init(**options: object) -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, set()))
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.wait(20), "nothing was heard before Ray had started"
        raise Exception("that is all.")

    monkeypatch.setattr("ray.init", init)
    with handling({signal.SIGINT: lambda number, frame: heard.set()}), pytest.raises(ConfigError, match="that is all"):
        run_ray([], Settings(model="none"), str(tmp_path / "out"))
    assert signal.SIGINT in masks[0], "Ray's processes would end at once"


@pytest.mark.parametrize("unsent", [False, True], ids=["refused", "none to send"])
def test_a_cluster_that_asks_for_a_token_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsent: bool
) -> None:
    import ray

    def init(**options: object) -> None:
        refused = ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken")
        if unsent:
            raise refused
        lines = f"Last connection error: Traceback:\n {type(refused).__name__}: {refused}"
        raise ConnectionError("Failed to connect to Ray cluster") from RuntimeError(lines)

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConfigError, match="at auto asks for its token: set RAY_AUTH_MODE=token"):
        run_ray([], Settings(model="none"), str(tmp_path / "out"), address="auto")


@pytest.mark.slow
def test_more_workers_than_fit_are_refused_before_anything_is_done(model: Path, tmp_path: Path) -> None:
    songs = songs_of(write_song(tmp_path / "a.wav", 0.3))
    with pytest.raises(ConfigError, match="do not fit into the Ray cluster"):
        run_ray(songs, settings(model), str(tmp_path / "out"), workers=available_cores() + 1)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    songs = songs_of(write_song(tmp_path / "a.wav", 0.3))
    with pytest.raises(MetaTasNetError) as raised:
        run_ray(songs, settings(tmp_path / "nowhere"), str(tmp_path / "out"))
    assert "nowhere" in str(raised.value) and "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


@pytest.mark.slow
def test_a_run_that_is_stopped_says_what_remains(model: Path, tmp_path: Path) -> None:
    songs = songs_of(*(write_song(tmp_path / f"{i}.wav", 2.0, seed=i) for i in range(120)))
    stop = threading.Event()

    loads: list[Event] = []

    def stop_soon(event: Event) -> None:
        if isinstance(event, SongEnded):
            stop.set()
        if isinstance(event, WorkerLoad):
            loads.append(event)

    ended = run_ray(songs, settings(model), str(tmp_path / "out"), stop_soon, stop)
    assert not ended.complete and ended.exit_code == 3
    assert 1 <= ended.progress.done < 120 and ended.remaining == 120 - ended.progress.done
    again = run_ray(songs, settings(model), str(tmp_path / "out"))
    assert loads, "what the workers did is part of the report"
    assert again.complete and again.progress.done + again.progress.skipped == 120


@pytest.mark.slow
def test_an_address_where_nobody_answers_is_one_sentence(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metatasnet_fast", "catalogue", "run", str(write_song(tmp_path / "a.wav", 0.3))]
    command += ["--out", str(tmp_path / "out"), "--model", str(model), "--engine", "ray", "--address", "127.0.0.1:1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("metatasnet-fast: error: No Ray cluster can be joined at 127.0.0.1:1")
    assert len(found.stderr.splitlines()) == 1
