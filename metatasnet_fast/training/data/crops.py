"""Draw the content of a batch as a function of (seed, batch number) alone: the crops, and random changes of the items.

Philox is a counter-based generator (Salmon et al. 2011): the batch number goes into its counter and the seed into its key,
so there is no state to keep, and any process can draw any batch at any time. Only the raw 64-bit integers are used:
numpy keeps these the same from version to version, but makes no such promise for its distributions. Speed, balance,
level, tone and rests are drawn for whole items and instruments, so that the stages of a network see one signal at
several rates. The numbers for every change are always drawn: turning one change on or off does not alter the other
changes or the crops.

Source: the authors' ``dataset.py``, ``get_train_sample`` and the rotation in its collate function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "AUGMENTATIONS", "NO_VARIETY", "Plan", "Variety", "draw_changes", "draw_plan", "resample", "rest", "retune",
    "uniforms",
]  # fmt: skip

AUGMENTATIONS = ("same", "original", "none")

GAINS = (0.75, 1.25)
"""Range of a source's gain."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The track, the crop, the channel and the gain of each source of a batch."""

    tracks: Ints
    """(items, S): index of the track, for each of the cache's S instruments."""
    starts: Ints
    """(items, S): first sample at the lowest rate."""
    channels: Ints | None
    """(stages, items, S): index of the channel; None for the mean of the channels."""
    gains: Floats
    """(stages, items, S): factors."""

    def take(self, start: int, stop: int) -> Plan:
        """Return the plan of the items from ``start`` up to, not including, ``stop``."""
        part = slice(start, stop)
        channels = None if self.channels is None else self.channels[:, part]
        return Plan(self.tracks[part], self.starts[part], channels, self.gains[:, part])


def uniforms(seed: int, number: int, count: int, stream: int = 0) -> Floats:
    """Return ``count`` numbers in [0, 1) that depend only on seed, number (both in [0, 2^64)) and stream."""
    counter, key = np.array([0, number, stream, 0], np.uint64), np.array([seed, 0], np.uint64)
    raw: NDArray[np.uint64] = np.random.Philox(counter=counter, key=key).random_raw(count)
    found: Floats = np.ldexp((raw >> np.uint64(11)).astype(np.float64), -53)
    return found


def draw_plan(
    seed: int,
    number: int,
    *,
    items: int,
    stages: int,
    lengths: NDArray[np.int64],
    channels: NDArray[np.int64],
    sources: int,
    crop: int,
    augmentation: str,
    shuffle_p: float,
) -> Plan:
    """Draw batch ``number`` of ``seed``.

    Each item is a crop of a track; track and start are drawn uniformly. Every source of an item gets one channel of its
    track, and a gain from the range ``GAINS``. Of the first ``int(items shuffle_p + 0.5)`` items, item ``j`` takes
    source ``i`` from item ``j + i`` (modulo the number of these items). Finally, all items are put in a random order.
    With the augmentation ``original``, channels and gains are drawn separately for each stage; with ``none``, an item
    is a plain crop of the channels' mean.

    Args:
        lengths, channels: for every track, the number of samples at the lowest rate, and the number of channels.
        sources: number of instruments in the cache.
        crop: number of samples of a crop at the lowest rate.
    """
    stream = uniforms(seed, number, items * (3 + 2 * sources * stages))
    track, start, order = stream[: 3 * items].reshape(3, items)
    channel, gain = stream[3 * items :].reshape(2, stages, items, sources)
    chosen = (track * len(lengths)).astype(np.int64)
    # As in the authors' program, a crop never ends on a track's last sample, unless it is the whole track.
    starts = (start * np.maximum(1, lengths[chosen] - crop)).astype(np.int64)
    tracks = np.repeat(chosen[:, None], sources, axis=1)
    first = np.repeat(starts[:, None], sources, axis=1)
    if augmentation == "none":
        return Plan(tracks, first, None, np.ones((stages, items, sources)))
    if augmentation == "same":
        channel, gain = (np.broadcast_to(x[:1], x.shape) for x in (channel, gain))
    picked = (channel * channels[chosen][:, None]).astype(np.int64)
    gains = GAINS[0] + gain * (GAINS[1] - GAINS[0])

    portion = int(items * shuffle_p + 0.5)
    donor = np.repeat(np.arange(items)[:, None], sources, axis=1)
    if portion:
        donor[:portion] = (donor[:portion] + np.arange(sources)) % portion
    donor = donor[np.argsort(order, kind="stable")]
    source = np.arange(sources)
    return Plan(tracks[donor, source], first[donor, source], picked[:, donor, source], gains[:, donor, source])


