"""The engine ``ray``: the same worker, in an actor for each GPU or machine of a Ray cluster.

    songs, longest first -> blocks of a few rows {song} -> map_batches: actors with the model -> rows {outcome} -> ledger

A row is an address, never a waveform: what is heavy goes straight from the source to the worker and from the worker to the
destination. What is done is known by ``result.json``, by id, as everywhere: whatever crashes, the same command goes on with
what is missing. A dead actor is started anew by Ray, and its blocks are tried again; songs that it had finished are skipped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MetaTasNetError
from .destination import Destination, LedgerWriter
from .events import Event, Listener, Notice, RunEnded, RunStarted, SongEnded, SongStarted
from .local import expected_seconds, new_run_name, report_plan
from .outcome import Outcome
from .planning import make_plan
from .ray_board import Board
from .ray_cluster import nodes_of, ray_cluster
from .ray_pool import Pool, plan_pool
from .ray_worker import REFUSED, SeparateSongs
from .settings import Settings
from .song import Song
from .staging import remove_abandoned
from .storage import local_path, reaching, refuse_memory
from .tally import Tally

__all__ = ["run_ray"]

LOG = logging.getLogger(__name__)

CALLS = 8
"""That an actor serves at once; together they keep its worker supplied."""

MOST_SONGS = 8
"""Of one call. Its outcomes become known together."""

PROGRESS_SECONDS = 1.0
FAREWELL_SECONDS = 3.0
"""For the workers' last loads at the end; those that are killed send none."""

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
    run, stop = run or new_run_name(), stop or threading.Event()
    target = Destination(destination)
    refuse_memory(target.storage)
    tally = Tally(len(songs), expected_seconds(songs))

    def say(event: Event) -> None:
        tally(event)
        if listener is not None:
            listener(event)

    with ray_cluster(address) as ray, _ledger(target, run, say) as ledger:
        pool = plan_pool(nodes_of(ray), settings.device, settings.threads, workers)
        say(RunStarted(run, len(songs), tally.expected_seconds, destination, "ray", shard))
        say(Notice(f"Ray: {pool.describe()}."))
        if address and target.is_local:
            say(Notice(f"{destination} is a local path: every machine of the cluster must have the same folder there."))
        # An actor sees the GPU that it holds, and no other.
        device = "cuda" if pool.gpus else settings.device
        plan = make_plan(songs, replace(settings, device=device), target)
        report_plan(plan, say, ledger)
        if plan.todo:
            with reaching(destination):
                target.token  # noqa: B018  made now, and not by a worker whose disk is not mounted
            crew = _Crew(ray, plan.todo, replace(settings, threads=pool.cpus, device=device), destination, pool, grace)
            crew.work(ledger.add, say, tally, stop)
    # A worker that Ray ended, orphaned or not, had no time to take its folder along.
    remove_abandoned(target.storage, FAREWELL_SECONDS)
    ended = tally.finish(run, price_per_hour, pool.machines)
    say(ended.progress)
    say(ended)
    return ended


@contextlib.contextmanager
def _ledger(destination: Destination, run: str, say: Callable[[Event], object]) -> Iterator[LedgerWriter]:
    ledger = LedgerWriter(destination, run)
    try:
        yield ledger
    finally:
        try:
            ledger.close()
        except OSError as error:
            say(Notice(f"The ledger of this run is not complete ({error}); the songs' results are."))


class _Crew:
    """The actors at work on a list of songs."""

    def __init__(
        self, ray: Any, songs: Sequence[Song], settings: Settings, destination: str, pool: Pool, grace: float
    ) -> None:
        self._ray, self._songs, self._settings = ray, songs, settings
        self._destination, self._pool, self._grace = destination, pool, grace
        self._board = ray.remote(num_cpus=0)(Board).remote()
        self._ended: set[str] = set()
        self._say_so = time.monotonic() + PATIENCE

    def work(
        self, keep: Callable[[Outcome], object], say: Callable[[Event], object], tally: Tally, stop: threading.Event
    ) -> None:
        """Until every song has an outcome, or those that were begun when ``stop`` was set."""
        stopping = False
        next_progress = time.monotonic()
        for outcome in _from_a_thread(self._outcomes, PROGRESS_SECONDS / 2):
            if tally.reason is not None:
                stop.set()
            if stop.is_set() and not stopping:
                stopping = True
                self._board.stop.remote()
            if outcome is not None:
                keep(outcome)
                self._ended.add(outcome.id)
                say(SongEnded(outcome))
            if time.monotonic() >= next_progress:
                next_progress = time.monotonic() + PROGRESS_SECONDS
                self._pass_on(say)
                say(tally.progress())
        deadline = time.monotonic() + FAREWELL_SECONDS
        while not self._pass_on(say) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _outcomes(self) -> Iterator[Outcome]:
        """Run the dataset; outcomes as blocks of them arrive."""
        import pyarrow

        data, songs = self._ray.data, self._songs
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        size = max(1, min(MOST_SONGS, len(songs) // (4 * CALLS * self._pool.workers)))
        texts = [json.dumps(song.to_dict()) for song in songs]
        blocks = [pyarrow.table({"song": texts[first : first + size]}) for first in range(0, len(texts), size)]
        dataset = data.from_arrow(blocks).map_batches(
            SeparateSongs,
            fn_constructor_args=(self._settings.to_dict(), self._destination, self._board, self._grace),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self._pool.cpus,
            num_gpus=self._pool.gpus,
            compute=data.ActorPoolStrategy(
                min_size=1,
                max_size=self._pool.workers,
                initial_size=self._pool.workers,
                max_tasks_in_flight_per_actor=CALLS + 2,
                max_concurrent_calls_per_actor=CALLS,
                enable_true_multi_threading=True,
            ),
        )
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in block["outcome"].to_pylist():
                values = json.loads(text)
                if REFUSED in values:
                    raise MetaTasNetError(values[REFUSED])
                yield Outcome.from_dict(values)

    def _pass_on(self, say: Callable[[Event], object]) -> bool:
        """What the workers have pinned to the board, and what is waited for, if no worker comes; whether all have left."""
        try:
            events, joined, left = self._ray.get(self._board.take.remote(), timeout=10)
        except self._ray.exceptions.RayError as error:
            LOG.info("The board of the run does not answer: %s", error)
            return True
        for event in events:
            if not isinstance(event, SongStarted):
                say(event)
            # Outcomes come by another way, perhaps sooner, and without their worker: a song is in flight anywhere.
            elif event.id not in self._ended:
                say(replace(event, worker=0))
        if joined == 0 and time.monotonic() >= self._say_so:
            self._say_so = time.monotonic() + PATIENCE
            free = self._ray.available_resources()
            say(
                Notice(
                    f"Still waiting for a place in the Ray cluster: wanted {self._pool.describe()}; "
                    f"free are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs."
                )
            )
        return bool(left >= joined)


def _from_a_thread(outcomes: Callable[[], Iterator[Outcome]], seconds: float) -> Iterator[Outcome | None]:
    """Outcomes; None whenever there was none for so many seconds, so that signals and the display have their turn."""
    items: queue.Queue[Outcome | Exception | None] = queue.Queue(1000)

    def work() -> None:
        try:
            for outcome in outcomes():
                items.put(outcome)
            items.put(None)
        except Exception as error:
            items.put(error)

    threading.Thread(target=work, name="ray-rows", daemon=True).start()
    while True:
        try:
            item = items.get(timeout=seconds)
        except queue.Empty:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise _understood(item) from item
        yield item


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
