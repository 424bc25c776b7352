"""Several runs at once on one destination: every song is done by one of them, and none waits for another while it has work."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from metatasnet_fast.catalogue import Outcome, Song, SongStarted, Status, supervised
from metatasnet_fast.catalogue.destination import Destination, claim, sweep
from metatasnet_fast.catalogue.outcome import Result
from metatasnet_fast.catalogue.storage import open_storage
from metatasnet_fast.catalogue.supervised import Order, SupervisedWorker
from metatasnet_fast.catalogue.survey import verify

from .conftest import settings, songs_of, write_song

MOST_SECONDS = 120.0


@contextlib.contextmanager
def another_run(destination: Path, songs: Sequence[Song]) -> Iterator[None]:
    """It has songs in hand, and never ends one."""
    destination.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        for song in songs:
            assert stack.enter_context(claim(open_storage(str(destination)), song.id))
        yield


@contextlib.contextmanager
def stopped_in_time() -> Iterator[threading.Event]:
    """Set after a while, so that a run that would wait forever ends with songs missing."""
    stop = threading.Event()
    timer = threading.Timer(MOST_SECONDS, stop.set)
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()


def test_what_another_run_has_in_hand_comes_last(model: Path, tmp_path: Path) -> None:
    songs = songs_of(*(write_song(tmp_path / f"{i:02}.wav", 0.3, seed=i) for i in range(12)))
    begun: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, SongStarted):
            begun.append(event.id)

    with (
        stopped_in_time() as stop,
        SupervisedWorker(Order(settings(model), str(tmp_path / "out")), listen, stop) as worker,
    ):
        taken = songs[:-3]
        assert len(taken) >= worker.capacity + 2, "they fill all of its places"
        outcomes = worker.process(songs)
        with another_run(tmp_path / "out", taken):
            free = list(itertools.islice(outcomes, 3))
            assert {outcome.id for outcome in free if outcome.status is Status.done} == {song.id for song in songs[-3:]}
            assert sorted(begun) == [song.id for song in songs[-3:]]
        rest = list(outcomes)
    assert [outcome.status for outcome in rest] == [Status.done] * len(taken)
    assert sorted(begun) == [song.id for song in songs], "each is begun when it is in hand, once"


def test_it_is_looked_at_again_before_the_end(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "DEFERRED_SECONDS", 0.1)
    taken = songs_of(write_song(tmp_path / "taken.wav", 0.3))
    path = write_song(tmp_path / "song.wav", 0.3, seed=1)
    found: list[Outcome] = []
    other = contextlib.ExitStack()

    def source() -> Iterator[Song]:
        yield taken[0]
        for number in range(200):
            if number == 10:
                assert found, "others are done meanwhile"
                other.close()
            if any(outcome.id == "taken" for outcome in found):
                return
            time.sleep(0.05)
            yield Song(f"{number}", str(path))
        raise AssertionError("the song was not looked at again")

    with (
        stopped_in_time() as stop,
        SupervisedWorker(Order(settings(model), str(tmp_path / "out")), stop=stop) as worker,
        other,
    ):
        other.enter_context(another_run(tmp_path / "out", taken))
        for outcome in worker.process(source()):
            found.append(outcome)
    assert next(outcome for outcome in found if outcome.id == "taken").status is Status.done


def test_a_folder_that_its_owner_takes_away_does_not_trouble_the_sweeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here-1-abc", "there-1-abc"):
        (tmp_path / name).mkdir()
    before = Path.is_dir

    def gone_then(path: Path) -> bool:
        found = before(path)
        path.rmdir()
        return found

    monkeypatch.setattr(Path, "is_dir", gone_then)
    sweep(tmp_path, "here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_runs_through_ray_share_the_songs(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    songs = songs_of(*(write_song(tmp_path / f"{i:02}.wav", 1.0, seed=i) for i in range(24)))
    out, manifest = tmp_path / "out", tmp_path / "songs.jsonl"
    manifest.write_text("".join(json.dumps({"id": song.id, "uri": song.uri}) + "\n" for song in songs))
    command = [sys.executable, "-m", "metatasnet_fast", "catalogue", "run", str(manifest), "--out", str(out)]
    command += ["--model", str(model), "--device", "cpu", "--threads", "1", "--json"]
    command += ["--engine", "ray", "--workers", "1"]
    ended: list[list[str]] = [[], []]

    def read(run: subprocess.Popen[str], found: list[str]) -> None:
        assert run.stdout is not None
        for line in run.stdout:
            event = json.loads(line)
            if event["event"] == "song_ended":
                found.append(event["status"])

    with contextlib.ExitStack() as stack:
        # So that the first cannot have done everything before the second is there.
        other = stack.enter_context(contextlib.ExitStack())
        other.enter_context(another_run(out, songs[:4]))
        runs = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": os.getcwd()},
                )
            )
            for _ in range(2)
        ]
        readers = [threading.Thread(target=read, args=pair) for pair in zip(runs, ended, strict=True)]
        for reader in readers:
            reader.start()
        deadline = time.monotonic() + 2 * MOST_SECONDS
        try:
            while not all(len(found) == len(songs) - 4 for found in ended):
                assert time.monotonic() < deadline and all(run.poll() is None for run in runs), ended
                time.sleep(0.1)
            other.close()
            for run, reader in zip(runs, readers, strict=True):
                reader.join(MOST_SECONDS)
                assert run.wait(MOST_SECONDS) == 0
        finally:
            for run in runs:
                run.kill()
    rows = sorted((row.id, row.status.value) for row in Destination(str(out)).ledger())
    assert rows == sorted((song.id, status) for song in songs for status in ("done", "skipped"))
    checked = list(verify(Destination(str(out))))
    assert len(checked) == len(songs) and all(isinstance(result, Result) for result in checked)
    assert list((out / ".claims").iterdir()) == [] and list((out / ".staging").iterdir()) == []
