"""Done means: for this content, this model and these settings."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metatasnet_fast.catalogue import Failure, Outcome, Song, Status
from metatasnet_fast.catalogue import survey as survey_module
from metatasnet_fast.catalogue.destination import Destination, Staging, claim, remove_abandoned, song_folder
from metatasnet_fast.catalogue.outcome import Result, is_result
from metatasnet_fast.catalogue.storage import open_storage
from metatasnet_fast.catalogue.survey import Finding, survey, verify
from metatasnet_fast.catalogue.worker import Worker

from .conftest import settings, sf, songs_of, write_song
from .stand_ins import GatedDevice, SleepingDevice

pytestmark = pytest.mark.usefixtures("small_windows")
NOWHERE = Path("no model")


def run(out: Path | str, songs: list[Song], **more: Any) -> dict[str, Outcome]:
    engine = more.pop("engine", None) or SleepingDevice()
    options = settings(more.pop("model", NOWHERE), **more)
    with Worker(options, str(out), engine=engine) as worker:
        return {outcome.id: outcome for outcome in worker.process(songs)}


def statuses(outcomes: dict[str, Outcome]) -> set[Status]:
    return {outcome.status for outcome in outcomes.values()}


def result_of(folder: Path) -> Path:
    """The result of a song."""
    [path] = (path for path in folder.iterdir() if is_result(path.name))
    return path


def age(path: Path) -> None:
    """Make a file old enough for its time of change to be relied on."""
    os.utime(path, (1e9, 1e9))


@pytest.fixture
def album(tmp_path: Path) -> list[Path]:
    return [write_song(tmp_path / "album" / f"{i}.wav", 0.3, seed=i) for i in range(3)]


def test_a_result_says_all_that_was_done(album: list[Path], tmp_path: Path) -> None:
    outcome = run(tmp_path / "out", songs_of(album[0]), format="wav")["0"]
    folder = tmp_path / "out" / song_folder("0")
    result = result_of(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "bass.wav", "drums.wav", "other.wav", result.name, "vocals.wav"
    ]  # fmt: skip
    values = json.loads(result.read_text())
    assert values["format_version"] == 1 and values["key"] == outcome.key
    assert values["input"]["sha256"] == outcome.content
    assert values["audio"] == {"duration": 0.3, "sample_rate": 16000, "channels": 2, "samples": 4800}
    assert set(values["seconds"]) == {"fetch", "read", "separate", "write"}
    assert values["files"]["drums"]["bytes"] == (folder / "drums.wav").stat().st_size
    assert outcome.bytes_out == sum(file["bytes"] for file in values["files"].values())
    assert not list((tmp_path / "out" / ".staging").iterdir())


def test_a_second_run_does_only_what_is_missing(album: list[Path], tmp_path: Path) -> None:
    out, songs = tmp_path / "out", songs_of(*album)
    assert statuses(run(out, songs)) == {Status.done}
    shutil.rmtree(out / song_folder("1"))
    again = run(out, songs)
    assert {id for id, outcome in again.items() if outcome.status is Status.done} == {"1"}
    assert again["0"].status is Status.skipped and again["0"].duration == 0.3


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_changes_is_separated_anew(album: list[Path], tmp_path: Path, old: bool) -> None:
    out, songs = tmp_path / "out", songs_of(*album)
    if old:
        for path in album:
            age(path)
    run(out, songs)
    write_song(album[1], 0.3, seed=7)
    again = run(out, songs)
    assert {id for id, outcome in again.items() if outcome.status is Status.done} == {"1"}


def test_an_old_file_is_not_read_again(album: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(album[0])
    run(tmp_path / "out", songs_of(album[0]))

    def read(path: Path) -> str:
        raise AssertionError("the file was read")

    monkeypatch.setattr("metatasnet_fast.catalogue.pipeline.sha256_file", read)
    assert statuses(run(tmp_path / "out", songs_of(album[0]))) == {Status.skipped}


def test_a_file_that_only_moved_is_done(album: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "out", songs_of(album[0]))
    moved = album[0].rename(tmp_path / "0.wav")
    assert statuses(run(tmp_path / "out", songs_of(moved))) == {Status.skipped}


@pytest.mark.parametrize(
    "change", [{"format": "wav"}, {"subtype": "int24"}, {"stems": {"vocals": ("vocals",)}}, {"overwrite": True}]
)
def test_other_settings_make_everything_anew(album: list[Path], tmp_path: Path, change: dict[str, Any]) -> None:
    out, songs = tmp_path / "out", songs_of(*album)
    run(out, songs)
    assert statuses(run(out, songs, **change)) == {Status.done}
    found = {path.name for path in (out / song_folder("0")).iterdir()}
    stems = change.get("stems", ["drums", "bass", "other", "vocals"])
    assert found == {f"{stem}.{change.get('format', 'flac')}" for stem in stems} | {
        result_of(out / song_folder("0")).name
    }


def test_settings_of_the_machine_change_nothing(album: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "out", songs_of(*album))
    again = run(tmp_path / "out", songs_of(*album), batch_size=3, threads=1, songs_in_flight=2, max_hours=3)
    assert statuses(again) == {Status.skipped}


def test_another_model_makes_everything_anew(model: Path, album: list[Path], tmp_path: Path) -> None:
    from metatasnet_fast.model import MultiTasNet
    from tests.support import TINY, recipe_state

    network = MultiTasNet(TINY)
    network.load_state_dict(recipe_state(TINY, 2))
    network.save_pretrained(tmp_path / "models" / "tiny")
    keys = set()
    for path, expected in ((model, Status.done), (model, Status.skipped), (tmp_path / "models" / "tiny", Status.done)):
        with Worker(settings(path), str(tmp_path / "out")) as worker:
            [outcome] = worker.process(songs_of(album[0]))
        assert outcome.status is expected
        keys.add(outcome.key)
    assert len(keys) == 2


@pytest.mark.parametrize("damage", ["no stem", "short stem", "no result", "cut result", "other version"])
def test_what_is_damaged_is_made_anew(album: list[Path], tmp_path: Path, damage: str) -> None:
    run(tmp_path / "out", songs_of(album[0]))
    folder = tmp_path / "out" / song_folder("0")
    result = result_of(folder)
    if damage == "no stem":
        (folder / "bass.flac").unlink()
    elif damage == "short stem":
        (folder / "bass.flac").write_bytes((folder / "bass.flac").read_bytes()[:-1])
    elif damage == "no result":
        result.unlink()
    elif damage == "cut result":
        result.write_text(result.read_text()[:-9])
    else:
        result.write_text(result.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert statuses(run(tmp_path / "out", songs_of(album[0]))) == {Status.done}
    assert all(isinstance(found, Result) for found in verify(Destination(str(tmp_path / "out"))))


def test_two_runs_at_once_do_no_harm(album: list[Path], tmp_path: Path) -> None:
    out, songs = tmp_path / "out", songs_of(*album)
    device = GatedDevice()
    found: list[dict[str, Outcome]] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(out, songs, engine=device, overwrite=True, format="ogg")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    device.gate.set()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(statuses(outcomes) == {Status.done} for outcomes in found)
    checked = list(verify(Destination(str(out))))
    assert len(checked) == 3 and all(isinstance(result, Result) for result in checked)
    assert not list((out / ".staging").iterdir())


def test_runs_at_once_share_the_songs(album: list[Path], tmp_path: Path) -> None:
    out, songs = (
        tmp_path / "out",
        songs_of(*album, *(write_song(tmp_path / f"b{i}.wav", 0.3, seed=i) for i in range(5))),
    )
    found: list[dict[str, Outcome]] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(out, songs, engine=SleepingDevice(0.01)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for song in songs:
        assert sorted(outcomes[song.id].status.value for outcomes in found) == ["done", "skipped", "skipped"]
    assert not list((out / ".claims").iterdir())


def test_what_a_dead_run_left_is_swept_and_what_a_live_one_has_is_not(album: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Worker(settings(NOWHERE), str(out), engine=SleepingDevice()) as live:
        dead = live.staging.path.with_name(live.staging.path.name[:-8] + "deadbeef")
        dead.mkdir()
        (dead / "lock").touch()
        (dead / "stem.part").write_bytes(b"x")
        run(out, songs_of(album[0]))
        assert not dead.exists() and live.staging.path.exists()


def test_a_worker_that_ends_without_a_word_is_waited_for_and_swept(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; from metatasnet_fast.catalogue.destination import Staging;"
        "from metatasnet_fast.catalogue.storage import open_storage;"
        "staging = Staging(open_storage(sys.argv[1])); print('here', flush=True); time.sleep(1); os._exit(1)"
    )
    storage = open_storage(str(tmp_path))
    with (
        contextlib.closing(Staging(storage)) as mine,
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as worker,
    ):
        assert worker.stdout is not None and worker.stdout.readline()
        assert len(list((tmp_path / ".staging").iterdir())) == 2
        remove_abandoned(storage, patience=3.0)
        assert list((tmp_path / ".staging").iterdir()) == [mine.path]


def test_a_claim_whose_owner_was_killed_goes_with_the_run_and_a_live_one_stays(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    with claim(storage, "alive") as claimed:
        assert claimed
        (tmp_path / ".claims" / "killed").touch()
        remove_abandoned(storage)
        assert [path.name for path in (tmp_path / ".claims").iterdir()] == ["alive"]


def test_in_object_stores_too(album: list[Path], tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    try:
        for path in album:
            store.put_file(str(path), f"/in/{path.name}")
        songs = [Song(path.stem, f"memory://in/{path.name}") for path in album] + [Song("x", "memory://in/x.wav")]
        first = run("memory://out", songs)
        assert first.pop("x").failure is Failure.not_found
        assert statuses(first) == {Status.done}
        second = run("memory://out", songs)
        second.pop("x")
        assert statuses(second) == {Status.skipped}
        assert statuses(run("memory://out", songs[:1], format="wav")) == {Status.done}
        assert f"/out/{song_folder('0')}/drums.flac" not in store.find("/out")
        found = list(verify(Destination("memory://out")))
        assert len(found) == 3 and all(isinstance(result, Result) for result in found)
        with store.open(f"/out/{song_folder('1')}/drums.flac") as file:
            samples, rate = sf.read(file)
        assert samples.shape == (4800, 2) and rate == 16000
        store.pipe(f"/out/{song_folder('1')}/drums.flac", b"x")
        broken = [found for found in verify(Destination("memory://out"), repair=True) if isinstance(found, Finding)]
        assert [finding.folder for finding in broken] == [song_folder("1")]
        assert statuses(run("memory://out", songs[1:2])) == {Status.done}
    finally:
        for folder in ("/in", "/out"):
            store.rm(folder, recursive=True)


def test_a_survey_counts_what_is_there(album: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "out", songs_of(*album))
    result_of(tmp_path / "out" / song_folder("2")).write_text("{")
    found = survey(Destination(str(tmp_path / "out")))
    assert (found.done, found.damaged_results) == (2, 1)
    assert found.audio_seconds == pytest.approx(0.6)


def test_verifying_reads_every_byte(album: list[Path], tmp_path: Path) -> None:
    run(tmp_path / "out", songs_of(*album))
    stem = tmp_path / "out" / song_folder("1") / "vocals.flac"
    content = bytearray(stem.read_bytes())
    content[-1] ^= 1
    stem.write_bytes(content)
    (tmp_path / "out" / song_folder("2") / "stray.txt").touch()
    found = {
        finding.folder: finding.problem
        for finding in verify(Destination(str(tmp_path / "out")))
        if isinstance(finding, Finding)
    }
    assert "vocals has another content" in found[song_folder("1")]
    assert "stray.txt" in found[song_folder("2")] and len(found) == 2


@pytest.mark.parametrize("name", ["drums.flac", "the result"])
def test_a_file_that_the_disk_cannot_read_is_a_finding(
    album: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run(tmp_path / "out", songs_of(*album))
    folder = tmp_path / "out" / song_folder("1")
    bad = folder / name if name == "drums.flac" else result_of(folder)

    def failing(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def reading(path: Path) -> Any:
            if path == bad:
                raise OSError(errno.EIO, "Input/output error", str(path))
            return read(path)

        return reading

    monkeypatch.setattr(survey_module, "sha256_file", failing(survey_module.sha256_file))
    monkeypatch.setattr(Path, "read_bytes", failing(Path.read_bytes))
    found = list(verify(Destination(str(tmp_path / "out")), repair=True))
    assert [result.id for result in found if isinstance(result, Result)] == sorted("02", key=song_folder)
    what = name.removesuffix(".flac")
    assert Finding(song_folder("1"), f"{what} cannot be read (Input/output error)") in found and len(found) == 3
    monkeypatch.undo()
    assert run(tmp_path / "out", songs_of(*album))["1"].status is Status.done


@pytest.mark.parametrize("at_once", [1, 4])
def test_songs_of_equal_content_have_outputs_of_their_own(album: list[Path], tmp_path: Path, at_once: int) -> None:
    songs = [Song(f"copy {i}", str(album[0])) for i in range(5)]
    device = SleepingDevice()
    outcomes = run(tmp_path / "out", songs, engine=device, songs_in_flight=at_once)
    assert statuses(outcomes) == {Status.done}
    assert {outcome.duration for outcome in outcomes.values()} == {0.3}
    results = [result for result in verify(Destination(str(tmp_path / "out"))) if isinstance(result, Result)]
    assert len({result.id for result in results}) == 5
    assert len({result.files["drums"].sha256 for result in results}) == 1
    assert sum(windows for windows, _ in device.batches) == 2, "equal content was separated again"
    assert statuses(run(tmp_path / "out", songs)) == {Status.skipped}
