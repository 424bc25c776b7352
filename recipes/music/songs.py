"""Read parts of songs with stems, and know which part of a song is kept out of the training."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from scipy.signal import resample_poly

__all__ = ["held_part", "song_vocals"]

HELD_SECONDS = 32


def held_part(length: int, rate: int) -> tuple[int, int]:
    """Return the first sample of the part that is kept out of the training, and the first sample behind it: 32 s from
    45% of a song of ``length`` samples."""
    begin = int(0.45 * length)
    return begin, min(length, begin + HELD_SECONDS * rate)


def song_vocals(rng: np.random.Generator, songs: Sequence[Path], length: int, rate: int) -> NDArray[np.float32]:
    """Return ``length`` samples, or fewer, of a song's vocals (2, n), up to four semitones higher or lower.

    Draw five places in the songs, all outside :func:`held_part`, and take the one with the most singing. ``rate`` is the
    sampling rate of the songs in hertz.
    """
    best, most = np.zeros((2, length), np.float32), -1.0
    for _ in range(5):
        song = songs[int(rng.integers(len(songs)))]
        speed = Fraction(2 ** (rng.uniform(-4, 4) / 12)).limit_denominator(40)
        with sf.SoundFile(next(song.glob("vocals.*"))) as file:
            if file.samplerate != rate:
                raise SystemExit(f"{file.name} has {file.samplerate} Hz: convert it to {rate} Hz.")
            begin, end = held_part(len(file), rate)
            first, last = [(0, begin), (end, len(file))][int(rng.integers(2))]
            count = min(int(length * speed), last - first)
            file.seek(first + int(rng.integers(last - first - count + 1)))
            audio = file.read(count, dtype="float32", always_2d=True).T
        if audio.shape[1] < rate:
            continue
        seconds = audio[:, : count // rate * rate].reshape(len(audio), -1, rate)
        singing = float((np.square(seconds).mean((0, 2)) > 1e-5).mean())
        if singing > most:
            moved = resample_poly(audio, speed.denominator, speed.numerator, axis=1).astype(np.float32)
            best, most = np.broadcast_to(moved, (2, moved.shape[1])), singing
    return best
