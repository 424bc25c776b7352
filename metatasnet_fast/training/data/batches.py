"""Make training batches: any batch at any time, or a stream of batches that is read ahead.

Global batch ``k`` is a function of (cache, settings, seed, ``k``). It does not depend on the number of ranks or threads, or on
interruptions of the run. Every rank draws the whole plan and reads its own slice.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...config import MetaTasNetConfig
from ...errors import TrainingDataError
from .cache import Cache, CropReader, HostBatch, Track
from .crops import AUGMENTATIONS, MARGIN, NO_VARIETY, Plan, Variety, draw_changes, draw_plan, resample, rest, retune

__all__ = ["Batch", "BatchSource"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch, on the device."""

    mixes: list[Tensor]
    """For each stage the sum of all instruments of the cache, (items, 1, T_stage), float32."""
    sources: list[Tensor]
    """For each stage the network's I instruments, (items, I, 1, T_stage), float32."""
    counts: Tensor
    """(items, I) bool: False for an instrument that the loss must leave out, whatever samples the instrument has."""
    number: int
    least_share: float = 0.0

    def masks(self) -> list[Tensor]:
        """Return for each stage (items, I, 1), float32: 1 where a source counts and is not all zero.

        With ``least_share``, the source and the rest of the mixture must each have that share of the energy, too.
        SI-SDR is in dB: without ``least_share``, items that cannot or need not be separated would weigh as much as the
        others.
        """
        counts = self.counts[..., None]
        if self.least_share > 0:
            own = self.sources[-1].square().sum(-1)
            remainder = (self.mixes[-1][:, None] - self.sources[-1]).square().sum(-1)
            least = self.least_share * (own + remainder)
            counts = counts & (own >= least) & (remainder >= least)
        return [((sources != 0).any(-1) & counts).float() for sources in self.sources]


