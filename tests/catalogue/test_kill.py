"""Processes killed at random moments, full disks, refused writes: afterwards the same command makes what it would have made."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metatasnet_fast.catalogue import Failure, Status
from metatasnet_fast.catalogue.destination import Destination
from metatasnet_fast.catalogue.inputs import read_manifest
from metatasnet_fast.catalogue.local import run_local
from metatasnet_fast.catalogue.storage import LocalStorage
from metatasnet_fast.catalogue.worker import Worker

from .checking import assert_every_song_once, assert_rows_are_right, assert_same_results
from .conftest import settings, songs_of, write_song
from .corpus import Corpus, make_corpus
from .watching import command_line, descendants, wait_until_gone

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are watched by /proc")

WORKER = "catalogue.worker"
ACTOR = "ray::"
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Of Ray's own; they hold nothing of ours."""

MOST_SECONDS = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("kill") / "music", songs=20, longest=12.0, broken=5, flawed=2)


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the result of a run without a disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    manifest = corpus.write_manifest(folder / "songs.jsonl")
    run_local(read_manifest(str(manifest)), settings(model), str(folder / "out"))
    return folder / "out"


class Run:
    """The command line in a process of its own."""

    def __init__(self, corpus: Corpus, model: Path, destination: Path, engine: str) -> None:
        manifest = corpus.write_manifest(destination.with_suffix(".jsonl"))
        command = [
            sys.executable,
            "-m",
            "metatasnet_fast",
            "catalogue",
            "run",
            str(manifest),
            "--out",
            str(destination),
        ]
        command += ["--model", str(model), "--device", "cpu", "--threads", "2", "--attempts", "2", "--json"]
        self.process = subprocess.Popen(
            [*command, "--engine", engine],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            start_new_session=True,
        )
        self.family: set[int] = set()
        """All processes that it was ever seen to have."""
        self.outcomes = 0
        self.errors = ""
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # A driver that is killed may leave half a line.
            with contextlib.suppress(ValueError):
                self.outcomes += json.loads(line)["event"] == "song_ended"

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def find(self, which: str) -> list[int]:
        """Its processes whose command line holds a text."""
        alive = descendants(self.process.pid)
        self.family |= alive
        return [pid for pid in alive if which in command_line(pid)]

    def wait_for_outcomes(self, count: int) -> bool:
        """Until so many songs have ended; false if the run has, too."""
        deadline = time.monotonic() + MOST_SECONDS
        while self.outcomes < count:
            assert time.monotonic() < deadline, "the run hangs"
            if self.process.poll() is not None:
                return False
            self.find("")
            time.sleep(0.02)
        return True

    def end(self) -> int:
        """Wait for the end of the run, and of all its processes."""
        try:
            code = self.process.wait(MOST_SECONDS)
        finally:
            self.process.kill()
            for reader in self._readers:
                reader.join()
        agents = {pid for pid in self.family if command_line(pid).startswith(RAYS_AGENTS)}
        assert wait_until_gone(self.family - agents) == set(), "processes are left"
        # They look for a killed driver's cluster for a minute, and end then.
        assert wait_until_gone(agents, 120.0) == set(), "agents of Ray are left"
        return code


def final_run(corpus: Corpus, model: Path, out: Path, undisturbed: Path) -> None:
    """The same command once more: everything is there, as if nothing had happened."""
    ended = run_local(read_manifest(str(corpus.write_manifest(out.with_suffix(".jsonl")))), settings(model), str(out))
    assert ended.complete and set(ended.failures) == set(_expected_failures(corpus))
    assert_every_song_once(corpus, out)
    assert_same_results(out, undisturbed)
    assert_rows_are_right(corpus, Destination(str(out)).ledger(), once=False)


def _expected_failures(corpus: Corpus) -> set[str]:
    return {entry.expected for entry in corpus.broken}


def kill_worker(run: Run, moments: random.Random) -> bool:
    """Kill the worker's process a moment after some song; false if the run was over before."""
    if not run.wait_for_outcomes(run.outcomes + moments.randint(1, 4)):
        return False
    time.sleep(moments.uniform(0, 0.3))
    for pid in run.find(WORKER):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return True


def kill_driver(run: Run, moments: random.Random) -> None:
    """Kill the process that the user sees, early or late."""
    run.wait_for_outcomes(moments.randint(0, 12))
    time.sleep(moments.uniform(0, 0.5))
    run.find("")
    run.process.kill()


