"""What one bad track does to the preparing of a cache, and what a kill at any instant leaves."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.training.data import Cache
from metatasnet_fast.training.data.prepare import prepare
from metatasnet_fast.training.data.sources import TrackSource, find_stems
from tests.training.data.preparing import RATES, contents, run, statuses

sf = pytest.importorskip("soundfile")

WriteStems = Callable[..., Path]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda song: (song / "bass.wav").unlink(), "has no bass"),
    "twice": (lambda song: (song / "bass.flac").write_bytes(b""), "keep one"),
    "text": (lambda song: (song / "bass.wav").write_text("no sound"), "bass.wav"),
    "empty": (lambda song: (song / "bass.wav").write_bytes(b""), "empty"),
    "without samples": (lambda song: sf.write(song / "bass.wav", np.zeros((0, 2)), 8000), "no samples"),
    "not finite": (lambda song: sf.write(song / "bass.wav", np.full((99, 2), np.inf), 8000, "FLOAT"), "finite"),
    "surround": (lambda song: sf.write(song / "bass.wav", np.ones((99, 6)), 8000), "6 channels"),
    "annotation": (lambda song: (song / "track.json").write_text('{"unknown": "bass"}'), "track.json"),
    "silence": (lambda song: [sf.write(song / f"{n}.wav", np.zeros(99), 8000) for n in INSTRUMENTS], "silent"),
}


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_track_is_one_sentence_and_the_rest_is_done(tmp_path: Path, songs: Path, bad: str) -> None:
    damage, message = BAD[bad]
    damage(songs / "two")
    result = run(songs, tmp_path / "cache")
    (failure,) = result.failures
    assert failure.name == "two" and failure.error is not None
    assert message in failure.error and failure.error.endswith(".") and "\n" not in failure.error
    assert [track.name for track in Cache.open(tmp_path / "cache").tracks("train")] == ["one", "three"]
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["failed"] == [{"name": "two", "split": "train", "error": failure.error}]


def test_a_bad_track_that_was_mended_is_done_the_next_time(
    tmp_path: Path, songs: Path, write_stems: WriteStems
) -> None:
    (songs / "two" / "bass.wav").unlink()
    run(songs, tmp_path / "cache")
    write_stems(songs / "two", seed=1)
    assert statuses(run(songs, tmp_path / "cache")) == {"one": "kept", "two": "done", "three": "kept"}


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError("384000 requested and 4032 written")],
    ids=["the system's", "numpy's"],
)
def test_a_full_disk_is_one_sentence_for_each_track_and_leaves_nothing(
    tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fails(file: Path, array: np.ndarray) -> None:
        Path(file).write_bytes(b"a part")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fails)
        result = run(songs, tmp_path / "cache")
    assert len(result.failures) == 3
    assert all("(no space left on the disk); make room" in str(outcome.error) for outcome in result.failures)
    assert set(contents(tmp_path / "cache")) == {"manifest.json"}
    assert set(statuses(run(songs, tmp_path / "cache")).values()) == {"done"}


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_an_unexpected_error_is_one_failed_track(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from metatasnet_fast.training.data import convert

    def fails(recording: Any, rate: int, stems: Any) -> None:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(convert, "_resampled", fails)
    result = run(songs, tmp_path / "cache")
    assert len(result.failures) == 3
    assert all("ZeroDivisionError: by chance" in str(outcome.error) for outcome in result.failures)


class KillsItsProcess(TrackSource):
    """A track that a worker does not survive, as if the system had run out of memory."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.__dict__.update(state)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process by a signal")
def test_a_killed_worker_costs_one_track(tmp_path: Path, songs: Path) -> None:
    tracks = find_stems(songs)
    tracks[1] = KillsItsProcess(**tracks[1].__dict__)
    result = prepare(tracks, tmp_path / "cache", rates=RATES, workers=2)
    (failure,) = result.failures
    assert failure.name == tracks[1].name and "killed" in str(failure.error)
    assert len(Cache.open(tmp_path / "cache").tracks("train")) == 2


FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


def run_and_die(songs: Path, out: Path, instant: int | None) -> int:
    """Prepare in a forked process that ends without warning before its ``instant``-th file operation in the cache."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in FILE_EVENTS and str(out) in str(arguments[0]):
                seen += 1
                if seen == instant:
                    os._exit(9)

        sys.addaudithook(watch)
        try:
            run(songs, out)
            os.write(writer, str(seen).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        return int(pipe.read() or 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_file_operation_the_next_run_ends_as_if_nothing_had_been(
    tmp_path: Path, write_stems: WriteStems
) -> None:
    """A new track first, then one that replaces an older version of itself."""
    songs = tmp_path / "songs"
    before: Path | None = None
    for version in ("first", "second"):
        write_stems(songs / "song", seed=len(version), seconds=0.05)

        def fresh(name: str, old: Path | None = before, version: str = version) -> Path:
            """A new cache, or a copy of the one of the first version."""
            path = tmp_path / f"{version}-{name}"
            return path if old is None else Path(shutil.copytree(old, path))

        whole = fresh("whole")
        operations = run_and_die(songs, whole, None)
        expected = contents(whole)
        assert operations > 15 and {"manifest.json", "train/song/8000.npy"} < set(expected)
        for instant in range(1, operations + 1):
            cache = fresh(str(instant))
            assert run_and_die(songs, cache, instant) == 0, "it was not killed"
            if before is None and (cache / "manifest.json").exists():
                (track,) = Cache.open(cache).tracks("train")
                assert np.asarray(track.stems(8000)).any()
            run(songs, cache)
            assert contents(cache) == expected
        before = whole
