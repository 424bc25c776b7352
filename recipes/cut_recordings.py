"""Cut recordings of one instrument into tracks of which only that stem is known.

    python recipes/cut_recordings.py /usr/share/games/fretsonfire/data/songs/*/*/guitar.ogg --stem other --out TRACKS

TRACKS/train/PARENT-FILE-NUMBER holds the stem and a track.json, which keeps the other stems out of the loss; pieces in which
the instrument sounds for less than half of the time are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile as sf

from metatasnet_fast import INSTRUMENTS

AUDIBLE = 0.01
"""Least deviation of a second that sounds, relative to the loudest one."""


def cut_recording(path: Path, args: argparse.Namespace) -> int:
    """Write the pieces of a recording. Return their number."""
    audio, rate = sf.read(path, dtype="float32", always_2d=True)
    step, written = int(args.seconds * rate), 0
    level = np.array([np.sqrt(np.square(audio[at : at + rate]).mean()) for at in range(0, len(audio), rate)])
    sounding = np.repeat(level > AUDIBLE * level.max(initial=0.0), rate)[: len(audio)]
    for number, start in enumerate(range(0, len(audio) - step // 2, step)):
        if sounding[start : start + step].mean() < 0.5:
            continue
        name = f"{path.parent.name}-{path.stem}-{number:02d}".replace(" ", "_")
        folder = args.out / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        sf.write(folder / f"{args.stem}.flac", audio[start : start + step], rate, subtype="PCM_16")
        unknown = [stem for stem in INSTRUMENTS if stem != args.stem]
        (folder / "track.json").write_text(json.dumps({"unknown": unknown}), "utf-8")
        written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", metavar="FILE", type=Path, nargs="+")
    parser.add_argument("--stem", choices=INSTRUMENTS, required=True)
    parser.add_argument("--out", metavar="TRACKS", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a piece; tracks are drawn equally often")
    args = parser.parse_args()
    missing = [path for path in args.recordings if not path.is_file()]
    if missing:
        raise SystemExit(f"{missing[0]} is not there: check the path.")
    for path in args.recordings:
        print(f"{path.parent.name}/{path.name}: {cut_recording(path, args)} pieces")


if __name__ == "__main__":
    main()
