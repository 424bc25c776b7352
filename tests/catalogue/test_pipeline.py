"""Batches across songs, memory that runs out, stages that overlap."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metatasnet_fast.catalogue import Failure, Notice, Outcome, Status, WorkerLoad
from metatasnet_fast.catalogue import pipeline as pipeline_module
from metatasnet_fast.catalogue.batcher import Batcher
from metatasnet_fast.catalogue.cores import CorePlan, Stage, available_cores, available_memory
from metatasnet_fast.catalogue.worker import Worker
from metatasnet_fast.errors import BackendUnavailableError
from metatasnet_fast.separation.outputs import StemFiles

from .conftest import settings, songs_of, write_song
from .stand_ins import GatedDevice, SleepingDevice, SmallDevice

pytestmark = pytest.mark.usefixtures("small_windows")
NOWHERE = Path("no model")


def run(tmp_path: Path, songs: list[Path], engine: SleepingDevice, **more: Any) -> list[Outcome]:
    listener = more.pop("listener", lambda event: None)
    options = settings(NOWHERE, **more)
    with Worker(options, str(tmp_path / "out"), engine=engine, listener=listener) as worker:
        return list(worker.process(songs_of(*songs)))


def test_windows_of_many_songs_fill_batches_of_one_shape(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / f"{i}.wav", 0.9, seed=i) for i in range(8)]
    device = SleepingDevice(0.01)
    outcomes = run(tmp_path, songs, device, batch_size=4, songs_in_flight=8)
    assert [outcome.status for outcome in outcomes] == [Status.done] * 8
    assert len({samples for _, samples in device.batches}) == 1
    assert max(windows for windows, _ in device.batches) == 4
    full = sum(windows == 4 for windows, _ in device.batches)
    assert full >= 0.7 * len(device.batches), device.batches


def test_when_memory_runs_out_batches_are_halved_for_good(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / f"{i}.wav", 0.9, seed=i) for i in range(6)]
    device, said = SmallDevice(fits=3), []
    outcomes = run(tmp_path, songs, device, batch_size=16, songs_in_flight=6, listener=said.append)
    assert [outcome.status for outcome in outcomes] == [Status.done] * 6
    halvings = [event.text for event in said if isinstance(event, Notice)]
    assert 1 <= len(halvings) <= 4 and "Memory ran out" in halvings[0]
    loads = [event for event in said if isinstance(event, WorkerLoad)]
    assert loads[-1].batch_size <= 3


def test_a_window_that_never_fits_fails_its_song(tmp_path: Path) -> None:
    [outcome] = run(tmp_path, [write_song(tmp_path / "a.wav", 0.3)], SmallDevice(fits=0), batch_size=2)
    assert outcome.failure is Failure.out_of_memory and outcome.attempts == 2
    assert outcome.hint is not None and "--batch-size" in outcome.hint


def test_one_song_that_breaks_the_device_does_not_take_its_neighbours(tmp_path: Path) -> None:
    class Fussy(SleepingDevice):
        def separate(self, mixes: Any, wanted: Any) -> dict[int, torch.Tensor]:
            if any(mix.amax() > 20 for mix in mixes[-1]):
                raise RuntimeError("this sound is too much")
            return super().separate(mixes, wanted)

    import soundfile as sf

    songs = [write_song(tmp_path / f"{i}.wav", 0.3, channels=1, seed=i) for i in range(3)]
    impulse = torch.zeros(4800)
    impulse[2000] = 1
    sf.write(tmp_path / "impulse.wav", impulse.numpy(), 16000)
    outcomes = run(tmp_path, [*songs, tmp_path / "impulse.wav"], Fussy(), batch_size=8, songs_in_flight=4)
    failed = [outcome for outcome in outcomes if outcome.status is Status.failed]
    assert [outcome.id for outcome in failed] == ["impulse"] and "too much" in str(failed[0].error)
    assert failed[0].failure is Failure.unknown


def test_a_device_that_is_lost_ends_the_worker(tmp_path: Path) -> None:
    class Lost(SleepingDevice):
        def separate(self, mixes: Any, wanted: Any) -> dict[int, torch.Tensor]:
            if len(self.batches) >= 2:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().separate(mixes, wanted)

    songs = [write_song(tmp_path / f"{i}.wav", 0.3, channels=1, seed=i) for i in range(6)]
    found: list[Outcome] = []
    over = threading.Event()

    def offered() -> Any:
        yield from songs_of(*songs[:3])
        over.wait(30)  # no further song comes, as no one hears of the ones before

    with pytest.raises(BackendUnavailableError, match="illegal memory access"):
        with Worker(settings(NOWHERE, batch_size=1), str(tmp_path / "out"), engine=Lost()) as worker:
            found.extend(worker.process(offered()))
    over.set()
    assert len(found) <= 2 and all(outcome.status is Status.done for outcome in found)


def test_an_error_that_a_device_tells_late_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def tells_late(batcher: Batcher) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Batcher, "_measured", tells_late)
    songs = songs_of(*(write_song(tmp_path / f"{i}.wav", 0.9, seed=i) for i in range(3)))
    with pytest.raises(BackendUnavailableError, match="device-side assert"):
        with Worker(settings(NOWHERE, batch_size=1), str(tmp_path / "out"), engine=SleepingDevice()) as worker:
            list(worker.process(songs))


def test_only_so_many_songs_are_open_and_read_ahead(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / f"{i:02}.wav", 0.9, seed=i) for i in range(12)]
    device = GatedDevice()
    taken: list[str] = []

    def offered() -> Any:
        for song in songs_of(*songs):
            taken.append(song.id)
            yield song

    with Worker(settings(NOWHERE, batch_size=2, songs_in_flight=3), str(tmp_path / "out"), engine=device) as worker:
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.extend(worker.process(offered())))
        thread.start()
        time.sleep(0.5)
        held, windows = len(taken), worker.load().stages["device"].waiting
        device.gate.set()
        thread.join()
    assert held == 3
    assert windows <= 3 * 2 + 3
    assert len(outcomes) == 12


def test_songs_are_read_and_written_while_the_device_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second song is read while the first is on the device, and the first is written while the second is there."""
    names = ("device works", "second read", "first write", "device works again")
    events = {name: threading.Event() for name in names}
    opened, written = pipeline_module.open_audio, StemFiles.write
    reads, writes, computations = itertools.count(1), itertools.count(1), itertools.count(1)

    def meet(mine: str, other: str) -> None:
        events[mine].set()
        assert events[other].wait(60), f"{mine}, but not together with: {other}"

    def read(path: Path, **how: Any) -> Any:
        if next(reads) == 2:
            meet("second read", "device works")
        return opened(path, **how)

    def write(*args: Any) -> Any:
        if next(writes) == 1:
            meet("first write", "device works again")
        return written(*args)

    class Device(SleepingDevice):
        def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
            number = next(computations)
            if number == 1:
                meet("device works", "second read")
            elif number == 2:
                meet("device works again", "first write")
            return super().separate(mixes, wanted)

    monkeypatch.setattr(pipeline_module, "open_audio", read)
    monkeypatch.setattr(StemFiles, "write", write)
    songs = [write_song(tmp_path / f"{i}.wav", 0.3, channels=1, seed=i) for i in range(4)]
    options = settings(NOWHERE, batch_size=1, threads=2, attempts=1)
    with Worker(options, str(tmp_path / "out"), engine=Device()) as worker:
        outcomes = list(worker.process(songs_of(*songs)))
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [(Status.done, None)] * 4


