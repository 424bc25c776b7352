"""A catalogue to try things on: songs of many formats, layouts and lengths, and files that are broken in many ways.

Made again on every machine within seconds, with the same samples every time. Where the environment variable
METATASNET_SONGS names a folder of songs (one folder each, with drums, bass, other and vocals), the songs are cut from
those; otherwise from generated music and the excerpt that comes with the package.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from metatasnet_fast.audio import AudioWriter, read_audio

from . import damage

__all__ = ["SONGS", "Corpus", "Entry", "make_corpus"]

SONGS = "METATASNET_SONGS"

Samples = npt.NDArray[np.float32]

SUBTYPES = {"wav": ("int16", "int24", "float32"), "flac": ("int16", "int24"), "mp3": ("mp3",), "ogg": ("vorbis",)}
FORMATS = ("wav", "flac", "mp3", "ogg", "m4a")
CHANNELS = (2, 1, 6)
RATES = (44100, 48000, 16000, 32000, 22050, 44100, 8000, 96000)
FEW_RATES = {"mp3": 48000, "m4a": 48000}
"""The highest rate that a format holds."""

SHORTEST = (1, 2, 19, 160, 1023)
"""Samples."""

BLOCK = 2**16


@dataclass(frozen=True)
class Entry:
    """A line of the manifest: what is there, and what must become of it."""

    id: str
    path: Path
    what: str
    expected: str
    """``done``, or the type of the failure."""


@dataclass(frozen=True)
class Corpus:
    folder: Path
    entries: tuple[Entry, ...]

    @property
    def good(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.expected == "done")

    @property
    def broken(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.expected != "done")

    def write_manifest(self, path: Path, entries: Iterable[Entry] | None = None) -> Path:
        """JSONL with ``uri`` and ``id``."""
        chosen = self.entries if entries is None else entries
        path.write_text("".join(json.dumps({"uri": str(e.path), "id": e.id}) + "\n" for e in chosen))
        return path


def make_corpus(folder: Path, songs: int, longest: float, broken: int, flawed: int = len(damage.FLAWS)) -> Corpus:
    """Write a catalogue.

    Args:
        songs: good files, at least one of each format and layout if there are 13 or more.
        longest: seconds of the longest; most are much shorter.
        broken: files that must fail; the ways of breaking take turns.
        flawed: files with damage that leaves something to separate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    material = _material()
    random = np.random.default_rng(8)
    entries = [_song(folder, number, songs, longest, material, random) for number in range(songs)]
    spare = material[0][:, : 3 * 44100]
    for number, (what, (flaw, _)) in zip(range(flawed), itertools.cycle(damage.FLAWS.items()), strict=False):
        name = f"flawed-{number:03d}"
        entries.append(Entry(name, flaw(folder, name, spare), what, "done"))
    ways = damage.possible_here()
    for number, (what, (way, expected)) in zip(range(broken), itertools.cycle(ways.items()), strict=False):
        name = f"broken-{number:03d}"
        entries.append(Entry(name, way(folder, name, spare), what, expected))
    # Good and broken files side by side, as in any folder.
    order = np.random.default_rng(9).permutation(len(entries))
    return Corpus(folder, tuple(entries[i] for i in order))


def _song(
    folder: Path, number: int, songs: int, longest: float, material: list[Samples], random: np.random.Generator
) -> Entry:
    format = FORMATS[number % len(FORMATS)]
    channels = CHANNELS[number // len(FORMATS) % len(CHANNELS)]
    if format == "mp3":
        channels = min(channels, 2)
    rate = min(RATES[int(random.integers(len(RATES)))], FEW_RATES.get(format, 192000))
    if number < len(SHORTEST):
        frames = SHORTEST[number]
    elif number == songs - 1:
        frames = int(longest * rate)
    else:
        # Few are long, as many last a tenth of a second as one second.
        frames = int(rate * 0.05 * (longest / 8 / 0.05) ** float(random.random()))
    subtypes = SUBTYPES.get(format, ("",))
    subtype = subtypes[int(random.integers(len(subtypes)))]
    path = folder / f"song-{number:03d}.{format}"
    source = material[number % len(material)]
    blocks = _layout(source, channels, frames, first=int(random.integers(source.shape[1])))
    if format == "m4a":
        _write_aac(path, blocks, rate, channels)
    else:
        with AudioWriter(path, rate, channels, subtype=subtype) as writer:
            for block in blocks:
                writer.write(torch.from_numpy(block))
    return Entry(path.stem, path, f"{format} {subtype} {channels} x {frames} at {rate} Hz", "done")


def _layout(source: Samples, channels: int, frames: int, first: int) -> Iterable[Samples]:
    """Blocks (channels, n) of the stereo source from a sample on, around and around; 5.1 is mixed from left and right."""
    mix = {
        1: [[0.5, 0.5]],
        2: [[1, 0], [0, 1]],
        6: [[0.8, 0], [0, 0.8], [0.4, 0.4], [0.1, 0.1], [0.3, -0.2], [-0.2, 0.3]],
    }
    matrix = np.array(mix[channels], np.float32)
    for start in range(0, frames, BLOCK):
        places = (first + np.arange(start, min(start + BLOCK, frames))) % source.shape[1]
        yield np.ascontiguousarray(matrix @ source[:, places])


def _write_aac(path: Path, blocks: Iterable[Samples], rate: int, channels: int) -> None:
    import av

    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        for block in blocks:
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _material() -> list[Samples]:
    """Stereo music at 44.1 kHz, (2, samples) each."""
    folder = os.environ.get(SONGS)
    if folder:
        stems = ("drums", "bass", "other", "vocals")
        found = sorted(song for song in Path(folder).iterdir() if (song / "drums.ogg").is_file())
        assert found, f"{SONGS}={folder} holds no folder with drums.ogg; name one that does, or none."
        return [sum(_beginning(song / f"{stem}.ogg") for stem in stems) for song in found]
    excerpt = resources.files("metatasnet_fast").joinpath("assets/demo/sodium-excerpt.ogg")
    with resources.as_file(excerpt) as path:
        return [_generated(0), _beginning(path), _generated(1)]


def _beginning(path: Path, seconds: int = 40) -> Samples:
    """What follows the first twenty seconds of a song, where it has them: most begin with less than all instruments."""
    samples = read_audio(path).samples.numpy()
    first = max(0, min(20 * 44100, samples.shape[1] - seconds * 44100))
    return np.ascontiguousarray(samples[:, first : first + seconds * 44100])


def _generated(seed: int) -> Samples:
    """Ten seconds of chords, a bass and a noisy beat."""
    random = np.random.default_rng(seed)
    time = np.arange(10 * 44100) / 44100
    beat = np.exp(-12 * (time % 0.5)) * random.standard_normal((2, time.size))
    bass = np.sin(2 * np.pi * 55 * 2 ** (np.floor(time / 2.5) / 12) * time)
    chord: Callable[[float], npt.NDArray[np.float64]] = lambda pitch: np.sin(2 * np.pi * pitch * time)  # noqa: E731
    left, right = (sum(chord(p) for p in random.uniform(150, 900, 4)) for _ in range(2))
    music = 0.1 * beat + 0.15 * bass + 0.04 * np.stack([left, right])
    return music.astype(np.float32)
