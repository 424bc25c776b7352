"""Measure what a second run, ``status`` and ``verify`` cost when all songs are done.

    python -m bench.catalogue_scale [--songs 1000 10000 50000] [--out DIR]

Makes a destination with so many songs, whose stems have four bytes. Runs each command in a process of its own, and
prints its processor seconds (user and system, with its children), seconds and peak memory. A line for a million songs
extends the last two measurements of each command in a straight line: it is a prediction.
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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.catalogue import Outcome, Settings, Song, Status
from metatasnet_fast.catalogue.destination import Destination, LedgerWriter, song_folder
from metatasnet_fast.catalogue.inputs import Source
from metatasnet_fast.catalogue.outcome import Result, StemFile
from metatasnet_fast.catalogue.worker import find_identity
from metatasnet_fast.model import bundled_models

MODEL = next(iter(bundled_models()))
STEM = b"stem"


@dataclass
class Row:
    """Cost of one command; times in seconds, memory in bytes."""

    command: str
    songs: int
    cpu_seconds: float
    wall_seconds: float
    peak_memory: int


def make(folder: Path, count: int) -> None:
    """Write a manifest with songs of ten bytes, and results that say that all songs are done."""
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


def measure(command: str, folder: Path, count: int) -> Row:
    words = {
        "run": ["run", "songs.csv", "--out", "out", "--device", "cpu"],
        "dry-run": ["run", "songs.csv", "--out", "out", "--device", "cpu", "--dry-run"],
        "status": ["status", "out"],
        "verify": ["verify", "out"],
    }[command]
    program = [sys.executable, "-m", "metatasnet_fast", "catalogue", *words]
    began = time.perf_counter()
    process = subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    wall = time.perf_counter() - began
    row = Row(command, count, round(usage.ru_utime + usage.ru_stime, 2), round(wall, 2), usage.ru_maxrss * 1024)
    print(
        f"{command:<8} {count:>9} songs {row.cpu_seconds:>8.2f} CPU s {wall:>8.2f} s {row.peak_memory / 2**20:>7.0f} MiB"
    )
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--out", type=Path, help="folder for catalogue_scale.jsonl")
    args = parser.parse_args(arguments)
    rows: list[Row] = []
    for count in args.songs:
        with tempfile.TemporaryDirectory(prefix="metatasnet-fast-bench-") as scratch:
            make(Path(scratch), count)
            rows += [measure(command, Path(scratch), count) for command in ("run", "status", "verify", "dry-run")]
    for command in ("run", "status", "verify", "dry-run") if len(args.songs) > 1 else ():
        first, last = [row for row in rows if row.command == command][-2:]
        slope = (last.cpu_seconds - first.cpu_seconds) / (last.songs - first.songs)
        print(f"{command:<8} {10**6:>9} songs {last.cpu_seconds + slope * (10**6 - last.songs):>8.0f} CPU s predicted")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / "catalogue_scale.jsonl", "a") as file:
            for row in rows:
                file.write(json.dumps({**asdict(row), **describe(torch.device("cpu"))}) + "\n")


if __name__ == "__main__":
    main()
