"""How a worker shares the cores between the network, the decoders and the encoders.

On a GPU the network needs one prompt thread that launches kernels; the codecs get all cores, at a lower priority. On a CPU
the network may use every core, and it is the network that gives way: its threads have a lower priority, so that reading and
writing, which need little, are never starved and no core idles.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["CorePlan", "available_cores", "available_memory"]

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
        """For a device type, with ``threads`` cores (None: all of this process's) and ``songs`` in flight (None: chosen)."""
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
        """Called once in the thread that runs the network."""
        _take_threads(self.device_threads)
        if self.device == "cpu":
            _give_way()

    def enter_song_thread(self) -> None:
        """Called once in each thread that walks songs through the stages."""
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
    """Cores that this process may use: by affinity, and by the quota of its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_cgroup("cpu.max").split() + ["max", "100000"])[:2]
    return min(affinity, max(1, -(-int(quota) // int(period)))) if quota.isdigit() else affinity


def available_memory() -> int:
    """Bytes of memory that are free for this process: of the machine, and by the limit of its control group."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 * 2**30
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return min(free, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else free


def _cgroup(name: str) -> str:
    """A value of this process's control group (version 2), stripped; empty if there is none."""
    try:
        path = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        folder = Path("/sys/fs/cgroup", path)
        file = folder / name if (folder / name).exists() else Path("/sys/fs/cgroup", name)
        return file.read_text().strip()
    except OSError:
        return ""
