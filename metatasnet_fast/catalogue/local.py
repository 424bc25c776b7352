"""Run a catalogue on this machine: one supervised process for every GPU, or one for the CPU."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import torch

from ..errors import ConfigError
from .cores import available_cores
from .destination import Destination, LedgerWriter, remove_abandoned
from .events import Event, Listener, Notice, RunEnded, RunStarted, SongEnded, SongsSkipped, Tally
from .settings import Settings, Song
from .storage import reaching
from .supervised import ChildProcess, Order, Process, SupervisedWorker
from .survey import make_plan
from .worker import find_identity

__all__ = ["WorkerPool", "run_local"]

PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerPool:
    """The workers of a run."""

    engine: str
    """``local`` or ``ray``."""
    each_worker: Sequence[Settings]
    """Settings of each worker; only ``device`` and ``threads`` may differ between workers."""
    start: Callable[[Order], Process] = ChildProcess
    """Function that starts the process of a worker."""
    machines: int = 1
    """Number of machines. Each one costs the price per hour."""
    notices: Sequence[str] = ()
    """Messages to show before the work, if there are songs to separate."""

    @classmethod
    def here(cls, settings: Settings, workers: int | None) -> WorkerPool:
        """Return the workers of a run on this machine; raise :class:`ConfigError` if ``workers`` is too large.

        Args:
            workers: number of workers; None for one on each GPU, or one on the CPU.
        """
        devices = [settings.device]
        if settings.device in ("auto", "cuda") and torch.cuda.device_count() > 1:
            devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        count, there = workers or len(devices), available_cores()
        most = max(2, there, len(devices))
        if count > most:
            raise ConfigError(
                f"{count} workers would get into each other's way on {there} cores: ask for {most} at most."
            )
        threads = max(1, (settings.threads or there) // count) if count > 1 else settings.threads
        devices = [devices[index % len(devices)] for index in range(count)]
        return cls("local", [replace(settings, device=device, threads=threads) for device in devices])


def run_local(
    songs: Sequence[Song],
    settings: Settings,
    destination: str,
    listener: Listener = lambda event: None,
    stop: threading.Event | None = None,
    *,
    shard: str = "1/1",
    workers: int | None = None,
    price_per_hour: float | None = None,
    grace: float = 60.0,
    pool: WorkerPool | None = None,
) -> RunEnded:
    """Separate songs that are not done yet, the longest first.

    Args:
        listener: function that gets every event, from one thread at a time.
        stop: when set, no further song is begun, and songs in flight have ``grace`` seconds to finish.
        shard: the part of the manifest that ``songs`` are, as ``i/n``, for the report.
        workers: number of processes; None for one on each GPU, or one on the CPU.
        price_per_hour: price of one machine.
        pool: the workers; None for those of this machine.

    Returns:
        the last event. The ledger has a row for every song that was tried.

    Raises:
        ConfigError: if there are more workers than cores and devices, or the destination is in memory.
        MetaTasNetError: if the model cannot be loaded, the device or backend cannot be used, or no worker stays alive.
    """
    pool, stop = pool or WorkerPool.here(settings, workers), stop or threading.Event()
    target, settings = Destination(destination), pool.each_worker[0]
    if destination.startswith("memory:"):  # workers are other processes
        raise ConfigError(f"{destination} is the memory of one process, gone at its end: choose another destination.")
    each = [song.expected_seconds() for song in songs]
    tally = Tally(len(songs), sum(each) if all(each) else 0.0)
    # The names of runs sort by the time at which the runs began.
    run = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}-{secrets.token_hex(2)}"
    ledger, lock = LedgerWriter(target, run), threading.RLock()

    def log(event: Event) -> None:
        """Count an event, write its outcome to the ledger, and pass it on; stop the run if too many songs in a row
        fail.

        Any thread may call this.
        """
        with lock:
            tally(event)
            if isinstance(event, SongEnded):
                ledger.add(event.outcome)
            if tally.reason is not None:
                stop.set()
            listener(event)

    key = find_identity(settings).key
    log(RunStarted(run, len(songs), tally.expected_seconds, destination, pool.engine, shard))
    plan = make_plan(songs, settings, key, target)
    for outcome in plan.unwritten:
        ledger.add(outcome)
    for outcome in plan.failed:
        log(SongEnded(outcome))
    if plan.done:
        log(SongsSkipped(len(plan.done), sum(listed.duration for listed in plan.done)))
    left = iter(plan.todo)  # shared: each song goes to one worker
    watched: list[SupervisedWorker] = []
    errors: list[Exception] = []

    def watch(order: Order) -> None:
        """Let a worker take songs until no song is left. If an error ends a worker while others go on, send a
        notice."""
        try:
            with SupervisedWorker(order, log, stop, grace, pool.start) as worker:
                watched.append(worker)
                for _ in worker.process(left):
                    pass  # the log has counted and recorded the outcome already
        except Exception as error:
            errors.append(error)
            if len(errors) < len(pool.each_worker):
                log(Notice(f"Worker {order.number} has ended: {error}"))

    try:
        if plan.todo:
            with reaching(destination):
                token = target.token  # mark the folder now: by the time a worker did, the disk may be unmounted
            for text in pool.notices:
                log(Notice(text))
            orders = [Order(each, destination, token, i, plan.contents) for i, each in enumerate(pool.each_worker)]
            with ThreadPoolExecutor(len(orders), "worker") as threads:
                watching = [threads.submit(watch, order) for order in orders]
                try:
                    while wait(watching, PROGRESS_SECONDS).not_done:
                        with lock:
                            log(tally.progress())
                except BaseException:  # a second Ctrl-C: do not wait for songs
                    stop.set()
                    for worker in watched:
                        worker.grace = 0.0
                    raise
            if len(errors) == len(orders):
                raise errors[-1]
    finally:
        try:
            ledger.close()
        except OSError as error:
            log(Notice(f"The ledger of this run is not complete ({error}); the songs' results are."))
        remove_abandoned(target.storage)  # a killed worker left its folders
    ended = tally.finish(run, price_per_hour, pool.machines)
    log(ended.progress)
    log(ended)
    return ended
