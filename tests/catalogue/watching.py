"""Processes under watch: their memory over time, and whether any of them is left. By /proc, so on Linux only."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MemoryWatch", "command_line", "descendants", "open_files", "wait_until_gone"]

PROC = Path("/proc")


def _parents() -> dict[int, int]:
    """The parent of every process that is alive, zombies left out."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(folder.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    """Children, and their children, of a process."""
    parents = _parents()
    found: set[int] = set()
    while True:
        more = {child for child, parent in parents.items() if parent in found | {pid}} - found
        if not more:
            return found
        found |= more


def command_line(pid: int) -> str:
    """Empty for a process that is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def open_files() -> set[str]:
    """What this process has open, except for what is of the system."""
    found = set()
    for link in (PROC / "self" / "fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(link))
    return {name for name in found if name.startswith("/") and not name.startswith(("/dev", "/proc", "/sys"))}


def wait_until_gone(pids: set[int], seconds: float = 20.0) -> set[int]:
    """The processes that are still there after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pids = pids & set(_parents())
        if not pids:
            break
        time.sleep(0.1)
    return pids


@dataclass
class MemoryWatch:
    """Samples the resident memory, in bytes, of the descendants whose command line holds ``which``."""

    which: str
    samples: list[int] = field(default_factory=list)
    """Sums over those processes, in the order of time; leading zeros left out."""

    @contextlib.contextmanager
    def watching(self, pid: int | None = None) -> Iterator[MemoryWatch]:
        done = threading.Event()

        def work() -> None:
            while not done.wait(0.1):
                total = sum(_resident(p) for p in descendants(pid or os.getpid()) if self.which in command_line(p))
                if total or self.samples:
                    self.samples.append(total)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def growth(self) -> int:
        """By how many bytes the second half of the samples exceeds what the first half needed, in the median."""
        alive = [sample for sample in self.samples if sample]
        halves = sorted(alive[: len(alive) // 2]), sorted(alive[len(alive) // 2 :])
        first, second = (half[len(half) // 2] for half in halves)
        return second - first


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
