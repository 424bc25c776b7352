"""Measure the share of the machine that a catalogue's pipeline uses, and the cost of Ray.

    python -m bench.catalogue_efficiency [--songs 16] [--seconds 60] [--rounds 3] [--out DIR]

simulated    the device sleeps for as long as reading and writing take on all cores; wall-clock time over that of the slowest
             stage alone. One process.
local        the bundled network on the CPU; wall-clock time from the first song's start to the last one's end, over the least
             that its processor seconds need on the cores.
ray          the same songs through Ray on this machine, alternating with ``local``.

"in all" includes starting the processes, also Ray and its actor.

Other programs take processor time too, and then no pipeline can reach its bound. So each row also has the same ratio for the
cores that were free: the number of cores, less the processor time per second that other programs took. A row has no such
ratio if less than half a core was free.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metatasnet_fast.audio import write_audio
from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.catalogue import Event, RunEnded, Settings, Song, SongEnded, SongStarted
from metatasnet_fast.catalogue.cores import CorePlan, available_cores
from metatasnet_fast.catalogue.local import run_local
from metatasnet_fast.catalogue.worker import Worker
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import bundled_models

MODEL = next(iter(bundled_models()))
RATE = 44100
LEAST_CORES = 0.5


@dataclass
class Row:
    """One measurement; times in seconds. ``bound`` is the lower limit of ``wall``, ``ratio`` is wall over bound."""

    what: str
    wall: float
    bound: float
    ratio: float
    ratio_with_cores_left: float | None
    cpu_seconds: float
    cores_left: float
    """Cores that other programs left free, on average over the time."""
    whole_seconds: float
    """Seconds that include starting the engine and its processes."""
    load_average: float


class SleepingDevice:
    """A stand-in for the network: it sleeps for every window, and returns a quarter of the mixture as every stem."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.config = MetaTasNetConfig()

    def separate(self, mixes: Sequence[torch.Tensor], wanted: Any) -> dict[int, torch.Tensor]:
        (last,) = wanted
        time.sleep(self.seconds * mixes[last].shape[0])
        return {last: mixes[last][:, None].expand(-1, 4, -1, -1) / 4}


class OthersTime:
    """A clock of other programs' processor seconds since it was made, by /proc/stat (Linux); 0 on other systems."""

    def __init__(self) -> None:
        self._began = self._machine()

    def seconds(self, ours: float) -> float:
        return max(0.0, self._machine() - self._began - ours)

    def _machine(self) -> float:
        try:
            fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return 0.0
        user, nice, system, _idle, _wait, irq, soft, steal = fields
        return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def simulated(songs: list[Song], folder: Path) -> Row:
    """Measure a run with a device that takes as long as the cores take for all other work."""
    first = _worker(songs, folder / "without", SleepingDevice(0.0))
    windows = first[3]
    seconds = first[1] / available_cores() / windows
    return _row("simulated", *_worker(songs, folder / "with", SleepingDevice(seconds))[:3], device=seconds * windows)


def _worker(songs: list[Song], out: Path, device: SleepingDevice) -> tuple[float, float, float, int]:
    """Return wall-clock seconds, processor seconds of this and of other programs, and the number of windows."""
    settings = Settings(model="simulated", device="cpu", batch_size=4, overwrite=True)
    # A process that waits for a GPU uses no core, but needs one as soon as the GPU is done. This sleep behaves the
    # same.
    cores = CorePlan.choose(torch.device("cuda"), None, None)
    with Worker(settings, str(out), engine=device, cores=cores) as worker:
        others, cpu, began = OthersTime(), _own_cpu(), time.perf_counter()
        rows = list(worker.process(songs))
        wall, cpu = time.perf_counter() - began, _own_cpu() - cpu
        assert all(row.failure is None for row in rows), rows
        return wall, cpu, others.seconds(cpu), worker.load().windows_done


def engine(name: str, run: Callable[..., RunEnded], songs: list[Song], out: Path, **more: Any) -> Row:
    """Measure a whole run with the bundled model on all cores."""
    moments: list[float] = []
    settings = Settings(model=MODEL, device="cpu", overwrite=True)

    def listen(event: Event) -> None:
        if isinstance(event, (SongStarted, SongEnded)):
            moments.append(event.time)

    others, began = OthersTime(), time.perf_counter()
    ended = run(songs, settings, str(out), listen, **more)
    whole = time.perf_counter() - began
    assert ended.exit_code == 0, ended
    cpu = ended.progress.cpu_seconds
    # Processor time of other programs while the songs ran: their total, scaled by this part of the run's time.
    wall = max(moments) - min(moments)
    return _row(name, wall, cpu, others.seconds(cpu) * wall / whole, whole=whole)


def _row(what: str, wall: float, cpu: float, others: float, device: float = 0.0, whole: float | None = None) -> Row:
    cores = available_cores()
    left = cores - others / wall
    bound = max(device, cpu / cores)
    return Row(
        what,
        round(wall, 2),
        round(bound, 2),
        round(wall / bound, 3),
        round(wall / max(device, cpu / left), 3) if left >= LEAST_CORES else None,
        round(cpu, 2),
        round(left, 2),
        round(whole if whole is not None else wall, 2),
        round(os.getloadavg()[0], 1),
    )


def make_songs(folder: Path, count: int, seconds: float) -> list[Song]:
    """Write stereo FLAC files at 44.1 kHz: noise with a melody, which costs as much to encode as music does."""
    folder.mkdir(parents=True)
    songs = []
    time_axis = np.arange(round(seconds * RATE)) / RATE
    for number in range(count):
        random = np.random.default_rng(number)
        pitch = 110 * 2 ** (np.floor(4 * time_axis) * 7 % 24 / 12)
        music = 0.2 * np.sin(2 * np.pi * pitch * time_axis) + 0.02 * random.standard_normal((2, time_axis.size))
        path = folder / f"{number:03d}.flac"
        write_audio(path, torch.from_numpy(music.astype(np.float32)), RATE)
        songs.append(Song(path.stem, str(path), seconds))
    return songs


def _own_cpu() -> float:
    times = os.times()
    return times.user + times.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=("simulated", "local", "ray"), help="default: all")
    parser.add_argument("--out", type=Path, help="folder for catalogue_efficiency.jsonl")
    args = parser.parse_args()
    wanted = args.only or ["simulated", "local", "ray"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        songs = make_songs(folder / "songs", args.songs, args.seconds)
        print(
            f"{'':<10}{'wall':>8}{'bound':>8}{'ratio':>7}{'with the cores left':>21}{'cpu':>8}{'in all':>8}{'load':>6}"
        )
        for _ in range(args.rounds):
            if "simulated" in wanted:
                rows.append(_show(simulated(songs, folder / "simulated")))
            if "local" in wanted:
                rows.append(_show(engine("local", run_local, songs, folder / "local")))
            if "ray" in wanted:
                from metatasnet_fast.catalogue.ray_engine import run_ray

                rows.append(_show(engine("ray", run_ray, songs, folder / "ray")))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / "catalogue_efficiency.jsonl", "a") as file:
            for row in rows:
                file.write(json.dumps({**asdict(row), **describe(torch.device("cpu"))}) + "\n")


def _show(row: Row) -> Row:
    left = "too few" if row.ratio_with_cores_left is None else f"{row.ratio_with_cores_left:.2f}"
    print(
        f"{row.what:<10}{row.wall:>8.1f}{row.bound:>8.1f}{row.ratio:>7.2f}{left:>21}"
        f"{row.cpu_seconds:>8.1f}{row.whole_seconds:>8.1f}{row.load_average:>6.1f}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
