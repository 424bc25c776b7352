"""Whatever is wrong with a song is one row with a type, a sentence and a hint; the others are done."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metatasnet_fast.catalogue import Failure, Outcome, Song, Status
from metatasnet_fast.catalogue import pipeline as pipeline_module
from metatasnet_fast.catalogue.inputs import Source
from metatasnet_fast.catalogue.outcome import SongError, classify
from metatasnet_fast.catalogue.worker import Worker
from metatasnet_fast.errors import AudioFormatError, AudioWriteError, MetaTasNetError, MissingDependencyError

from .conftest import settings, sf, songs_of, write_song
from .stand_ins import SleepingDevice

pytestmark = pytest.mark.usefixtures("small_windows")
NOWHERE = Path("no model")


def run(out: Path, songs: list[Song], engine: SleepingDevice | None = None, **more: Any) -> dict[str, Outcome]:
    with Worker(settings(NOWHERE, **more), str(out), engine=engine or SleepingDevice()) as worker:
        return {outcome.id: outcome for outcome in worker.process(songs)}


def cut(path: Path) -> None:
    whole = write_song(path, 1.0).read_bytes()
    path.write_bytes(whole[: len(whole) // 50])


BROKEN: dict[str, tuple[Failure, Callable[[Path], object]]] = {
    "missing.wav": (Failure.not_found, lambda path: None),
    "dangling.wav": (Failure.not_found, lambda path: path.symlink_to("nowhere")),
    "round.wav": (Failure.not_found, lambda path: path.symlink_to("round.wav")),
    "x" * 300 + ".wav": (Failure.not_found, lambda path: None),
    "pipe.wav": (Failure.not_audio, os.mkfifo),
    "folder.wav": (Failure.not_audio, lambda path: path.mkdir()),
    "text.wav": (Failure.not_audio, lambda path: path.write_text("Words, words, words. " * 99)),
    "noise.flac": (Failure.not_audio, lambda path: path.write_bytes(np.random.default_rng(0).bytes(9999))),
    "nothing.mp3": (Failure.empty, lambda path: path.touch()),
    "no samples.wav": (Failure.empty, lambda path: sf.write(path, np.zeros((0, 2)), 16000)),
    "cut.flac": (Failure.decode, cut),
    "long.wav": (Failure.too_long, lambda path: write_song(path, 2.5)),
    "nine.wav": (Failure.does_not_fit, lambda path: write_song(path, 0.2, channels=9)),
}


def test_every_failure_is_a_row_with_a_type_and_a_hint(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = [write_song(folder / f"good {i}.wav", 0.3, seed=i) for i in range(3)]
    for name, (_, make) in BROKEN.items():
        make(folder / name)
    songs = [Song(name, str(folder / name)) for name in BROKEN]
    outcomes = run(tmp_path / "out", [*songs[:5], *songs_of(*good), *songs[5:]], max_hours=2 / 3600, attempts=1)
    assert {name: outcomes[name].failure for name in BROKEN} == {name: failure for name, (failure, _) in BROKEN.items()}
    for name in BROKEN:
        assert outcomes[name].error and outcomes[name].hint and outcomes[name].folder is None
    assert [outcomes[path.stem].status for path in good] == [Status.done] * 3
    assert len(list((tmp_path / "out" / "songs").rglob("result*.json"))) == 3


def test_what_one_format_cannot_hold_is_tried_once_and_done_in_another(tmp_path: Path) -> None:
    song = songs_of(write_song(tmp_path / "nine.wav", 0.2, channels=9))
    for _ in range(2):
        failed = run(tmp_path / "out", song, format="flac")["nine"]
        assert (failed.failure, failed.attempts) == (Failure.does_not_fit, 1)
        assert failed.error and "use wav" in failed.error
    assert run(tmp_path / "out", song, format="wav")["nine"].status is Status.done


def test_a_file_that_is_cut_off_fails_or_is_separated_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "half.wav"
    whole = write_song(path, 1.0).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    failed = run(tmp_path / "out", songs_of(path))["half"]
    assert (
        failed.failure is Failure.decode and failed.error and "(partial)" in failed.error and "--partial" in failed.hint
    )
    done = run(tmp_path / "out", songs_of(path), partial=True)["half"]
    assert done.status is Status.done and any("could be decoded" in text for text in done.warnings)


def test_what_is_lasting_is_tried_once_and_what_may_pass_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    opened = pipeline_module.open_audio

    def flaky(path: Path, **how: Any) -> Any:
        tried.append(path.stem)
        if path.stem == "flaky" and tried.count("flaky") < 3:
            raise TimeoutError("the disk sleeps")
        return opened(path, **how)

    monkeypatch.setattr(pipeline_module, "open_audio", flaky)
    monkeypatch.setattr(pipeline_module, "PAUSE", 0.01)
    (tmp_path / "text.wav").write_text("no music")
    songs = songs_of(write_song(tmp_path / "flaky.wav", 0.2), tmp_path / "text.wav")
    outcomes = run(tmp_path / "out", songs, attempts=3)
    assert (outcomes["flaky"].status, outcomes["flaky"].attempts) == (Status.done, 3)
    assert (outcomes["text"].failure, outcomes["text"].attempts) == (Failure.not_audio, 1)
    assert tried.count("text") == 1


def test_attempts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(path: Path, **how: Any) -> Any:
        raise TimeoutError("the disk sleeps")

    monkeypatch.setattr(pipeline_module, "open_audio", never)
    monkeypatch.setattr(pipeline_module, "PAUSE", 0.01)
    outcome = run(tmp_path / "out", songs_of(write_song(tmp_path / "a.wav", 0.2)), attempts=3)["a"]
    assert (outcome.failure, outcome.attempts) == (Failure.unknown, 3)
    assert outcome.error == "TimeoutError: the disk sleeps"


def test_a_network_that_gives_nan_fails_its_song_and_writes_nothing(tmp_path: Path) -> None:
    class Broken(SleepingDevice):
        def separate(self, mixes: Any, wanted: Any) -> dict[int, torch.Tensor]:
            return {stage: float("nan") * found for stage, found in super().separate(mixes, wanted).items()}

    outcome = run(tmp_path / "out", songs_of(write_song(tmp_path / "a.wav", 0.2)), Broken(), attempts=1)["a"]
    assert outcome.failure is Failure.unknown and "not finite" in str(outcome.error)
    assert not (tmp_path / "out" / "songs").exists()


def test_a_file_that_grows_while_it_is_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_song(tmp_path / "a.wav", 0.2)
    opened, times = pipeline_module.open_audio, []

    def growing(name: Path, **how: Any) -> Any:
        times.append(name)
        if len(times) == 1:
            with open(path, "ab") as file:
                file.write(b"more")
        return opened(name, **how)

    monkeypatch.setattr(pipeline_module, "open_audio", growing)
    monkeypatch.setattr(pipeline_module, "PAUSE", 0.01)
    outcome = run(tmp_path / "out", songs_of(path))["a"]
    assert (outcome.status, outcome.attempts, outcome.bytes_in) == (Status.done, 2, path.stat().st_size)


def test_an_address_that_is_longer_than_any_file_name_is_read(tmp_path: Path) -> None:
    store = pytest.importorskip("fsspec").filesystem("memory")
    query = "?X-Amz-Credential=a/b&X-Amz-Signature=" + "a" * 300
    try:
        store.put_file(str(write_song(tmp_path / "a.flac", 0.2)), f"/in/a.flac{query}")
        assert run(tmp_path / "out", [Song("a", f"memory://in/a.flac{query}")])["a"].status is Status.done
    finally:
        store.rm("/in", recursive=True)


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.mp3", ".mp3"),
        ("a.FLAC?list=a/b.com", ".FLAC"),
        ("who?.mp3", ".mp3"),
        ("a", ""),
        ("a. b", ""),
        ("a." + "x" * 250, ""),
    ],
)
def test_a_copy_ends_as_its_address_does(name: str, ending: str) -> None:
    store = pytest.importorskip("fsspec").filesystem("memory")
    try:
        store.pipe_file(f"/in/{name}", b"content")
        with Source(f"memory://in/{name}").local() as path:
            assert (path.suffix, path.read_bytes()) == (ending, b"content")
    finally:
        store.rm("/in", recursive=True)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (SongError(Failure.empty, "x"), Failure.empty),
        (MemoryError(), Failure.out_of_memory),
        (torch.OutOfMemoryError("CUDA out of memory"), Failure.out_of_memory),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Failure.write),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), Failure.write),
        (AudioFormatError("a.wav would exceed the 4 GiB that a WAV file can hold; write flac."), Failure.does_not_fit),
        (AudioWriteError("no room"), Failure.write),
        (MissingDependencyError("install it"), Failure.missing_package),
        (KeyError("x"), Failure.unknown),
    ],
)
def test_errors_have_types(error: Exception, failure: Failure) -> None:
    found, message = classify(error)
    assert found is failure and message


def test_memory_that_ran_out_below_is_seen() -> None:
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except RuntimeError as cause:
            raise MetaTasNetError("Memory does not suffice for a single window.") from cause
    except MetaTasNetError as error:
        assert classify(error)[0] is Failure.out_of_memory


def test_rows_survive_json(tmp_path: Path) -> None:
    songs = [*songs_of(write_song(tmp_path / "a.wav", 0.2)), Song("b", str(tmp_path / "b.wav"))]
    for outcome in run(tmp_path / "out", songs).values():
        assert Outcome.from_dict(outcome.to_dict()) == outcome
