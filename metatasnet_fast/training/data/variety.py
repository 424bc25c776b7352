"""Variety: the ways in which training items may differ from the tracks they are cut from: speed, balance, level, tone, rests.

All of it is drawn for whole items and instruments, so that the stages of a network see one signal at several rates; and
only as a function of (seed, batch number), like the crops. Every item has its numbers whether they are used or not:
turning one
kind of variety on or off leaves the others, and the crops, as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .crops import uniforms

__all__ = ["NO_VARIETY", "Changes", "Variety", "draw_changes", "resample", "rest", "retune"]

TONE = (60.0, 200.0, 600.0, 1800.0, 4000.0, 8000.0)
"""Frequencies in Hz; the gains of a tone change are interpolated between them."""

MARGIN = 0.05
"""Seconds of audio that are read on both sides of a crop whose speed changes, as a resampler needs neighbours."""

FADE = 0.05
"""Seconds of a stem's fade before a rest, and of the fade after it."""

SILENT = 0.5
"""Share of the rests that are silent; in the others the stem is only quieter."""

QUIETER = (6.0, 30.0)
"""By how many dB."""

SPAN = (0.3, 1.5)
"""Length of a rest, in lengths of the item."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Variety:
    """Amounts by which items may vary; nothing by default.

    Args:
        speed: largest relative change of speed, which changes pitch and tempo together: 0.1 for 0.9 to 1.1.
        balance: standard deviation in dB of the level of each stem.
        level: largest change in dB of the level of an item.
        tone: standard deviation in dB of the gains at six frequencies with which half of the stems are filtered.
        rests: probability with which a stem rests, or is quieter, in a part of an item.
    """

    speed: float = 0.0
    balance: float = 0.0
    level: float = 0.0
    tone: float = 0.0
    rests: float = 0.0

    def __bool__(self) -> bool:
        return self != NO_VARIETY


NO_VARIETY = Variety()


@dataclass(frozen=True)
class Changes:
    """The changes of a batch's items, for the S instruments of a cache."""

    speeds: Floats
    """(items,): how many input samples become one."""
    gains: Floats
    """(items, S)."""
    tones: Floats
    """(items, S, len(TONE)): gains in dB; 0 for stems that do not change."""
    rests: Floats
    """(items, S, 3): middle and length in lengths of the item, and gain; gain 1 for stems that do not rest."""

    def take(self, start: int, stop: int) -> Changes:
        """Return the changes of some of the items."""
        part = slice(start, stop)
        return Changes(self.speeds[part], self.gains[part], self.tones[part], self.rests[part])


def draw_changes(seed: int, number: int, variety: Variety, items: int, sources: int) -> Changes:
    """Draw what batch ``number`` of ``seed`` differs by."""
    each = 2 + sources * (2 + 1 + 2 * len(TONE) + 5)
    drawn = uniforms(seed, number, items * each, stream=1).reshape(items, each)
    speed, level, rest_of_it = drawn[:, 0], drawn[:, 1], drawn[:, 2:].reshape(items, sources, -1)
    balance, half = _normal(rest_of_it[..., :2])[..., 0], rest_of_it[..., 2]
    tones = _normal(rest_of_it[..., 3 : 3 + 2 * len(TONE)])
    rests, silent, depth, middle, length = np.moveaxis(rest_of_it[..., 3 + 2 * len(TONE) :], -1, 0)
    decibels = variety.balance * balance + variety.level * (2 * level - 1)[:, None]
    quieter = QUIETER[0] + depth * (QUIETER[1] - QUIETER[0])
    gain = np.where(silent < SILENT, 0.0, 10 ** (-quieter / 20))
    return Changes(
        speeds=(1 + variety.speed) ** (2 * speed - 1),
        gains=10 ** (decibels / 20),
        tones=variety.tone * tones * (half < 0.5)[..., None],
        rests=np.stack(
            [middle, SPAN[0] + length * (SPAN[1] - SPAN[0]), np.where(rests < variety.rests, gain, 1.0)], axis=-1
        ),
    )


def _normal(pairs: Floats) -> Floats:
    """Turn uniform numbers (..., 2 n) into standard normal ones (..., n), by Box and Muller."""
    first, second = pairs[..., ::2], pairs[..., 1::2]
    found: Floats = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    return found


def resample(x: Tensor, samples: int, margin: int, speed: float) -> Tensor:
    """Play a signal (..., T) at ``speed``; return ``samples`` samples, after dropping ``margin`` samples on both sides.

    Band-limited: the first ``(samples + 2 margin) speed`` samples are transformed, and their spectrum is cut or zero-padded.
    """
    wanted = samples + 2 * margin
    read = min(x.shape[-1], round(wanted * speed))
    if read != wanted:
        x = torch.fft.irfft(torch.fft.rfft(x[..., :read]), n=wanted) * (wanted / read)
    return x[..., margin : margin + samples]


def retune(x: Tensor, rate: int, tones: Sequence[float] | Floats) -> Tensor:
    """Filter a signal (..., T) with zero phase: gains in dB at ``TONE``, linear in the logarithm of the frequency."""
    frequencies = np.fft.rfftfreq(x.shape[-1], 1 / rate).clip(min=1.0)
    gains = 10 ** (np.interp(np.log(frequencies), np.log(TONE), tones) / 20)
    spectrum = torch.fft.rfft(x) * torch.from_numpy(gains).to(device=x.device, dtype=x.dtype)
    retuned: Tensor = torch.fft.irfft(spectrum, n=x.shape[-1])
    return retuned


def rest(samples: int, rate: int, middle: float, length: float, gain: float) -> Tensor:
    """Return gains (samples,) that let a stem rest: ``gain`` around the middle, 1 elsewhere, with fades in between."""
    time = torch.arange(samples, dtype=torch.float32) / samples
    fade = FADE * rate / samples
    inside = (0.5 + (length / 2 - (time - middle).abs()) / fade).clamp(0, 1)
    return 1 - inside * (1 - gain)