class BatchSource:
    """Batches of a cache's training tracks, as the authors draw them.

    Args:
        cache: the cache with the tracks.
        config: the network's settings; its stages' rates and its instruments must be in the cache. Instruments of the cache
            that the network lacks are in the mixture only.
        items: number of items in the global batch; a rank gets ``items / world`` of them.
        seconds: length of an item.
        seed: seed of all random choices, in [0, 2^64).
        augmentation: ``same`` to draw a channel and a gain for each source, identical at all rates; ``original`` to
            draw these for each stage on its own, as the authors' program does; ``none`` for plain crops of the
            channels' mean.
        shuffle_p: share of the items whose sources are exchanged; it has no effect with ``none``.
        variety: more random changes of the items, such as of their speed.
        least_share: a source counts in the loss only if the source, and the other sources together, each have at least
            this share of the item's energy.
        split: the split whose tracks are used.
        device: device to which the batches are moved.
        rank, world: number of this process, from 0, and number of all processes.
        workers: threads that read ahead in :meth:`stream`.

    Raises:
        TrainingDataError: if the settings do not fit the cache or the network, or if every track is shorter than an item.
    """

    def __init__(
        self,
        cache: Cache,
        config: MetaTasNetConfig,
        *,
        items: int = 12,
        seconds: float = 8.0,
        seed: int = 42,
        augmentation: str = "same",
        shuffle_p: float = 0.5,
        variety: Variety = NO_VARIETY,
        least_share: float = 0.0,
        split: str = "train",
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
        workers: int = 2,
    ) -> None:
        self.rates = tuple(stage.sampling_rate for stage in config.stages)
        self.device = torch.device(device)
        self.items, self.seconds, self.seed, self.workers = items, seconds, seed, workers
        self.augmentation, self.shuffle_p = augmentation, shuffle_p
        self.variety, self.least_share = variety, least_share
        _check(self, cache, rank, world)
        self.places = cache.places_of(config.instruments)
        """For each of the network's instruments, its place among the cache's instruments."""
        self._slice = (rank * items // world, (rank + 1) * items // world)
        self._crop = _crop_length(config, seconds)
        self._margin = round(MARGIN * self.rates[0]) if variety.speed else 0
        self._read_length = math.ceil((self._crop + 2 * self._margin) * (1 + variety.speed))
        self.tracks, self.skipped = _long_enough(cache.tracks(split), self.rates[0], self._read_length, cache, split)
        """Tracks in use, and tracks that are shorter than an item."""
        self._lengths = np.array([track.samples(self.rates[0]) for track in self.tracks], np.int64)
        self._channels = np.array([track.channels for track in self.tracks], np.int64)
        self._counts = np.array([track.counts for track in self.tracks], bool)
        self._reader = CropReader(self.tracks, self.rates, self._read_length, pinned=self.device.type == "cuda")

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio in a global batch."""
        return self.items * self.seconds

    def plan(self, number: int) -> Plan:
        """Return this rank's part of the plan of global batch ``number``; no file is read."""
        plan = draw_plan(
            self.seed,
            number,
            items=self.items,
            stages=len(self.rates),
            lengths=self._lengths,
            channels=self._channels,
            sources=self._counts.shape[1],
            crop=self._read_length,
            augmentation=self.augmentation,
            shuffle_p=self.shuffle_p,
        )
        return plan.take(*self._slice)

    def batch(self, number: int) -> Batch:
        """Return this rank's part of global batch ``number``, counted from 0; may be called from any thread.

        Raises:
            TrainingDataError: if a track's file is missing, damaged, cut off, or holds NaN or infinity.
        """
        return self._to_device(self._read(number))

    def stream(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield batches ``start``, ``start + 1``, ... without end; ``workers`` threads read ahead.

        At most ``workers + 1`` batches wait. An error in a thread is raised here when its batch is needed. The threads
        end when the generator is closed, as by ``contextlib.closing``, or is no longer referenced.
        """
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="batches")
        waiting: deque[Future[HostBatch]] = deque()
        try:
            number = start
            while True:
                while len(waiting) < self.workers + 1:
                    waiting.append(pool.submit(self._read, number))
                    number += 1
                yield self._to_device(waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, number: int) -> HostBatch:
        plan = self.plan(number)
        counts = self._counts[plan.tracks, np.arange(plan.tracks.shape[1])]
        return self._reader.read(plan, counts, number)

    def _to_device(self, host: HostBatch) -> Batch:
        mixes: list[Tensor] = []
        sources: list[Tensor] = []
        whole = self.places == list(range(self._counts.shape[1]))
        for stored, weights in zip(host.raw, host.weights, strict=True):
            raw, weight = self._move(stored), self._move(weights)[..., None]
            first, *others = range(raw.shape[2])
            mixed = raw[:, :, first, None].float() * weight[:, :, first, None]
            for channel in others:
                mixed += raw[:, :, channel, None].float() * weight[:, :, channel, None]
            if self.variety:
                mixed = self._vary(mixed, len(mixes), host.number)
            mixes.append(mixed.sum(1))
            sources.append(mixed if whole else mixed[:, self.places])
        return Batch(mixes, sources, self._move(host.counts)[:, self.places], host.number, self.least_share)

    def _vary(self, signals: Tensor, stage: int, number: int) -> Tensor:
        """Apply the changes of batch ``number`` to the cache's S instruments at the rate of a stage.

        ``signals`` are (items, S, 1, T) with room for the changes of speed; the result is as long as an item.
        """
        changes = draw_changes(self.seed, number, self.variety, self.items, signals.shape[1]).take(*self._slice)
        rate, ratio = self.rates[stage], self.rates[stage] // self.rates[0]
        samples, margin = self._crop * ratio, self._margin * ratio
        varied = signals.new_empty(*signals.shape[:-1], samples)
        for item, sources in enumerate(signals):
            varied[item] = resample(sources, samples, margin, changes.speeds[item])
            for index, source in enumerate(varied[item]):
                if changes.tones[item, index].any():
                    source.copy_(retune(source, rate, changes.tones[item, index]))
                middle, length, gain = changes.rests[item, index]
                if gain != 1:
                    source.mul_(rest(samples, rate, middle, length, gain).to(source.device))
        return varied.mul_(torch.from_numpy(changes.gains).to(varied)[..., None, None])

    def _move(self, x: Tensor) -> Tensor:
        # For a GPU, x is in pinned memory: a copy from other memory would wait for the step in progress.
        return x.to(self.device, non_blocking=True)


def _check(source: BatchSource, cache: Cache, rank: int, world: int) -> None:
    missing = [rate for rate in source.rates if rate not in cache.rates]
    if missing:
        raise TrainingDataError(
            f"The cache at {cache.path} lacks {', '.join(map(str, missing))} Hz; prepare it with "
            f"--rates {','.join(map(str, source.rates))}."
        )
    if source.augmentation not in AUGMENTATIONS:
        raise TrainingDataError(
            f"There is no augmentation {source.augmentation!r}; choose one of {', '.join(AUGMENTATIONS)}."
        )
    if not 0 <= source.shuffle_p <= 1:
        raise TrainingDataError(f"shuffle_p is a share of the batch, from 0 to 1, got {source.shuffle_p}.")
    if not 0 <= source.seed < 2**64:
        raise TrainingDataError(f"A seed must lie in [0, 2^64), got {source.seed}.")
    if source.workers < 1:
        raise TrainingDataError(f"workers must be at least 1, got {source.workers}.")
    if not 0 <= rank < world:
        raise TrainingDataError(f"rank must lie in [0, {world}), got {rank}.")
    if source.items < 1 or source.items % world:
        raise TrainingDataError(
            f"A batch of {source.items} items cannot be shared by {world} processes; choose a multiple of {world}."
        )


def _crop_length(config: MetaTasNetConfig, seconds: float) -> int:
    """Return the number of samples of an item at the lowest rate.

    Raises:
        TrainingDataError: if this is no multiple of the stride W, or less than the network needs.
    """
    stage = config.stage(0)
    exact = seconds * stage.sampling_rate
    samples = round(exact)
    if abs(samples - exact) > 1e-6 or samples % stage.W or samples < stage.shortest:
        raise TrainingDataError(
            f"{seconds} s at {stage.sampling_rate} Hz must be a whole multiple of the stride of {stage.W} samples, and "
            f"at least {stage.shortest} samples; choose another length."
        )
    return samples


def _long_enough(
    tracks: Sequence[Track], rate: int, crop: int, cache: Cache, split: str
) -> tuple[list[Track], list[Track]]:
    if not tracks:
        raise TrainingDataError(
            f"The cache at {cache.path} has no {split} tracks; prepare some, or choose another cache."
        )
    used = [track for track in tracks if track.samples(rate) >= crop]
    skipped = [track for track in tracks if track.samples(rate) < crop]
    if skipped:
        names = ", ".join(track.name for track in skipped)
        log.warning("%d tracks are shorter than %g s and are left out: %s", len(skipped), crop / rate, names)
    if not used:
        raise TrainingDataError(
            f"None of the {len(tracks)} tracks of {split} in {cache.path} is as long as {crop / rate:g} s; "
            "choose shorter items, or prepare longer tracks."
        )
    return used, skipped
