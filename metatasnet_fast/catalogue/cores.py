"""Share a worker's cores between the network, the decoders and the encoders.

On a GPU, the network needs one thread that launches kernels without delay; decoders and encoders get all cores, at a
lower priority. On a CPU, the network may use every core, at a lower priority than decoders and encoders. These need
little, so they never wait for a core, and no core is idle.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..separation.recording import Budget
from .events import StageLoad

__all__ = ["CorePlan", "Place", "SongBudget", "Stage", "available_cores", "available_memory"]

NICENESS = 5
"""Niceness that is added to threads of lower priority. On a busy core, such a thread gets a third of another's time."""

ENCODING = 2
"""Smallest number of songs that are encoded at once. One thread encodes a song: with one song, one of two cores would
be idle."""


class SongBudget(Budget):
    """One song's part of a shared budget of memory. ``close`` gives back what the song still holds, also after a
    failure."""

    def __init__(self, shared: Budget) -> None:
        super().__init__(None)
        self._shared = shared
        self._taken = 0

    def take(self, size: int) -> bool:
        fits = self._shared.take(size)
        self._taken += size if fits else 0
        return fits

    def give_back(self, size: int) -> None:
        self._taken -= size
        self._shared.give_back(size)

    def close(self) -> None:
        self.give_back(self._taken)


@dataclass(eq=False)
class Place:
    """A song's place in a stage. ``seconds`` is how long the song held the place; it is 0 until the song leaves."""

    size: int
    began: float = 0.0
    seconds: float = 0.0


class Stage:
    """A stage with places for ``capacity`` songs, or, with a ``limit``, for songs of so many bytes together.

    Other songs wait, and enter in the order in which they ask, so that small songs cannot overtake a large one without
    end. A song that is larger than the limit enters alone.
    """

    def __init__(self, capacity: int, limit: int | None = None) -> None:
        self.capacity = capacity
        self._limit = capacity if limit is None else limit
        self._waiting: deque[Place] = deque()
        self._inside: set[Place] = set()
        self._seconds = 0.0
        self._changed = threading.Condition()

    def load(self) -> StageLoad:
        with self._changed:
            seconds = self._seconds + sum(time.perf_counter() - place.began for place in self._inside)
            return StageLoad(self.capacity, len(self._waiting), round(seconds, 3))

    @contextlib.contextmanager
    def enter(self, size: int = 1) -> Iterator[Place]:
        """Wait for a place, and hold it during the block.

        Args:
            size: the song's size in bytes if the stage has a limit, else 1.
        """
        place = Place(size)
        with self._changed:
            self._waiting.append(place)
            self._changed.wait_for(lambda: self._waiting[0] is place and self._fits(size))
            self._inside.add(self._waiting.popleft())
            place.began = time.perf_counter()
            self._changed.notify_all()
        try:
            yield place
        finally:
            with self._changed:
                self._inside.remove(place)
                place.seconds = time.perf_counter() - place.began
                self._seconds += place.seconds
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._inside or sum(place.size for place in self._inside) + size <= self._limit


@dataclass(frozen=True)
class CorePlan:
    """The shares of a worker's cores: numbers of threads, and of songs at once."""

    device: str
    """Type of the device, such as ``cuda``."""
    cores: int
    device_threads: int
    """Threads of torch for the network."""
    read: int
    """Songs that are decoded at once."""
    write: int
    """Songs that are encoded at once."""
    songs: int
    """Songs that are open at once, in all stages together."""

    @classmethod
    def choose(cls, device: torch.device, threads: int | None, songs: int | None) -> CorePlan:
        """Return the plan for a device.

        Args:
            threads: number of cores; None for all cores of this process.
            songs: number of songs in flight; None to choose it here.
        """
        cores = threads or available_cores()
        if device.type == "cpu":
            network, read, write, ahead = cores, max(1, cores // 8), max(ENCODING, cores // 4), max(2, cores // 4)
        else:
            network, read, ahead = 1, max(1, cores // 4), 4
            write = max(ENCODING, cores - read)
        return cls(device.type, cores, network, read, write, songs or read + write + ahead)

    def describe(self) -> str:
        yields = "network gives way to codecs" if self.device == "cpu" else "codecs give way to the launching thread"
        return (
            f"{self.cores} cores: {self.device_threads} network threads, {self.read} songs decoding, {self.write} encoding, "
            f"{self.songs} in flight; {yields}"
        )

    def enter_thread(self, network: bool) -> None:
        """Set the priority and torch's threads for the calling thread, in which this is called once.

        Args:
            network: True if the thread runs the network, False if it takes songs through the stages.
        """
        # Ask before setting: a thread that asks for the first time adopts the number that any thread set last.
        torch.get_num_threads()
        torch.set_num_threads(self.device_threads if network else 1)
        gives_way = network == (self.device == "cpu")
        if gives_way and hasattr(os, "setpriority") and Path("/proc/self/task").is_dir():
            thread = threading.get_native_id()  # only Linux has priorities by thread
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))


def available_cores() -> int:
    """Return how many cores this process may use: its affinity and the quota of its control group limit them."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_cgroup("cpu.max").split() + ["max", "100000"])[:2]
    return min(affinity, max(1, -(-int(quota) // int(period)))) if quota.isdigit() else affinity


def available_memory() -> int:
    """Return the bytes of memory that are free for this process, on the machine and in its control group.

    Return 4 GiB if the system does not tell.
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 * 2**30
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return min(free, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else free


def _cgroup(name: str) -> str:
    """Return the value of a file of this process's control group (version 2); an empty text if there is no such
    file."""
    try:
        path = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        folder = Path("/sys/fs/cgroup", path)
        file = folder / name if (folder / name).exists() else Path("/sys/fs/cgroup", name)
        return file.read_text().strip()
    except OSError:
        return ""
