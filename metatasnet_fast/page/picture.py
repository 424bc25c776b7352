"""Spectrograms with a logarithmic frequency axis, as PNGs that are made without a library.

Sources: W3C, "Portable Network Graphics (PNG) Specification (Second Edition)", 2003; the
colours are nine points of magma by van der Walt and Smith (CC0): even steps in level look like even steps in brightness, also
to the colour-blind and in grey.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Axis", "RANGE_DB", "encode_png", "levels", "magma"]

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


WINDOW_SECONDS = 0.09
RANGE_DB = 60.0
"""Decibels from black to white."""

LOWEST, HIGHEST = 45.0, 18000.0
"""Hertz."""


@dataclass(frozen=True)
class Axis:
    """Logarithmic frequencies from ``lowest`` to ``highest``, hertz."""

    lowest: float
    highest: float

    @classmethod
    def of(cls, sample_rate: int) -> Axis:
        return cls(LOWEST, min(HIGHEST, sample_rate / 2))

    def edges(self, bands: int) -> Tensor:
        """Return the (bands + 1,) borders of bands of equal ratio, float64."""
        return torch.logspace(math.log10(self.lowest), math.log10(self.highest), bands + 1, dtype=torch.float64)

    def ticks(self) -> dict[str, float]:
        """Return the labels with their heights, from 0 at the bottom to 1 at the top."""
        wanted = {"100 Hz": 100.0, "1 kHz": 1000.0, "10 kHz": 10000.0}
        span = math.log(self.highest / self.lowest)
        return {label: math.log(f / self.lowest) / span for label, f in wanted.items() if f < self.highest}


def levels(signals: Mapping[str, Tensor], sample_rate: int, rows: int, columns: int) -> dict[str, Tensor]:
    """Return the spectrograms of (channels, samples) signals on one scale.

    Returns:
        for each signal (rows, columns) of levels from 0 to 255 as uint8, the highest band first. 255 is the loudest
        band of all signals, 0 is ``RANGE_DB`` below it.
    """
    axis = Axis.of(sample_rate)
    powers = {name: _band_powers(signal, sample_rate, axis.edges(rows), columns) for name, signal in signals.items()}
    loudest = max(float(power.max()) for power in powers.values()) or 1.0
    return {name: _scale(power / loudest).flip(0) for name, power in powers.items()}


def _scale(power: Tensor) -> Tensor:
    decibels = 10 * power.clamp(min=1e-30).log10()
    return ((decibels / RANGE_DB + 1).clamp(0, 1) * 255).round().to(torch.uint8)


def _band_powers(signal: Tensor, sample_rate: int, edges: Tensor, columns: int) -> Tensor:
    """Return the power in each band, (bands, columns), as the mean over channels.

    The running integral of the spectrum over frequency is read at the bands' edges, linearly interpolated, so that bands
    narrower than a bin get their share of it.
    """
    n_fft = 2 ** round(math.log2(WINDOW_SECONDS * sample_rate))
    hop = max(1, -(-signal.shape[1] // columns))
    window = torch.hann_window(n_fft)
    padded = torch.nn.functional.pad(signal.float(), (n_fft // 2, n_fft // 2 + hop))
    spectrum = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    power = spectrum.abs().square().double().mean(0)[:, :columns]
    integral = torch.nn.functional.pad(power.cumsum(0), (0, 0, 1, 0))
    at = (edges * n_fft / sample_rate + 0.5).clamp(0, power.shape[0] - 1e-6)
    low = at.floor().long()
    part = (at - low)[:, None]
    read: Tensor = integral[low] * (1 - part) + integral[low + 1] * part
    return read[1:] - read[:-1]
