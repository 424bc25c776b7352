"""The listing as index, destinations that vanish or refuse, and runs that stop themselves."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metatasnet_fast.catalogue import Failure, Outcome, Settings, Song, SongEnded, SongsSkipped, Status, WorkerLoad
from metatasnet_fast.catalogue import pipeline as pipeline_module
from metatasnet_fast.catalogue.destination import LEDGER, SONGS, Destination, LedgerWriter, song_folder
from metatasnet_fast.catalogue.events import Tally
from metatasnet_fast.catalogue.local import run_local
from metatasnet_fast.catalogue.outcome import Listed, Result
from metatasnet_fast.catalogue.settings import Identity
from metatasnet_fast.catalogue.storage import LocalStorage
from metatasnet_fast.catalogue.survey import Finding, _at_once, make_plan, verify
from metatasnet_fast.catalogue.worker import Worker

from .conftest import settings, songs_of, write_song
from .stand_ins import SleepingDevice

NOWHERE = Path("no model")
OLD = (1e9, 1e9)
"""Times of change that can be relied on."""


@pytest.fixture
def album(tmp_path: Path) -> list[Path]:
    paths = [write_song(tmp_path / "album" / f"{i}.wav", 0.3, seed=i) for i in range(4)]
    for path in paths:
        os.utime(path, OLD)
    return paths


def results(out: Path) -> list[Path]:
    return sorted((out / SONGS).rglob("result*.json"))


def test_a_second_run_starts_no_worker_and_writes_no_row(model: Path, album: list[Path], tmp_path: Path) -> None:
    out, songs = tmp_path / "out", songs_of(*album)
    first = run_local(songs, settings(model), str(out))
    rows = list(Destination(str(out)).ledger())
    events: list[object] = []
    again = run_local(songs, settings(model), str(out), events.append)
    assert (first.progress.done, again.progress.skipped, again.exit_code) == (4, 4, 0)
    assert [event.songs for event in events if isinstance(event, SongsSkipped)] == [4]
    assert not any(isinstance(event, SongEnded) for event in events)
    assert list(Destination(str(out)).ledger()) == rows


def test_a_song_whose_row_a_crash_took_gets_one(model: Path, album: list[Path], tmp_path: Path) -> None:
    out, songs = tmp_path / "out", songs_of(*album)
    run_local(songs, settings(model), str(out))
    shutil.rmtree(out / LEDGER)
    for _ in range(2):
        run_local(songs, settings(model), str(out))
        rows = list(Destination(str(out)).ledger())
        assert sorted(row.id for row in rows) == [song.id for song in songs]
        assert {row.status for row in rows} == {Status.skipped} and {row.duration for row in rows} == {0.3}


def test_a_song_that_is_done_though_its_last_row_says_failed_gets_a_row(
    model: Path, album: list[Path], tmp_path: Path
) -> None:
    out, songs = tmp_path / "out", songs_of(*album)
    run_local(songs, settings(model), str(out))
    shutil.rmtree(out / LEDGER)
    with contextlib.closing(LedgerWriter(Destination(str(out)), "19990101")) as ledger:
        ledger.add(Outcome("1", str(album[1]), Status.failed, "key", Failure.unknown, "Its process was killed."))
    run_local(songs, settings(model), str(out))
    rows = {row.id: row for row in Destination(str(out)).ledger()}
    assert {row.status for row in rows.values()} == {Status.skipped} and len(rows) == len(songs)


def test_content_that_is_done_in_another_shard_is_copied_and_not_separated(
    model: Path, album: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run_local(songs_of(*album), settings(model), str(out), shard="1/2")
    assert first.progress.done == 4
    again = [Song("again", str(album[1])), Song("new", str(write_song(tmp_path / "new.wav", 0.3, seed=9)))]
    windows: list[int] = []

    def listen(event: object) -> None:
        if isinstance(event, WorkerLoad):
            windows.append(event.windows_done)

    second = run_local(again, settings(model), str(out), listen, shard="2/2")
    assert second.progress.done == 2 and windows[-1] == 2, "the two channels of the new song"
    assert _stems(out, "again") == _stems(out, "1")
    assert len([found for found in verify(Destination(str(out))) if isinstance(found, Result)]) == 6
    assert run_local(again, settings(model, format="wav"), str(out)).progress.done == 2, "other settings, other stems"


def test_content_that_is_damaged_where_it_is_done_is_separated_again(
    model: Path, album: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_local(songs_of(album[0]), settings(model), str(out))
    stem = out / song_folder("0") / "bass.flac"
    whole = _stems(out, "0")
    stem.write_bytes(bytes(stem.stat().st_size))
    assert run_local([Song("again", str(album[0]))], settings(model), str(out)).progress.done == 1
    assert _stems(out, "again") == whole


def _stems(out: Path, id: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / song_folder(id)).glob("*.flac")}


@pytest.mark.parametrize("part", ["a tenth", "all of them"])
def test_verifying_a_part_reads_that_part(album: list[Path], tmp_path: Path, part: str) -> None:
    out = tmp_path / "out"
    songs = [Song(f"song {i}", str(album[0])) for i in range(60)]
    with Worker(settings(NOWHERE), str(out), engine=SleepingDevice()) as worker:
        assert len(list(worker.process(songs))) == 60
    target = Destination(str(out))
    if part == "a tenth":
        assert 1 <= len(list(verify(target, sample=0.1))) <= 15
    shards = [[found.id for found in verify(target, shard=(i, 3)) if isinstance(found, Result)] for i in (1, 2, 3)]
    assert sorted(id for shard in shards for id in shard) == sorted(song.id for song in songs)
    assert min(map(len, shards)) > 5


def test_verifying_goes_on_past_what_a_store_refuses_and_names_it(album: list[Path], tmp_path: Path) -> None:
    class Refusing(LocalStorage):
        def local(self, path: str):  # type: ignore[no-untyped-def]
            if path == f"{song_folder('1')}/bass.flac":
                raise PermissionError(errno.EACCES, "Forbidden")
            return super().local(path)

    with Worker(settings(NOWHERE), str(tmp_path / "out"), engine=SleepingDevice()) as worker:
        list(worker.process(songs_of(*album)))
    found = list(verify(Destination("s3://out", Refusing(tmp_path / "out"))))
    assert [f for f in found if isinstance(f, Finding)] == [
        Finding(song_folder("1"), "bass cannot be read (Forbidden)")
    ]
    assert len(found) == 4


def moved_away(out: Path) -> None:
    """What an unmounted disk looks like: another, empty folder at its path."""
    out.rename(out.with_name("elsewhere"))
    out.mkdir()


def removed(out: Path) -> None:
    shutil.rmtree(out.rename(out.with_name("rubbish")), ignore_errors=True)


@pytest.mark.parametrize("vanish", [moved_away, removed])
def test_a_destination_that_vanishes_stops_the_run_and_is_not_made_again(
    model: Path, tmp_path: Path, vanish: object
) -> None:
    out = tmp_path / "out"
    songs = songs_of(*(write_song(tmp_path / f"{i:02}.wav", 1.0, seed=i) for i in range(40)))
    seen: list[Outcome] = []

    def listen(event: object) -> None:
        if isinstance(event, SongEnded):
            seen.append(event.outcome)
            if len(seen) == 3:
                vanish(out)  # type: ignore[operator]

    ended = run_local(songs, settings(model), str(out), listen)
    assert ended.exit_code == 4 and ended.remaining > 0 and ended.reason is not None
    assert "was removed or unmounted" in ended.reason and str(out) in ended.reason
    assert "gone" in ended.failures and results(out) == []
    assert Destination(str(out)).is_gone()  # no report is written there
    assert vanish is moved_away or not out.exists()
    kept = out.with_name("elsewhere")
    done = sum(row.status is Status.done for row in seen)
    # One that was being published when the folder went is where the others are.
    if kept.exists():
        assert done <= len(results(kept)) <= done + 3


class Refusing(LocalStorage):
    """Refuses to publish ``times`` times."""

    def __init__(self, root: Path, times: int) -> None:
        super().__init__(root)
        self.times = times

    def publish(self, staged: Path, folder: str, last: str) -> None:
        self.times -= 1
        if self.times >= 0:
            raise OSError(errno.EIO, "Input/output error")
        super().publish(staged, folder, last)


@pytest.mark.parametrize(("times", "status"), [(2, Status.done), (3, Status.failed)])
def test_only_the_publishing_is_tried_again(
    album: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, status: Status
) -> None:
    monkeypatch.setattr(pipeline_module, "PAUSE", 0.01)
    device = SleepingDevice()
    out = Destination(str(tmp_path / "out"), Refusing(tmp_path / "out", times))
    with Worker(settings(NOWHERE, attempts=3), out, engine=device) as worker:
        [outcome] = worker.process(songs_of(album[0]))
        windows = sum(count for count, _ in device.batches)
        list(worker.process(songs_of(album[1])))
    assert outcome.status is status and (outcome.failure is Failure.write) == (status is Status.failed)
    assert sum(count for count, _ in device.batches) == 2 * windows, "a song was separated twice"


def test_what_has_no_room_is_not_separated(album: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    device = SleepingDevice()
    with Worker(settings(NOWHERE), str(tmp_path / "out"), engine=device) as worker:
        [outcome] = worker.process(songs_of(album[0]))
    assert outcome.failure is Failure.write and "no room" in str(outcome.error) and device.batches == []


def test_a_file_that_may_not_be_read_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = write_song(tmp_path / "a.wav", 0.2)
    store = fsspec.filesystem("memory")

    def refuse(*words: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Forbidden")

    try:
        store.put_file(str(path), "/in/a.wav")
        monkeypatch.setattr(type(store), "get_file", refuse)
        with Worker(settings(NOWHERE), str(tmp_path / "out"), engine=SleepingDevice()) as worker:
            [outcome] = worker.process([Song("a", "memory://in/a.wav")])
    finally:
        monkeypatch.undo()
        store.rm("/in", recursive=True)
    assert outcome.failure is Failure.forbidden and "memory://in/a.wav" in str(outcome.error)


def test_what_is_wrong_with_a_remote_file_names_its_address(tmp_path: Path) -> None:
    store = pytest.importorskip("fsspec").filesystem("memory")
    try:
        store.pipe_file("/in/text.wav", b"Words, words, words. " * 99)
        with Worker(settings(NOWHERE), str(tmp_path / "out"), engine=SleepingDevice()) as worker:
            [outcome] = worker.process([Song("text", "memory://in/text.wav")])
    finally:
        store.rm("/in", recursive=True)
    assert outcome.failure is Failure.not_audio
    assert "memory://in/text.wav" in str(outcome.error) and str(tmp_path) not in str(outcome.error)


def ended(number: int, failure: Failure | None) -> SongEnded:
    status = Status.done if failure is None else Status.failed
    return SongEnded(Outcome(f"{number}", "uri", status, "key", failure, failure and "The reason."))


def test_failures_in_a_row_that_are_not_the_songs_stop_a_run() -> None:
    for failure in Failure:
        tally = Tally(1000)
        for number in range(300):
            tally(ended(number, failure))
        assert (tally.reason is None) == (failure.most_in_a_row is None)
        assert tally.finish("run", None).exit_code == (3 if tally.reason is None else 4)
    lasting = {failure for failure in Failure if failure.lasting}
    assert all(failure.most_in_a_row is None for failure in lasting)


def test_songs_that_are_done_in_between_let_a_run_go_on() -> None:
    tally = Tally(1000)
    for number in range(900):
        tally(ended(number, Failure.write if number % 10 else None))
    assert tally.reason is None
    for _ in range(100):
        tally(ended(1, Failure.write))
    assert tally.reason is None, "one song that fails again and again is one song"


class Synthetic(LocalStorage):
    """The names of very many songs, which are nowhere."""

    def __init__(self, root: Path, names: list[tuple[str, dict[str, int]]]) -> None:
        super().__init__(root)
        self.names = names

    def listing(self, folder: str) -> Iterator[tuple[str, dict[str, int]]]:
        return iter(self.names) if folder == SONGS else super().listing(folder)


IDENTITY = Identity("tiny", "1:abc", {"mode": "fast"})


def listed_song(id: str) -> tuple[str, dict[str, int]]:
    from metatasnet_fast.catalogue.outcome import StemFile

    files = {stem: StemFile(f"{stem}.flac", 1000, "0" * 64) for stem in ("drums", "bass", "other", "vocals")}
    audio = {"duration": 200.0, "sample_rate": 44100, "channels": 2, "samples": 8820000}
    input = {"sha256": song_folder(id).replace("/", "")[5:9] * 16, "stamp": f"5:{id}", "bytes": 5, "codec": "wav"}
    result = Result(id, id, input, IDENTITY, audio, files, {}, {}, {})
    sizes = {file.path: file.bytes for file in files.values()}
    return song_folder(id), {**sizes, result.name: len(result.to_json())}


@pytest.mark.slow
def test_a_million_songs_are_decided_in_a_minute_and_a_gigabyte(tmp_path: Path) -> None:
    count = 1_000_000
    names = [listed_song(f"song-{i}") for i in range(1000)]
    sizes = [sizes for _, sizes in names]
    listing = [(song_folder(f"song-{i}"), sizes[i % 1000]) for i in range(count)]
    songs = [Song(f"song-{i}", f"{i}.wav", stamp=f"5:song-{i % 1000}" if i % 1000 else "5:other") for i in range(count)]
    (tmp_path / LEDGER).mkdir()
    row = json.dumps(Outcome("x", "uri", Status.done, "key", content="0" * 64, finished="2026-01-01").to_dict())
    with open(tmp_path / LEDGER / "run.jsonl", "w") as ledger:
        for i in range(count):
            ledger.write(row.replace('"x"', f'"song-{i}"', 1) + "\n")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    plan = make_plan(songs, Settings("x"), IDENTITY.key, Destination(str(tmp_path), Synthetic(tmp_path, listing)))
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"{count} songs: {seconds:.1f} CPU s, {grown:.2f} GiB more")
    assert (len(plan.done), len(plan.todo)) == (999_000, 1000)
    assert seconds < 60 and grown < 1


def test_a_name_proves_neither_another_key_nor_content_nor_files() -> None:
    _, sizes = listed_song("a")
    listed = Listed.of(sizes)
    assert listed.proves(IDENTITY.key, "5:a") and listed.duration == 200.0 and listed.bytes == 4000
    assert not listed.proves(IDENTITY.key, "5:b")
    assert not listed.proves(IDENTITY.key[::-1], "5:a")
    for name in sizes:
        assert not Listed.of({**sizes, name: sizes[name] - 1}).proves(IDENTITY.key, "5:a")
        assert not Listed.of({other: size for other, size in sizes.items() if other != name}).proves(
            IDENTITY.key, "5:a"
        )
    assert not Listed.of({**sizes, "stray.txt": 1}).proves(IDENTITY.key, "5:a")
    assert Listed.of({**sizes, ".DS_Store": 6148}).proves(IDENTITY.key, "5:a")


def test_rows_are_not_written_to_a_folder_that_took_the_destinations_place(tmp_path: Path) -> None:
    target = Destination(str(tmp_path / "out"))
    assert target.token
    ledger = LedgerWriter(target, "run")
    moved_away(tmp_path / "out")
    ledger.add(Outcome("a", "a", Status.done, "key"))
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(OSError, match="removed or unmounted"):
        ledger.close()


def test_a_row_that_a_full_disk_cut_off_is_written_whole_with_the_next_one(tmp_path: Path) -> None:
    target = Destination(str(tmp_path / "out"))
    ledger, file = LedgerWriter(target, "run"), tmp_path / "out" / LEDGER / "run.jsonl"
    ledger.add(Outcome("a", "a", Status.done, "key"))
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = file.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        ledger.add(Outcome("b", "b", Status.done, "key"))
        assert file.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    ledger.add(Outcome("c", "c", Status.done, "key"))
    assert [row.id for row in target.ledger()] == ["a", "b", "c"]
    assert len(file.read_bytes().splitlines()) == 3


def test_a_slow_song_does_not_hold_back_the_hundredth_after_it() -> None:
    later = threading.Event()

    def work(number: int) -> int:
        if number == 300:
            later.set()
        assert number != 200 or later.wait(30)
        return number

    assert list(_at_once(work, range(400))) == list(range(400))
