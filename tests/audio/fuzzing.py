"""Read mutated files in a process of its own: `python -m tests.audio.fuzzing FOLDER FIRST STOP` prints a line for each.

`FOLDER` holds the files that are mutated. A line is the number of the mutation and what came of it: `read`, `refused`, or the
type of an error that is none of ours. The number is printed before the file is read, so that a crash or a hang has one.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from metatasnet_fast.audio import open_audio, read_tags
from metatasnet_fast.errors import MetaTasNetError

PATIENCE = 60.0
"""Seconds for one file, after which the process ends."""

LONGEST = 60.0
"""Seconds of audio after which a file is left: a damaged header may announce hours of silence."""


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Change, cut, move or double some bytes, more often near the start, where the headers are."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        size = len(found)
        at = int(rng.integers(0, min(size, 256) if rng.random() < 0.5 else size))
        length = int(rng.integers(1, 9))
        kind = rng.integers(0, 7)
        if kind == 0:
            found[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            found[at : at + length] = bytes([int(rng.choice([0, 0xFF, 0x7F, 0x80]))]) * length
        elif kind == 2:
            found[at : at + length] = rng.bytes(length)
        elif kind == 3:
            del found[at : at + int(rng.integers(1, 200))]
        elif kind == 4:
            del found[max(1, at) :]
        elif kind == 5:
            found[at:at] = found[max(0, at - 100) : at + 100]
        else:
            found += rng.bytes(int(rng.integers(1, 500)))
        found = found or bytearray(b"\0")
    return bytes(found)


def outcome(path: Path) -> str:
    try:
        read_tags(path)
        with open_audio(path) as stream:
            for block in stream:
                if not bool(block.isfinite().all()):
                    return "not finite"
                if stream.frames_read > LONGEST * stream.sample_rate:
                    break
        return "read"
    except MetaTasNetError as error:
        return "refused" if "\n" not in str(error) and str(error).endswith(".") else f"no sentence: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(folder: str, first: int, stop: int) -> None:
    originals = sorted(Path(folder).iterdir())
    with tempfile.TemporaryDirectory() as place:
        for number in range(first, stop):
            original = originals[number % len(originals)]
            path = Path(place, original.name)
            path.write_bytes(mutated(original.read_bytes(), np.random.default_rng(number)))
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            print(number, end=" ", flush=True)
            print(original.name, outcome(path).encode("ascii", "backslashreplace").decode(), flush=True)
            os.remove(path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
