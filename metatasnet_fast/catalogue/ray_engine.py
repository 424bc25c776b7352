"""The engine ``ray``: the same worker, in an actor for each GPU or machine of a Ray cluster.

    songs, the longest first -> board -> actors with the model -> events with outcomes -> board -> driver: ledger, display

What passes through Ray is an address, never a waveform: what is heavy goes straight from the source to the worker and from the
worker to the destination. What is done is known by the results, as everywhere: whatever crashes, the same command goes on with
what is missing. Ray starts a dead actor again, and the songs that it had go back to the board; those that it had finished are
skipped.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MetaTasNetError
from .destination import Destination
from .events import Event, Listener, Notice, RunEnded, SongEnded
from .local import PROGRESS_SECONDS, Desk, carry_out
from .ray_cluster import Pool, nodes_of, plan_pool, ray_cluster
from .settings import Settings
from .song import Song
from .staging import remove_abandoned
from .storage import local_path
from .supervised import SupervisedWorker

__all__ = ["Board", "run_ray"]

MOST_SONGS = 8
"""That a worker takes off the board at once."""

RESTARTS = 100
"""Restarts of one actor; its songs are tried one by one when a codec ends the process below it, so few are needed."""

EXCHANGE_SECONDS = 0.2
"""So long an outcome may be under way: what a driver has not heard of when it is killed has no row in the ledger."""

FAREWELL_SECONDS = 3.0
"""For workers that Ray ends to take their folders along."""

PATIENCE = 60.0
"""Seconds without a worker after which we say what is waited for, and again after as many."""


def run_ray(
    songs: Sequence[Song],
    settings: Settings,
    destination: str,
    listener: Listener | None = None,
    stop: threading.Event | None = None,
    *,
    address: str | None = None,
    run: str | None = None,
    shard: str = "1/1",
    workers: int | None = None,
    price_per_hour: float | None = None,
    grace: float = 60.0,
) -> RunEnded:
    """Separate songs that are not done yet on a Ray cluster, or on this machine with a Ray of its own, the longest first.

    Args:
        listener: gets every event, in this thread.
        stop: when set, songs in flight have ``grace`` seconds to be finished, and no other is begun.
        address: of a Ray cluster, as ``ray.init`` takes it; None starts Ray on this machine and ends it afterwards.
        workers: actors at most; None for one on each GPU, or where there is none, on each machine.
        price_per_hour: of one machine.

    Returns:
        the last event; the ledger has a row for every song that was tried.

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

        def work(todo: Sequence[Song], token: str | None, desk: Desk) -> None:
            desk(Notice(f"Ray: {pool.describe()}."))
            if address and token is not None:
                text = f"{destination} is a local path: every machine of the cluster must have the same folder there."
                desk(Notice(text))
            _work(ray, todo, pool, (options, destination, grace), desk)

        ended = carry_out(
            work, songs, options, destination, listener, stop, "ray", run, shard, price_per_hour, pool.machines
        )
    # A worker that Ray ended, orphaned or not, had no time to take its folder along.
    remove_abandoned(Destination(destination).storage, FAREWELL_SECONDS)
    return ended