def kill_actor(run: Run, moments: random.Random) -> bool:
    if not run.wait_for_outcomes(run.outcomes + moments.randint(1, 6)):
        return False
    time.sleep(moments.uniform(0, 0.3))
    for pid in run.find(ACTOR):
        if "SeparateSongs" in command_line(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return True


def test_a_worker_and_a_driver_that_are_killed_lose_nothing(
    corpus: Corpus, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    moments, out = random.Random(0), tmp_path / "out"
    run = Run(corpus, model, out, "local")
    assert kill_worker(run, moments)
    run.wait_for_outcomes(run.outcomes + 2)
    kill_driver(run, moments)
    assert run.end() in (-signal.SIGKILL, 3), run.errors
    final_run(corpus, model, out, undisturbed)


@pytest.mark.slow
def test_a_worker_that_is_killed_eight_times_loses_nothing(
    corpus: Corpus, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    moments, done = random.Random(1), 0
    while done < 8:
        out = tmp_path / f"out{done}"
        run = Run(corpus, model, out, "local")
        while done < 8 and kill_worker(run, moments):
            done += 1
        assert run.end() == 3, run.errors
        final_run(corpus, model, out, undisturbed)


@pytest.mark.slow
def test_a_driver_that_is_killed_six_times_loses_nothing(
    corpus: Corpus, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    moments, out = random.Random(2), tmp_path / "out"
    for _ in range(6):
        run = Run(corpus, model, out, "local")
        kill_driver(run, moments)
        assert run.end() in (-signal.SIGKILL, 3), run.errors
    final_run(corpus, model, out, undisturbed)


@pytest.mark.slow
def test_a_ray_actor_that_is_killed_loses_nothing(
    corpus: Corpus, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    moments, done = random.Random(3), 0
    while done < 4:
        out = tmp_path / f"out{done}"
        run = Run(corpus, model, out, "ray")
        while done < 4 and kill_actor(run, moments):
            done += 1
        assert run.end() == 3, run.errors
        final_run(corpus, model, out, undisturbed)


@pytest.mark.slow
def test_a_ray_driver_that_is_killed_loses_nothing(
    corpus: Corpus, model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    moments, out = random.Random(4), tmp_path / "out"
    for _ in range(2):
        run = Run(corpus, model, out, "ray")
        kill_driver(run, moments)
        assert run.end() in (-signal.SIGKILL, 3), run.errors
    final_run(corpus, model, out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_ctrl_c_finishes_what_is_in_flight_and_says_what_remains(
    corpus: Corpus, model: Path, undisturbed: Path, tmp_path: Path, engine: str
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    out = tmp_path / "out"
    run = Run(corpus, model, out, engine)
    assert run.wait_for_outcomes(3)
    began = time.monotonic()
    # To all processes of the group, as a terminal does.
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end() == 3, run.errors
    assert time.monotonic() - began < 60
    assert "songs remain" in run.errors
    final_run(corpus, model, out, undisturbed)


class FullStorage(LocalStorage):
    """A disk that has room for so many songs."""

    def __init__(self, root: Path, room: int, number: int = errno.ENOSPC) -> None:
        super().__init__(root)
        self.room, self.number = room, number

    def publish(self, staged: Path, folder: str, last: str) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number), str(self.path / folder))
        super().publish(staged, folder, last)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_destination_that_refuses_is_a_write_failure_and_loses_nothing(
    model: Path, tmp_path: Path, number: int
) -> None:
    songs = songs_of(*(write_song(tmp_path / f"{i}.wav", 0.2, seed=i) for i in range(4)))
    out = Destination(str(tmp_path / "out"), FullStorage(tmp_path / "out", 2, number))
    with Worker(settings(model), out) as worker:
        first = list(worker.process(songs))
    assert sorted(row.status.value for row in first) == ["done", "done", "failed", "failed"]
    assert {row.failure for row in first if row.status is Status.failed} == {Failure.write}
    with Worker(settings(model), str(tmp_path / "out")) as worker:
        second = list(worker.process(songs))
    assert sorted(row.status.value for row in second) == ["done", "done", "skipped", "skipped"]


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of that size, for those who may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_and_is_emptied(corpus: Corpus, model: Path, undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 3):
        out = disk / "out"
        manifest = corpus.write_manifest(tmp_path / "songs.jsonl")
        ended = run_local(read_manifest(str(manifest)), settings(model), str(out))
        assert ended.failures.get("write", 0) > 0 and ended.exit_code == 3
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        final_run(corpus, model, out, undisturbed)
