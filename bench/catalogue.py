"""Measure a catalogue: the share of the machine that a run uses, and what a command costs when all songs are done.

    python -m bench.catalogue efficiency [--songs 16] [--seconds 60] [--rounds 3] [--out DIR]
    python -m bench.catalogue scale [--songs 1000 10000 50000] [--out DIR]

``efficiency`` measures how close the pipeline comes to its bound, and what Ray costs, in three runs:

simulated    The device sleeps for as long as reading and writing take on all cores. The ratio is the wall-clock time
             over the time that the slowest stage takes alone. One process does all work.
local        The bundled network runs on the CPU. The ratio is the wall-clock time, from the start of the first song to
             the end of the last one, over the least time in which all cores can do the run's processor seconds.
ray          The same songs go through Ray on this machine, in turns with ``local``.

The column "in all" includes the start of the processes, and in the run ``ray`` the start of Ray and its actor.

Other programs take processor time too, and then no pipeline can reach its bound. So each row has a second ratio, for
the cores that were free: the number of cores minus the processor time per second that other programs took. A row has no
second ratio if less than half a core was free.

``scale`` makes a destination with a given number of songs that are done; their stems have four bytes. It runs ``run``,
``status``, ``verify`` and ``run --dry-run`` in a process each, and prints the processor seconds (user and system, with
children), the seconds and the peak memory. Then it prints a prediction for a million songs: a straight line through the
last two measurements of each command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metatasnet_fast.audio import write_audio
from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.catalogue import Event, Outcome, RunEnded, Settings, Song, SongEnded, SongStarted, Status
from metatasnet_fast.catalogue.cores import CorePlan, available_cores
from metatasnet_fast.catalogue.destination import Destination, LedgerWriter, song_folder
from metatasnet_fast.catalogue.inputs import Source
from metatasnet_fast.catalogue.local import run_local
from metatasnet_fast.catalogue.outcome import Result, StemFile
from metatasnet_fast.catalogue.worker import Worker, find_identity
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import bundled_models

MODEL = next(iter(bundled_models()))
RATE = 44100
LEAST_CORES = 0.5
ENGINES = ("simulated", "local", "ray")
STEM = b"stem"
COMMANDS = {
    "run": ["run", "songs.csv", "--out", "out", "--device", "cpu"],
    "status": ["status", "out"],
    "verify": ["verify", "out"],
    "dry-run": ["run", "songs.csv", "--out", "out", "--device", "cpu", "--dry-run"],
}


@dataclass
class Row:
    """One measurement; times in seconds. ``bound`` is the lower limit of ``wall``, ``ratio`` is wall over bound.

    ``ratio_with_cores_left`` is the ratio to the bound for the cores that were free; None if too few were free.
    """

    what: str
    wall: float
    bound: float
    ratio: float
    ratio_with_cores_left: float | None
    cpu_seconds: float
    cores_left: float
    """Cores that other programs left free, on average over ``wall``."""
    whole_seconds: float
    """Seconds of the whole run, with the start of the engine and its processes."""
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
    """A clock of the processor seconds that other programs took since the clock was made.

    It reads /proc/stat (Linux); on other systems it always shows 0.
    """

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
    """Separate the songs with one worker. Return the wall-clock seconds, the processor seconds of this process and of
    all others, and the number of windows."""
    settings = Settings(model="simulated", device="cpu", batch_size=4, overwrite=True)
    # A process that waits for a GPU uses no core, but needs one as soon as the GPU is done. So does this sleep.
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
    # Estimate the processor time of other programs while the songs ran: their total, times this share of the run.
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


def efficiency(args: argparse.Namespace) -> list[Row]:
    """Measure and print the runs of ``args.only`` in alternating rounds."""
    wanted = args.only or ENGINES
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
    return rows


def _show(row: Row) -> Row:
    left = "too few" if row.ratio_with_cores_left is None else f"{row.ratio_with_cores_left:.2f}"
    print(
        f"{row.what:<10}{row.wall:>8.1f}{row.bound:>8.1f}{row.ratio:>7.2f}{left:>21}"
        f"{row.cpu_seconds:>8.1f}{row.whole_seconds:>8.1f}{row.load_average:>6.1f}",
        flush=True,
    )
    return row


@dataclass
class Cost:
    """Cost of one command over ``songs`` songs that are done; times in seconds, memory in bytes."""

    command: str
    songs: int
    cpu_seconds: float
    wall_seconds: float
    peak_memory: int


def make_done(folder: Path, count: int) -> None:
    """Write into ``folder`` a manifest, its songs of ten bytes each, and results that say that all songs are done."""
    old = time.time() - 3600
    identity = find_identity(Settings(MODEL, device="cpu"))
    stem_sha256 = hashlib.sha256(STEM).hexdigest()
    audio = {"duration": 200.0, "sample_rate": 44100, "channels": 2, "samples": 8_820_000}
    files = {name: StemFile(f"{name}.flac", len(STEM), stem_sha256) for name in ("drums", "bass", "other", "vocals")}
    out = folder / "out"
    with open(folder / "songs.csv", "w") as manifest, closing(LedgerWriter(Destination(str(out)), "made")) as ledger:
        manifest.write("id,uri,duration,bytes\n")
        for number in range(count):
            content = b"x%09d" % number
            path = folder / "in" / f"{number // 1000:04d}" / f"{number:07d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path, (old, old))
            song = Song(f"song{number:07d}", str(path))
            manifest.write(f"{song.id},{song.uri},200,10\n")
            sha256, stamp = hashlib.sha256(content).hexdigest(), Source(song.uri).stamp().text
            input = {"sha256": sha256, "stamp": stamp, "bytes": 10, "codec": "wav"}
            made_by = {"version": "0", "backend": "none", "device": "cpu", "precision": "float32"}
            gains = {name: [1.0, 1.0] for name in files}
            seconds = {"fetch": 0.1, "read": 1.0, "separate": 9.0, "write": 2.0}
            result = Result(song.id, song.uri, input, identity, audio, files, gains, seconds, made_by)
            place = out / song_folder(song.id)
            place.mkdir(parents=True)
            for file in files.values():
                (place / file.path).write_bytes(STEM)
            (place / result.name).write_text(result.to_json())
            ledger.add(
                Outcome(song.id, song.uri, Status.done, identity.key, content=sha256, stamp=stamp, duration=200.0)
            )


def measure(command: str, folder: Path, count: int) -> Cost:
    program = [sys.executable, "-m", "metatasnet_fast", "catalogue", *COMMANDS[command]]
    began = time.perf_counter()
    process = subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    wall = time.perf_counter() - began
    row = Cost(command, count, round(usage.ru_utime + usage.ru_stime, 2), round(wall, 2), usage.ru_maxrss * 1024)
    print(
        f"{command:<8} {count:>9} songs {row.cpu_seconds:>8.2f} CPU s {wall:>8.2f} s {row.peak_memory / 2**20:>7.0f} MiB"
    )
    return row


def scale(args: argparse.Namespace) -> list[Cost]:
    """Measure and print every command at every number of songs; print predictions for a million songs."""
    rows: list[Cost] = []
    for count in args.songs:
        with tempfile.TemporaryDirectory(prefix="metatasnet-fast-bench-") as scratch:
            make_done(Path(scratch), count)
            rows += [measure(command, Path(scratch), count) for command in COMMANDS]
    for command in COMMANDS if len(args.songs) > 1 else ():
        first, last = [row for row in rows if row.command == command][-2:]
        slope = (last.cpu_seconds - first.cpu_seconds) / (last.songs - first.songs)
        print(f"{command:<8} {10**6:>9} songs {last.cpu_seconds + slope * (10**6 - last.songs):>8.0f} CPU s predicted")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.catalogue", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    pipeline = what.add_parser("efficiency", help="the share of the machine that a run uses")
    pipeline.add_argument("--songs", type=int, default=16)
    pipeline.add_argument("--seconds", type=float, default=60.0, help="length of each")
    pipeline.add_argument("--rounds", type=int, default=3)
    pipeline.add_argument("--only", action="append", choices=ENGINES, help="default: all")
    pipeline.set_defaults(measure=efficiency)
    commands = what.add_parser("scale", help="what a command costs when all songs are done")
    commands.add_argument("--songs", type=int, nargs="+", default=[1000, 10_000, 50_000])
    commands.set_defaults(measure=scale)
    for each in (pipeline, commands):
        each.add_argument("--out", type=Path, help="folder for catalogue_efficiency.jsonl or catalogue_scale.jsonl")
    args = parser.parse_args(arguments)
    rows = args.measure(args)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / f"catalogue_{args.what}.jsonl", "a") as file:
            for row in rows:
                file.write(json.dumps({**asdict(row), **describe(torch.device("cpu"))}) + "\n")


if __name__ == "__main__":
    main()
