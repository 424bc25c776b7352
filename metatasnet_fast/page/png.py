"""PNG files of levels in colour, without a library.

Sources: W3C, "Portable Network Graphics (PNG) Specification (Second Edition)", 2003; the colours are nine points of magma by
van der Walt and Smith (CC0): even steps in level look like even steps in brightness, also to the colour-blind and in grey.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["encode_png", "magma"]

MAGMA = ("000004", "1c1044", "4f127b", "812581", "b5367a", "e55064", "fb8761", "fec287", "fcfdbf")


def magma() -> npt.NDArray[np.uint8]:
    """Return (256, 3) colours, as red, green, blue."""
    points = np.array([list(bytes.fromhex(colour)) for colour in MAGMA], float)
    places = np.linspace(0, 255, len(MAGMA))
    channels = [np.interp(np.arange(256), places, points[:, channel]) for channel in range(3)]
    colours: npt.NDArray[np.uint8] = np.stack(channels, 1).round().astype(np.uint8)
    return colours


def encode_png(levels: Tensor) -> bytes:
    """Encode (rows, columns) uint8 levels as a PNG of one byte a pixel, with :func:`magma` as its palette."""
    rows, columns = levels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    # Every row begins with the number of its filter: 0 for none.
    lines = np.pad(levels.numpy(), ((0, 0), (1, 0))).tobytes()
    chunks = [(b"IHDR", header), (b"PLTE", magma().tobytes()), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
