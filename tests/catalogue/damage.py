"""Ways in which files of a catalogue are broken, each with what must become of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from metatasnet_fast.audio import write_audio

__all__ = ["FLAWS", "WAYS", "possible_here"]

Samples = npt.NDArray[np.float32]

Way: TypeAlias = Callable[[Path, str, Samples], Path]
"""Makes the file of a name in a folder from (2, n) samples at 44.1 kHz, and returns its path."""


def missing(folder: Path, name: str, samples: Samples) -> Path:
    return folder / f"{name}.flac"


def dangling_link(folder: Path, name: str, samples: Samples) -> Path:
    path = folder / f"{name}.wav"
    path.symlink_to(folder / "nowhere.wav")
    return path


def empty_file(folder: Path, name: str, samples: Samples) -> Path:
    return _file(folder / f"{name}.mp3", b"")


def text(folder: Path, name: str, samples: Samples) -> Path:
    return _file(folder / f"{name}.wav", b"Dear listener, the song moved to another shelf.\n" * 40)


def page(folder: Path, name: str, samples: Samples) -> Path:
    return _file(folder / f"{name}.mp3", b"<!doctype html><title>404 Not Found</title><p>No such song.</p>\n")


def noise(folder: Path, name: str, samples: Samples) -> Path:
    return _file(folder / f"{name}.flac", np.random.default_rng(5).bytes(20000))


def header_cut_off(folder: Path, name: str, samples: Samples) -> Path:
    path = _wave(folder, name, "wav", samples)
    return _file(path, path.read_bytes()[:20])


def index_cut_off(folder: Path, name: str, samples: Samples) -> Path:
    """An MP4 file has its index at the end: without it, nothing can be read."""
    from .corpus import _write_aac

    path = folder / f"{name}.m4a"
    _write_aac(path, [samples], 44100, 2)
    return _file(path, path.read_bytes()[: path.stat().st_size // 2])


def no_samples(folder: Path, name: str, samples: Samples) -> Path:
    path = _wave(folder, name, "wav", samples[:, :100])
    return _file(path, path.read_bytes()[:40] + struct.pack("<I", 0))


def directory(folder: Path, name: str, samples: Samples) -> Path:
    path = folder / f"{name}.wav"
    path.mkdir()
    return path


def silent_film(folder: Path, name: str, samples: Samples) -> Path:
    import av

    path = folder / f"{name}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shade in range(0, 250, 50):
            picture = np.full((64, 64, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def picture(folder: Path, name: str, samples: Samples) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" + bytes(range(64)) * 3 * 8)
    header = struct.pack(">IIBBBBB", 64, 8, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return _file(folder / f"{name}.ogg", content)


def forbidden(folder: Path, name: str, samples: Samples) -> Path:
    path = _wave(folder, name, "wav", samples)
    path.chmod(0)
    return path


def end_cut_off(folder: Path, name: str, samples: Samples) -> Path:
    path = _wave(folder, name, "wav", samples)
    return _file(path, path.read_bytes()[: path.stat().st_size * 97 // 100])


def third_cut_off(folder: Path, name: str, samples: Samples) -> Path:
    path = _wave(folder, name, "flac", samples)
    return _file(path, path.read_bytes()[: path.stat().st_size * 2 // 3])


def invalid_samples(folder: Path, name: str, samples: Samples) -> Path:
    holed = samples.copy()
    holed[:, 1000:1100] = np.nan
    path = folder / f"{name}.wav"
    import soundfile

    soundfile.write(path, holed.T, 44100, subtype="FLOAT")
    return path


def silence(folder: Path, name: str, samples: Samples) -> Path:
    return _wave(folder, name, "flac", np.zeros_like(samples))


def wrong_ending(folder: Path, name: str, samples: Samples) -> Path:
    """FLAC that calls itself MP3."""
    path = _wave(folder, name, "flac", samples)
    return path.rename(path.with_suffix(".mp3"))


def hole(folder: Path, name: str, samples: Samples) -> Path:
    path = _wave(folder, name, "mp3", samples)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = np.random.default_rng(6).bytes(2000)
    return _file(path, bytes(content))


WAYS: Mapping[str, tuple[Way, str]] = {
    "missing": (missing, "not_found"),
    "empty file": (empty_file, "empty"),
    "text": (text, "not_audio"),
    "noise": (noise, "not_audio"),
    "header cut off": (header_cut_off, "decode"),
    "index cut off": (index_cut_off, "decode"),
    "no samples": (no_samples, "empty"),
    "directory": (directory, "not_audio"),
    "silent film": (silent_film, "not_audio"),
    "picture": (picture, "not_audio"),
    "page": (page, "not_audio"),
    "dangling link": (dangling_link, "not_found"),
    "forbidden": (forbidden, "not_found"),
    "third cut off": (third_cut_off, "decode"),
}

FLAWS: Mapping[str, tuple[Way, str]] = {
    "end cut off": (end_cut_off, "done"),
    "invalid samples": (invalid_samples, "done"),
    "silence": (silence, "done"),
    "wrong ending": (wrong_ending, "done"),
    "hole": (hole, "done"),
}
"""Damage that leaves something to separate."""


def possible_here() -> dict[str, tuple[Way, str]]:
    """All ways; but the system's administrator may read everything."""
    administrator = hasattr(os, "geteuid") and os.geteuid() == 0
    return {name: way for name, way in WAYS.items() if not (administrator and name == "forbidden")}


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _wave(folder: Path, name: str, ending: str, samples: Samples) -> Path:
    return write_audio(folder / f"{name}.{ending}", torch.from_numpy(samples), 44100).path
