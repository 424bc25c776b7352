"""Sharing a worker's cores between the network, the decoders and the encoders.

On a GPU the network needs one prompt thread that launches kernels; the codecs get all cores, at a lower priority. On a CPU
the network may use every core, and it is the network that gives way: its threads have a lower priority, so that reading and
writing, which need little, are never starved and no core idles.
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

__all__ = [
    "CorePlan",
    "DeviceClock",
    "Place",
    "SongBudget",
    "Stage",
    "available_cores",
    "available_memory",
]

BATCHES_QUEUED = 2
"""Batches that a GPU has in its queue at most: enough to never wait for the host, few enough to bound memory."""


class SongBudget(Budget):
    """One song's part of a budget shared by songs; ``close`` gives back what the song, however it ended, did not."""

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
    """A place in a stage; ``seconds`` is how long it was held, once it has been left."""

    size: int
    began: float = 0.0
    seconds: float = 0.0


class Stage:
    """Places for ``capacity`` songs, or for as many as have ``limit`` bytes together; a song that finds none waits.

    That holds back the song and all that would come after it. Songs enter in the order of asking, so that a large one is not
    passed forever; one that is larger than the limit enters alone.
    """

    def __init__(self, name: str, capacity: int, limit: int | None = None) -> None:
        self.name = name
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
        """Wait for a place and keep it for the block; ``size`` in bytes if there is a limit."""
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


class DeviceClock:
    """Adds up the time in which a device worked on batches: by its own events on a GPU, where calls return at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stage = Stage("device", 1)
        self._busy = 0.0
        self._lock = threading.Lock()
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measure the work on one batch, as an NVTX range; wait while the GPU has enough in its queue."""
        if self._device.type != "cuda":
            with self._stage.enter():
                yield
            return
        stream = torch.cuda.current_stream(self._device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.nvtx.range(name):
            begin.record(stream)
            try:
                yield
            finally:
                end.record(stream)
                self._events.append((begin, end))
        while len(self._events) >= BATCHES_QUEUED:
            self._collect()

    @property
    def busy_seconds(self) -> float:
        with self._lock:
            return self._busy + self._stage.load().seconds

    def settle(self) -> None:
        """Wait for the GPU, so that ``busy_seconds`` is complete."""
        while self._events:
            self._collect()

    def _collect(self) -> None:
        begin, end = self._events.popleft()
        end.synchronize()
        with self._lock:
            self._busy += begin.elapsed_time(end) / 1000


NICENESS = 5
"""By how much the threads that give way are nicer: a third of the share of the others where they compete."""

ENCODING = 2
"""Songs encoded at once, at least: a song is encoded by one thread, and one song at a time would leave a core of two idle."""


@dataclass(frozen=True)
class CorePlan:
    """Places: ``read`` songs are decoded and ``write`` songs encoded at once; ``songs`` are open in all."""

    device: str
    cores: int
    device_threads: int
    read: int
    write: int
    songs: int

    @classmethod
    def choose(cls, device: torch.device, threads: int | None, songs: int | None) -> CorePlan:
        """Plan for a device type, ``threads`` cores (None: all of this process) and ``songs`` in flight (None: chosen here)."""
        cores = threads or available_cores()
        if device.type == "cpu":
            read, write = max(1, cores // 8), max(ENCODING, cores // 4)
            plan = cls("cpu", cores, cores, read, write, songs or read + write + max(2, cores // 4))
        else:
            read = max(1, cores // 4)
            write = max(ENCODING, cores - read)
            plan = cls(device.type, cores, 1, read, write, songs or read + write + 4)
        return plan

    def describe(self) -> str:
        yields = "network gives way to codecs" if self.device == "cpu" else "codecs give way to the launching thread"
        return (
            f"{self.cores} cores: {self.device_threads} network threads, {self.read} songs decoding, {self.write} encoding, "
            f"{self.songs} in flight; {yields}"
        )

    def enter_device_thread(self) -> None:
        """Prepare the thread that runs the network; it calls this once."""
        _take_threads(self.device_threads)
        if self.device == "cpu":
            _give_way()

    def enter_song_thread(self) -> None:
        """Prepare a thread that takes songs through the stages; it calls this once."""
        _take_threads(1)
        if self.device != "cpu":
            _give_way()


def _take_threads(count: int) -> None:
    """Let the calling thread use so many threads of torch's, whatever others set for themselves.

    ``torch.set_num_threads`` also sets what a thread adopts when it first asks, even if it has set its own number before.
    """
    torch.get_num_threads()
    torch.set_num_threads(count)


def _give_way() -> None:
    """Lower the priority of the calling thread; only Linux has priorities by thread."""
    if not hasattr(os, "setpriority") or not Path("/proc/self/task").is_dir():
        return
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))


def available_cores() -> int:
    """Return how many cores this process may use: by affinity, and by the quota of its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_cgroup("cpu.max").split() + ["max", "100000"])[:2]
    return min(affinity, max(1, -(-int(quota) // int(period)))) if quota.isdigit() else affinity


def available_memory() -> int:
    """Return the bytes of memory that are free for this process: of the machine, and by its control group's limit."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 * 2**30
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return min(free, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else free


def _cgroup(name: str) -> str:
    """Return a value of this process's control group (version 2), stripped; empty if there is none."""
    try:
        path = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        folder = Path("/sys/fs/cgroup", path)
        file = folder / name if (folder / name).exists() else Path("/sys/fs/cgroup", name)
        return file.read_text().strip()
    except OSError:
        return ""
