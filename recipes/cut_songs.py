"""Cut songs with stems into tracks for `metatasnet-fast prepare --stems`, and keep a part of each song out of the training.

    python recipes/cut_songs.py SONGS --out TRACKS --test sodium --bass francium lithium

SONGS holds one folder per song with drums, bass, other and vocals. TRACKS/train gets pieces of each song, TRACKS/valid
the 32 s that begin at 45% of it, TRACKS/test the songs that are never trained on, whole. In a song that --bass does not
name, a bass line may be hidden in `other`. So its `track.json` declares both stems unknown, and no loss counts them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile as sf
from music.songs import held_part
from numpy.typing import NDArray

from metatasnet_fast import INSTRUMENTS


def read_song(folder: Path) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Return the stems (n, channels), cut to the shortest, and their sampling rate in hertz."""
    files = [sf.read(next(folder.glob(f"{name}.*")), dtype="float32", always_2d=True) for name in INSTRUMENTS]
    length = min(len(audio) for audio, _ in files)
    return {name: audio[:length] for name, (audio, _) in zip(INSTRUMENTS, files, strict=True)}, files[0][1]


def write_track(folder: Path, stems: dict[str, NDArray[np.float32]], rate: int, unknown: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio in stems.items():
        sf.write(folder / f"{name}.flac", audio, rate, subtype="PCM_16")
    if unknown:
        (folder / "track.json").write_text(json.dumps({"unknown": unknown}), "utf-8")


def cut_song(folder: Path, args: argparse.Namespace) -> None:
    stems, rate = read_song(folder)
    length = len(stems["drums"])
    unknown = [] if folder.name in args.bass else ["bass", "other"]
    if folder.name in args.test:
        write_track(args.out / "test" / folder.name, stems, rate, [])
        return
    begin, end = held_part(length, rate)
    write_track(args.out / "valid" / folder.name, {n: x[begin:end] for n, x in stems.items()}, rate, unknown)
    step = int(args.seconds * rate)
    for part, (first, last) in {"a": (0, begin), "b": (end, length)}.items():
        for number, start in enumerate(range(first, max(first + 1, last - step // 2), step)):
            stop = min(last, start + step)
            piece = {name: audio[start:stop] for name, audio in stems.items()}
            write_track(args.out / "train" / f"{folder.name}-{part}{number:02d}", piece, rate, unknown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs", metavar="SONGS", type=Path)
    parser.add_argument("--out", metavar="TRACKS", type=Path, required=True)
    parser.add_argument("--test", nargs="*", default=[], help="songs to leave out of the training")
    parser.add_argument("--bass", nargs="*", default=[], help="songs whose whole bass is in the stem bass")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a piece; tracks are drawn equally often")
    args = parser.parse_args()
    for folder in sorted(path for path in args.songs.iterdir() if path.is_dir()):
        cut_song(folder, args)


if __name__ == "__main__":
    main()
