"""Content of a batch, drawn as a function of (seed, batch number) alone.

Philox is a counter-based generator (Salmon et al. 2011): the batch number goes into its counter and the seed into its key,
so there is no state to carry, and any process can draw any batch at any time. Only the raw 64-bit integers are used: numpy
keeps them the same from version to version, but makes no such promise for its distributions.

Source: the authors' ``dataset.py``, ``get_train_sample`` and the rotation in its collate function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AUGMENTATIONS", "GAINS", "Plan", "draw_plan", "uniforms"]

AUGMENTATIONS = ("same", "original", "none")

GAINS = (0.75, 1.25)
"""Range of a source's gain."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Where each source of a batch comes from, and how it is changed."""

    tracks: Ints
    """(items, S): index of the track, for each of the cache's S instruments."""
    starts: Ints
    """(items, S): first sample at the lowest rate."""
    channels: Ints | None
    """(stages, items, S); None: the mean of the channels."""
    gains: Floats
    """(stages, items, S)."""

    def take(self, start: int, stop: int) -> Plan:
        """Return the plan of some of the items."""
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
    sources: int = 4,
    crop: int,
    augmentation: str,
    shuffle_p: float,
) -> Plan:
    """Draw batch ``number`` of ``seed``.

    Each item is a crop of ``crop`` samples at a uniform start of a uniformly drawn track; every source takes one of its
    channels and a gain from ``GAINS``. Of the first ``int(items shuffle_p + 0.5)`` items, item ``j`` takes source ``i`` of item
    ``j + i`` (modulo their number); then the items change places. With ``original``, channels and gains are drawn
    separately for each stage; with ``none``, an item is a plain crop of the channels' mean.

    Args:
        lengths, channels: of every track: samples at the lowest rate, channels.
        sources: instruments of the cache.
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
