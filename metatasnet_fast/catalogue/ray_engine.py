"""The engine ``ray``: the same workers, each below an actor for a GPU or a machine of a Ray cluster.

    driver: songs, the longest first -> actor -> process with the model -> events -> actor -> driver: ledger, display

What passes through Ray is an address, never a waveform: what is heavy goes straight from the source to the worker and from the
worker to the destination. The driver watches the processes as it does without Ray: where an actor dies, another one is started,
and the songs that it had are tried again. What is done is known by the results, as everywhere.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .destination import Destination
from .events import Listener, Notice, RunEnded
from .local import RunLog, carry_out, work_through
from .ray_cluster import Pool, nodes_of, plan_pool, ray_cluster
from .settings import Settings, Song
from .staging import remove_abandoned
from .storage import local_path
from .supervised import ChildProcess, Gone, Order, Stop
from .survey import Plan

__all__ = ["run_ray"]

EXCHANGE_SECONDS = 0.2
"""So long a message may be under way: what a driver has not heard of when it is killed has no row in the ledger."""

FAREWELL_SECONDS = 3.0
"""For workers that Ray ends to take their folders along."""

PATIENCE = 60.0
"""Seconds without a place for a worker after which we say what is waited for, and again after as many."""


def run_ray(
    songs: Sequence[Song],
    settings: Settings,
    destination: str,
    listener: Listener | None = None,
    stop: threading.Event | None = None,
    *,
    address: str | None = None,
    shard: str = "1/1",
    workers: int | None = None,
    price_per_hour: float | None = None,
    grace: float = 60.0,
) -> RunEnded:
    """Do what :func:`run_local` does on a Ray cluster, or on this machine with a Ray of its own.

    Args:
        address: of a Ray cluster, as ``ray.init`` takes it; None starts Ray on this machine and ends it afterwards.
        workers: actors at most; None for one on each GPU, or where there is none, on each machine.
        price_per_hour: of one machine.

    Raises:
        ConfigError: if the cluster cannot be joined, or has no room for the workers.
        MissingDependencyError: without the package ray.
        MetaTasNetError: if the model cannot be loaded, or no worker stays alive.
    """
    settings, destination, songs = _absolute(settings, destination, songs)
    with ray_cluster(address) as ray:
        pool = plan_pool(nodes_of(ray), settings.device, settings.threads, workers)
        # An actor sees the GPU that it holds, and no other.
        options = replace(settings, threads=pool.cpus, device="cuda" if pool.gpus else settings.device)

        def work(plan: Plan, token: str | None, log: RunLog) -> None:
            log(Notice(f"Ray: {pool.describe()}."))
            if address and token is not None:
                text = f"{destination} is a local path: every machine of the cluster must have the same folder there."
                log(Notice(text))
            # Each machine checks the destination itself: its file system may have other device numbers there.
            work_through(
                plan, [options] * pool.workers, destination, None, log, grace, partial(ActorProcess, ray, pool)
            )

        ended = carry_out(
            work, songs, options, destination, listener, stop, "ray", shard, price_per_hour, pool.machines
        )
    # A worker that Ray ended, orphaned or not, had no time to take its folder along.
    remove_abandoned(Destination(destination).storage, FAREWELL_SECONDS)
    return ended


class SeparateSongs:
    """The actor: a worker's process on its machine, and the messages from and to it."""

    def __init__(self, order: Order) -> None:
        self._process = ChildProcess(order)

    def exchange(self, messages: Sequence[Song | Stop]) -> list[object]:
        """Give the process messages; returns those that it has, or gets within a moment."""
        for message in messages:
            self._process.send(message)
        found = [self._process.receive(EXCHANGE_SECONDS)]
        while found[-1] is not None:
            found.append(self._process.receive(0.0))
        return found[:-1]


class ActorProcess:
    """A worker's process below an actor, seen from the driver: a :class:`Process`."""

    def __init__(self, ray: Any, pool: Pool, order: Order) -> None:
        self._ray = ray
        self._place = ray.util.placement_group([{"CPU": pool.cpus, **({"GPU": pool.gpus} if pool.gpus else {})}])
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(self._place)
        actor = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, scheduling_strategy=strategy)(SeparateSongs)
        self._actor = actor.remote(order)
        self._pool = pool
        self._reply: Any = None
        self._unsent: list[Song | Stop] = []
        self._received: deque[object] = deque()
        self._say_at: float | None = time.monotonic() + PATIENCE
        """When to say that there is no place for the actor yet; None once there is one."""

    def send(self, message: Song | Stop) -> None:
        self._unsent.append(message)

    def receive(self, seconds: float) -> object:
        if not self._received:
            if self._reply is None:
                self._reply = self._actor.exchange.remote(self._unsent)
                self._unsent = []
            try:
                if not self._ray.wait([self._reply], timeout=seconds)[0]:
                    return self._waiting()
                self._received.extend(self._ray.get(self._reply))
            except self._ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines() or [""]
                self._received.append(Gone(f"{type(error).__name__}: {lines[-1][:200]}", innocent=True))
            self._reply = self._say_at = None
        return self._received.popleft() if self._received else None

    def kill(self) -> None:
        self._ray.kill(self._actor)
        self._ray.util.remove_placement_group(self._place)

    def _waiting(self) -> Notice | None:
        """Return a sentence if the actor has no place in the cluster after a long time."""
        if self._say_at is None or time.monotonic() < self._say_at:
            return None
        self._say_at = time.monotonic() + PATIENCE
        if self._place.wait(timeout_seconds=0):
            return None
        free = self._ray.available_resources()
        return Notice(
            f"A worker still waits for a place in the Ray cluster: wanted {self._pool.describe()}; "
            f"free are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs."
        )


def _absolute(settings: Settings, destination: str, songs: Sequence[Song]) -> tuple[Settings, str, list[Song]]:
    """With absolute paths: actors have other working directories."""

    def absolute(uri: str) -> str:
        return os.path.abspath(uri) if local_path(uri) is not None and "://" not in uri else uri

    if Path(settings.model).exists():
        settings = replace(settings, model=os.path.abspath(settings.model))
    return settings, absolute(destination), [replace(song, uri=absolute(song.uri)) for song in songs]