TONE = (60.0, 200.0, 600.0, 1800.0, 4000.0, 8000.0)
"""Frequencies in Hz; the gains of a tone change are interpolated between them."""

MARGIN = 0.05
"""Seconds of audio that are read on both sides of a crop whose speed changes, as a resampler needs neighbours."""

FADE = 0.05
"""Seconds of a stem's fade before a rest, and of the fade after it."""

SILENT = 0.5
"""Share of the rests that are silent; in the others the stem is only quieter."""

QUIETER = (6.0, 30.0)
"""Range in dB by which a stem is quieter in the other rests."""

SPAN = (0.3, 1.5)
"""Range of the length of a rest, in lengths of the item."""


@dataclass(frozen=True)
class Variety:
    """Amounts by which items may vary; by default they do not vary.

    Args:
        speed: largest relative change of speed, which changes pitch and tempo together: 0.1 for 1 / 1.1 to 1.1.
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
    """(items,): input samples per output sample."""
    gains: Floats
    """(items, S): factors."""
    tones: Floats
    """(items, S, len(TONE)): gains in dB; 0 for stems that do not change."""
    rests: Floats
    """(items, S, 3): middle and length in lengths of the item, and gain; gain 1 for stems that do not rest."""

    def take(self, start: int, stop: int) -> Changes:
        """Return the changes of the items from ``start`` up to, not including, ``stop``."""
        part = slice(start, stop)
        return Changes(self.speeds[part], self.gains[part], self.tones[part], self.rests[part])


def draw_changes(seed: int, number: int, variety: Variety, items: int, sources: int) -> Changes:
    """Draw the changes of batch ``number`` of ``seed``."""
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

    The resampling is band-limited: it cuts or zero-pads the spectrum of the first ``(samples + 2 margin) speed``
    samples.
    """
    wanted = samples + 2 * margin
    read = min(x.shape[-1], round(wanted * speed))
    if read != wanted:
        x = torch.fft.irfft(torch.fft.rfft(x[..., :read]), n=wanted) * (wanted / read)
    return x[..., margin : margin + samples]


def retune(x: Tensor, rate: int, tones: Sequence[float] | Floats) -> Tensor:
    """Filter a signal (..., T) with zero phase. ``tones`` are gains in dB at the frequencies ``TONE``, interpolated
    linearly in the logarithm of the frequency."""
    frequencies = np.fft.rfftfreq(x.shape[-1], 1 / rate).clip(min=1.0)
    gains = 10 ** (np.interp(np.log(frequencies), np.log(TONE), tones) / 20)
    spectrum = torch.fft.rfft(x) * torch.from_numpy(gains).to(device=x.device, dtype=x.dtype)
    retuned: Tensor = torch.fft.irfft(spectrum, n=x.shape[-1])
    return retuned


def rest(samples: int, rate: int, middle: float, length: float, gain: float) -> Tensor:
    """Return gains (samples,) that let a stem rest: ``gain`` around the middle, 1 elsewhere, with fades in between.

    ``middle`` and ``length`` of the rest are in lengths of the item.
    """
    time = torch.arange(samples, dtype=torch.float32) / samples
    fade = FADE * rate / samples
    inside = (0.5 + (length / 2 - (time - middle).abs()) / fade).clamp(0, 1)
    return 1 - inside * (1 - gain)