class Board:
    """Becomes a Ray actor that needs no CPU: workers take songs off it and leave their events there.

    Args:
        songs: in the order in which they are to be begun.
        workers: how many there will be.
    """

    def __init__(self, songs: Sequence[Song], workers: int) -> None:
        self._songs = deque(songs)
        self._workers = workers
        self._held: dict[int, dict[str, Song]] = {}
        self._events: list[Event] = []
        self._stopping = False

    def join(self, worker: int) -> None:
        """A worker begins, perhaps after a crash: the songs that it had are the next."""
        self._songs.extendleft(reversed(self._held.get(worker, {}).values()))
        self._held[worker] = {}

    def exchange(self, worker: int, events: Sequence[Event], hungry: bool) -> tuple[list[Song], bool]:
        """Leave events, and take songs if the worker is ``hungry``; the second value says whether the run is being stopped."""
        held = self._held[worker]
        for event in events:
            if isinstance(event, SongEnded):
                held.pop(event.outcome.id, None)
        self._events += events
        # Fewer towards the end, so that no worker has songs in hand while another has none.
        count = max(1, min(MOST_SONGS, len(self._songs) // (4 * self._workers)))
        wanted = count if hungry and not self._stopping else 0
        songs = [self._songs.popleft() for _ in range(min(wanted, len(self._songs)))]
        held.update((song.id, song) for song in songs)
        return songs, self._stopping

    def take(self) -> tuple[list[Event], int]:
        """All events since the last time, and how many workers there have been."""
        events, self._events = self._events, []
        return events, len(self._held)

    def stop(self) -> None:
        """Give out no further song."""
        self._stopping = True


class Feed(Iterator[Song]):
    """A worker's end of the board: the songs that it gives just now, and a listener for the worker.

    Args:
        exchange: calls :meth:`Board.exchange` and waits for the answer.
        stop: is set when the driver says so, or is gone.
    """

    def __init__(self, exchange: Callable[[list[Event], bool], tuple[list[Song], bool]], stop: threading.Event) -> None:
        self._exchange, self._stop = exchange, stop
        self._songs: deque[Song] = deque()
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)
        self._thread.start()

    def __next__(self) -> Song:
        if not self._songs:
            self._turn(hungry=True)
        try:
            return self._songs.popleft()
        except IndexError:
            raise StopIteration from None

    def hear(self, event: Event) -> None:
        """Keep an event for the next exchange."""
        with self._lock:
            self._events.append(event)

    def close(self) -> None:
        """Leave the last events."""
        self._left.set()
        self._thread.join()
        self._turn(hungry=False)

    def _turn(self, hungry: bool) -> None:
        with self._lock:  # so that events arrive in their order
            events, self._events = self._events, []
            try:
                songs, stopping = self._exchange(events, hungry)
            except Exception:  # whatever Ray raises: the board is gone, and so is the driver
                songs, stopping = [], True
        self._songs.extend(songs)
        if stopping:
            self._stop.set()

    def _work(self) -> None:
        while not self._left.wait(EXCHANGE_SECONDS):
            self._turn(hungry=False)


class SeparateSongs:
    """The actor: a supervised worker that is fed from the board."""

    def __init__(self, number: int, board: Any, settings: Settings, destination: str, grace: float) -> None:
        self._number, self._board = number, board
        self._settings, self._destination, self._grace = settings, destination, grace

    def run(self) -> str | None:
        """Separate songs until there are none; a sentence if that cannot be done, as Ray would wrap an exception."""
        import ray

        ray.get(self._board.join.remote(self._number))

        def exchange(events: list[Event], hungry: bool) -> tuple[list[Song], bool]:
            answer = self._board.exchange.remote(self._number, events, hungry)
            songs, stopping = ray.get(answer, timeout=60)
            return songs, stopping

        stop = threading.Event()
        feed = Feed(exchange, stop)
        try:
            with SupervisedWorker(
                self._settings, self._destination, feed.hear, stop, self._number, self._grace
            ) as worker:
                if worker.describe():
                    feed.hear(Notice(worker.describe()))
                for _ in worker.process(feed):
                    pass  # the outcome is part of an event
        except MetaTasNetError as error:
            return str(error)
        finally:
            feed.close()
        return None


def _work(ray: Any, songs: Sequence[Song], pool: Pool, order: tuple[Settings, str, float], desk: Desk) -> None:
    """Have every song tried, or those that were begun when the run was stopped; raises what ended the last worker."""
    board = ray.remote(num_cpus=0)(Board).remote(songs, pool.workers)
    actor = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(
        SeparateSongs
    )
    actors = [actor.remote(number, board, *order) for number in range(pool.workers)]
    working = {actor.run.remote(): number for number, actor in enumerate(actors)}
    errors: list[MetaTasNetError] = []
    next_progress, say_so = time.monotonic(), time.monotonic() + PATIENCE

    def pass_on() -> int:
        events, joined = ray.get(board.take.remote())
        for event in events:
            desk(event)
        return int(joined)

    while working:
        ended, _ = ray.wait(list(working), timeout=EXCHANGE_SECONDS)
        try:
            joined = pass_on()
            for run in ended:
                number = working.pop(run)
                error = _end_of(ray, run)
                if error is not None:
                    errors.append(error)
                    board.join.remote(number)  # what it had is for the others
                    if len(errors) < pool.workers:
                        desk(Notice(f"Worker {number} has ended: {error}"))
        except ray.exceptions.RayError as error:
            raise _understood(error) from error
        if desk.stop.is_set():
            board.stop.remote()
        if joined == 0 and time.monotonic() >= say_so:
            say_so = time.monotonic() + PATIENCE
            free = ray.available_resources()
            desk(
                Notice(
                    f"Still waiting for a place in the Ray cluster: wanted {pool.describe()}; "
                    f"free are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs."
                )
            )
        if time.monotonic() >= next_progress:
            next_progress = time.monotonic() + PROGRESS_SECONDS
            desk(desk.tally.progress())
    pass_on()
    if len(errors) == pool.workers:
        raise errors[-1]


def _end_of(ray: Any, run: Any) -> MetaTasNetError | None:
    """Return the error that ended a worker before its work was done, or None."""
    try:
        sentence = ray.get(run)
    except ray.exceptions.RayError as error:
        return _understood(error)
    return None if sentence is None else MetaTasNetError(sentence)


def _understood(error: Exception) -> MetaTasNetError:
    """An error of ours, or what Ray says, in one sentence."""
    if isinstance(error, MetaTasNetError):
        return error
    lines = str(error).strip().splitlines() or [""]
    return MetaTasNetError(f"Ray ended the run ({type(error).__name__}: {lines[-1]}).")


def _absolute(settings: Settings, destination: str, songs: Sequence[Song]) -> tuple[Settings, str, list[Song]]:
    """With absolute paths: actors have other working directories."""

    def absolute(uri: str) -> str:
        return os.path.abspath(uri) if local_path(uri) is not None and "://" not in uri else uri

    if Path(settings.model).exists():
        settings = replace(settings, model=os.path.abspath(settings.model))
    return settings, absolute(destination), [replace(song, uri=absolute(song.uri)) for song in songs]
