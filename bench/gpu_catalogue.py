"""A catalogue on one device: songs an hour with the stems discarded and as FLAC, and what happens when memory runs out.

    python -m bench.gpu_catalogue --device cuda --out DIR

Generates the songs, puts them through the catalogue's worker in this process, and writes DIR/catalogue.jsonl, one row for each
way. ``device_busy_share`` is the time between the device's own events around each batch, over wall-clock time. The network has
the authors' size and weights by formula; the first songs go through before the clock starts. Exit code 1 if a song failed, a
batch was not halved when it had to be, or, on a GPU, the device was busy less than 80 % of the time with the stems discarded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatasnet_fast.benchmark import recipe
from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.benchmark.suite import TINY
from metatasnet_fast.catalogue import Notice, Outcome, Settings, Song, Status
from metatasnet_fast.catalogue.cores import available_cores
from metatasnet_fast.catalogue.worker import Worker
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.separation.batches import LIVE_TENSORS

RATE, CHANNELS = 44100, 2
LEAST_BUSY = 0.8
"""Share of the time in which a GPU must work while the stems are discarded."""

FITS = 4
"""Windows that a GPU's memory holds when it is to run out."""


@dataclass
class Row:
    """``real_time_factor`` is audio-hours an hour; times in seconds."""

    outputs: str
    songs: int
    audio_hours: float
    wall_seconds: float
    real_time_factor: float
    device_busy_share: float
    stage_busy_share: dict[str, float]
    stage_seconds_per_song: dict[str, float]
    batch_size: int
    windows: int
    halvings: list[str]
    failed: list[str]
    cpu_seconds: float
    peak_memory_bytes: int
    peak_device_bytes: int
    worker: str
    machine: dict[str, Any]


class MemoryForOne:
    """An engine that has memory for one window: where memory has no limit that could be set."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.config = engine, engine.config

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        if mixes[0].shape[0] > 1:
            raise torch.OutOfMemoryError(f"out of memory, as asked for: {mixes[0].shape[0]} windows")
        return self.engine.separate(mixes, wanted)


def make_songs(folder: Path, count: int, seconds: float) -> list[Song]:
    """Different stereo songs of chords, beats and noise, 16-bit FLAC."""
    import soundfile as sf

    samples = round(seconds * RATE)
    generator = np.random.default_rng(0)
    base = 0.02 * generator.standard_normal((samples, CHANNELS), dtype=np.float32)
    clock = np.arange(samples, dtype=np.float32) / RATE
    for pitch in generator.uniform(60, 2000, 6):
        base += (0.06 * np.sin(2 * np.pi * pitch * clock) * (0.6 + 0.4 * np.sin(pitch * clock / 50)))[:, None]

    def make(index: int) -> Song:
        path = folder / f"song-{index:03}.flac"
        sf.write(path, np.roll(base, index * 7919, axis=0) * (0.5 + 0.5 * index / count), RATE)
        return Song(path.stem, str(path), seconds)

    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(make, range(count)))


def measure(songs: Sequence[Song], settings: Settings, folder: Path, outputs: str) -> Row:
    """Put all songs through a worker whose first songs went through before."""
    halvings: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, Notice):
            halvings.append(event.text)

    cuda = torch.cuda.is_available() and settings.device != "cpu"
    with Worker(settings, str(folder), listener=listen, discard=outputs != "flac") as worker:
        device = worker._machinery.device
        if outputs == "out of memory":
            limit_memory(worker)
        else:
            list(worker.process(songs[: min(4, len(songs))]))
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        before, began = worker.load(), time.perf_counter()
        outcomes: list[Outcome] = list(worker.process(songs))
        wall, after = time.perf_counter() - began, worker.load()
        description = worker.describe()
    if cuda:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    hours = sum(outcome.duration for outcome in outcomes if outcome.status is Status.done) / 3600
    stages = {
        name: (stage.seconds - before.stages[name].seconds, stage.capacity) for name, stage in after.stages.items()
    }
    return Row(
        outputs=outputs,
        songs=len(songs),
        audio_hours=hours,
        wall_seconds=wall,
        real_time_factor=hours * 3600 / wall,
        device_busy_share=(after.device_busy_seconds - before.device_busy_seconds) / wall,
        stage_busy_share={name: seconds / capacity / wall for name, (seconds, capacity) in stages.items()},
        stage_seconds_per_song={name: seconds / len(songs) for name, (seconds, _) in stages.items()},
        batch_size=after.batch_size,
        windows=after.windows_done - before.windows_done,
        halvings=halvings,
        failed=[f"{outcome.id}: {outcome.error}" for outcome in outcomes if outcome.status is Status.failed],
        cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        peak_memory_bytes=after.peak_memory,
        peak_device_bytes=torch.cuda.max_memory_allocated(device) if cuda else 0,
        worker=description,
        machine=describe(device),
    )


def limit_memory(worker: Worker) -> None:
    """Leave the worker memory for a few windows only: really on a GPU, else by an engine that says so."""
    machinery = worker._machinery
    engine, device = machinery.engine, machinery.device
    if device.type != "cuda":
        machinery.batcher.engine = MemoryForOne(engine)
        return
    window = LIVE_TENSORS * 4 * engine.config.stages[-1].N * machinery.window.window * engine.precision.storage.itemsize
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.memory_reserved(device) + FITS * window
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)


def problems(rows: Sequence[Row]) -> list[str]:
    """What speaks against the rows, in sentences."""
    found = [f"{row.outputs}: {failure}" for row in rows for failure in row.failed]
    for row in rows:
        if row.outputs == "out of memory" and not row.halvings:
            found.append("Memory ran out, and no batch was halved.")
        if row.outputs == "discarded" and row.machine["device"] == "cuda" and row.device_busy_share < LEAST_BUSY:
            found.append(f"The device was busy {row.device_busy_share:.0%} of the time, not {LEAST_BUSY:.0%}.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--songs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--out", type=Path, required=True, help="folder; catalogue.jsonl is written there")
    parser.add_argument("--tiny", action="store_true", help="a small network and three short songs: tries the program")
    args = parser.parse_args(arguments)
    count, seconds = (3, 2.0) if args.tiny else (args.songs, args.seconds)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="metatasnet-fast-bench-") as scratch:
        folder = Path(scratch)
        recipe.network(TINY if args.tiny else MetaTasNetConfig()).save_pretrained(folder / "model")
        (folder / "songs").mkdir()
        songs = make_songs(folder / "songs", count, seconds)
        common = Settings(
            model=str(folder / "model"),
            device=args.device,
            backend=args.backend,
            dtype=args.dtype,
            batch_size=args.batch_size,
            overwrite=True,
        )
        few = Settings.from_dict({**common.to_dict(), "batch_size": 8 * FITS})
        for outputs, settings, chosen in (
            ("discarded", common, songs),
            ("flac", common, songs),
            ("out of memory", few, songs[: max(3, count // 8)]),
        ):
            rows.append(measure(chosen, settings, folder / outputs, outputs))
            write_rows(rows, args.out / "catalogue.jsonl")
            print(sentence(rows[-1]), flush=True)
    found = problems(rows)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


def write_rows(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")


def sentence(row: Row) -> str:
    return (
        f"{row.outputs}: {row.songs} songs, {row.audio_hours:.2f} h of audio in {row.wall_seconds:.1f} s, "
        f"{row.real_time_factor:.0f} h an hour; device busy {row.device_busy_share:.0%}; batches of {row.batch_size}"
        + (f", halved {len(row.halvings)} times" if row.halvings else "")
    )


if __name__ == "__main__":
    sys.exit(main())