def test_memory_that_songs_took_is_given_back_also_when_they_fail(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / f"{i}.wav", 0.5, seed=i) for i in range(4)]
    for device, status in ((SleepingDevice(), Status.done), (SmallDevice(fits=0), Status.failed)):
        options = settings(NOWHERE, batch_size=2, memory=200_000, attempts=1)
        with Worker(options, str(tmp_path / status.value), engine=device) as worker:
            assert {outcome.status for outcome in worker.process(songs_of(*songs))} == {status}
            assert worker.memory.take(options.memory), "all of it is there again"


def test_songs_that_need_much_memory_go_one_after_the_other() -> None:
    room, inside, most = Stage(99, limit=10), [], []

    def enter(size: int) -> None:
        with room.enter(size):
            inside.append(size)
            most.append(sum(inside))
            time.sleep(0.01)
            inside.remove(size)

    sizes = [3, 4, 3, 25, 1, 9, 10, 2, 30, 5]
    threads = [threading.Thread(target=enter, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == len(sizes) and not inside
    assert max(total for total in most if total not in (25, 30)) <= 10


def test_a_worker_leaves_threads_as_they_were(tmp_path: Path) -> None:
    before, alive = torch.get_num_threads(), threading.active_count()
    run(tmp_path, [write_song(tmp_path / "a.wav", 0.3)], SleepingDevice(), threads=3)
    assert torch.get_num_threads() == before
    assert threading.active_count() == alive


def test_the_network_keeps_its_threads_whatever_the_songs_threads_use(tmp_path: Path) -> None:
    found = []

    class Counting(SleepingDevice):
        def separate(self, mixes: Any, wanted: Any) -> dict[int, torch.Tensor]:
            found.append(torch.get_num_threads())
            return super().separate(mixes, wanted)

    run(tmp_path, [write_song(tmp_path / f"{i}.wav", 0.3, seed=i) for i in range(3)], Counting(), threads=3)
    assert found and set(found) == {3}


def test_cores_are_shared_as_asked(tmp_path: Path) -> None:
    plan = CorePlan.choose(torch.device("cuda"), 6, None)
    with Worker(settings(NOWHERE), str(tmp_path / "out"), engine=SleepingDevice(), cores=plan) as worker:
        assert worker.cores.songs == plan.songs
        assert {name: stage.capacity for name, stage in worker.load().stages.items()} == {
            "read": plan.read, "separate": plan.songs, "write": plan.write, "device": 1
        }  # fmt: skip
        assert plan.describe() in worker.describe()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("cores", [1, 2, 5, 16, 128])
def test_every_stage_has_a_place_and_songs_enough(device: str, cores: int) -> None:
    plan = CorePlan.choose(torch.device(device), cores, None)
    assert min(plan.read, plan.write, plan.device_threads) >= 1
    assert plan.songs > plan.read + plan.write
    assert str(cores) in plan.describe()


def test_what_the_machine_has_is_found() -> None:
    assert 1 <= available_cores()
    assert available_memory() > 2**20
