"""Preparing a cache: every track decoded and resampled once, in parallel, to be continued after any interruption.

A track is done when it has an entry whose hash is that of its input files; so finished tracks are skipped, changed ones made
anew, and nothing half-written is ever taken for a track. One bad track is one failed outcome.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..._io import PART, try_lock
from ...errors import TrainingDataError
from .convert import Job, Outcome, Settings, prepare_track
from .entry import refuse_shared_tracks
from .original import FOLDERS, RECORDS, remove_moved, write_original_manifest
from .sources import TrackSource
from .splits import Settled, refuse_own_folder, settle
from .store import DTYPES, PARTIAL, check_rates, entries_in, write_manifest

__all__ = ["LAYOUTS", "Preparation", "prepare"]

log = logging.getLogger(__name__)

LAYOUTS = ("cache", "original")


@dataclass(frozen=True)
class Preparation:
    """What became of all tracks."""

    outcomes: list[Outcome]
    seconds: dict[str, float]
    """Length of all tracks that are now in the cache, by split."""

    settled: Settled = field(default_factory=lambda: Settled([], []))
    """Tracks of the cache that moved to another split, and those that the source no longer has."""

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]


def prepare(
    tracks: Sequence[TrackSource],
    out: str | os.PathLike[str],
    *,
    rates: Sequence[int] = (8000, 16000, 32000),
    dtype: str = "int16",
    layout: str = "cache",
    workers: int = 1,
    source: Sequence[TrackSource] | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> Preparation:
    """Make or continue a cache, and write its manifest.

    Args:
        tracks: from :func:`find_stems`, :func:`find_musdb` or :func:`find_original`.
        out: the cache's folder. Tracks that earlier calls put there stay.
        rates: sampling rates, multiples of the lowest.
        dtype: ``int16`` or ``float32``; the authors' layout is always float32.
        layout: ``cache``, or ``original`` for what the authors' program reads (its splits are train and valid).
        workers: processes; with 1 everything happens in this one.
        source: all tracks that the source has, if ``tracks`` are some of them. Cached tracks go to the split that they have
            there.
        report: called with each outcome as it arrives.

    Raises:
        TrainingDataError: if ``out`` cannot be used, or the tracks cannot be stored beside each other in it.
        MissingDependencyError: if a program or package is missing that the tracks need.
    """
    settings = Settings(Path(out), check_rates(rates), dtype, layout)
    _check(settings, tracks, workers)
    refuse_own_folder(settings.out, tracks if source is None else source)
    with _lock(settings.out), _scratch(settings.out / PARTIAL):
        _refuse_other_settings(settings)
        settled = Settled([], [])
        jobs = _jobs(tracks, layout)
        if layout == "original":
            every = _jobs(tracks if source is None else source, layout)
            places = {os.path.abspath(j.track.path): (FOLDERS[j.track.split], f"{j.number:04d}") for j in every}
            remove_moved(settings.out, places)
        else:
            settled = settle(settings, tracks if source is None else source)
            if settled.moved:
                write_manifest(settings.out, settings.rates)
        outcomes = []
        for outcome in _run(jobs, settings, workers):
            outcomes.append(outcome)
            report(outcome)
        failed = [{"name": o.name, "split": o.split, "error": o.error} for o in outcomes if o.status == "failed"]
        write = write_original_manifest if layout == "original" else write_manifest
        manifest = write(settings.out, settings.rates, failed)
        refuse_shared_tracks(settings.out, entries_in(settings.out))
    return Preparation(outcomes, manifest["seconds"], settled)


def _check(settings: Settings, tracks: Sequence[TrackSource], workers: int) -> None:
    for value, known, what in ((settings.dtype, DTYPES, "sample type"), (settings.layout, LAYOUTS, "layout")):
        if value not in known:
            raise TrainingDataError(f"There is no {what} {value!r}; choose one of {', '.join(known)}.")
    if workers < 1:
        raise TrainingDataError(f"workers must be at least 1, got {workers}.")
    if settings.layout == "original":
        if any(rate % 1000 for rate in settings.rates):
            raise TrainingDataError(
                "The authors' layout names its folders in kHz; choose rates that are multiples of 1000."
            )
        if any(track.kind == "original" for track in tracks):
            raise TrainingDataError("These tracks are in the authors' layout already; choose the layout cache.")
    twice = [key for key, count in Counter((t.split, t.name) for t in tracks).items() if count > 1]
    if twice:
        raise TrainingDataError(f"Two tracks of {twice[0][0]} are called {twice[0][1]!r}; rename one of them.")


def _jobs(tracks: Sequence[TrackSource], layout: str) -> list[Job]:
    """Every track with its number in its split."""
    chosen = [track for track in tracks if layout == "cache" or track.split in FOLDERS]
    numbers: Counter[str] = Counter()
    jobs = []
    for track in chosen:
        jobs.append(Job(track, numbers[track.split]))
        numbers[track.split] += 1
    return jobs


def _refuse_other_settings(settings: Settings) -> None:
    cached = entries_in(settings.out)
    if settings.layout == "original":
        other, what = next(cached, None) is not None, "a cache"
    else:
        other, what = (settings.out / RECORDS).is_dir(), "the authors' layout"
    if other:
        raise TrainingDataError(f"{settings.out} holds {what}; choose another folder for {settings.layout!r}.")
    for entry in cached:
        rates = tuple(sorted(entry.rates))
        if rates != settings.rates or entry.dtype != settings.dtype:
            raise TrainingDataError(
                f"{settings.out} holds tracks at {', '.join(map(str, rates))} Hz as {entry.dtype}; go on with these "
                "settings, or choose another folder."
            )


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Make the folder and keep other processes from preparing into it; the system gives it free when this one ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("ab")
    except OSError as error:
        raise TrainingDataError(
            f"Nothing can be written to {out} ({error.strerror or error}); choose another folder."
        ) from error
    with file:
        if try_lock(file) is False:
            raise TrainingDataError(f"Another process is preparing into {out}; wait for it to end.")
        for part in out.rglob(f".*{PART}"):  # left by a process that was killed
            part.unlink(missing_ok=True)
        yield


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Remove what is half-written: what a kill left, before; and what an interruption leaves, after."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(jobs: Sequence[Job], settings: Settings, workers: int) -> Iterator[Outcome]:
    """Outcomes as they arrive. Where a worker is killed, as by a system short of memory, the rest goes on with half of them."""
    if workers == 1:
        for job in jobs:
            try:
                yield prepare_track(job, settings)
            except Exception as error:
                yield _unexpected(job, error)
        return
    left = list(jobs)
    workers = min(workers, max(1, len(left)))
    while left:
        try:
            yield from _in_processes(left, settings, workers)
        except BrokenProcessPool:
            if workers == 1:
                job = left.pop(0)
                reason = (
                    f"The process that prepared {job.track.path} was killed, perhaps for want of memory; make room."
                )
                yield Outcome(job.track.name, job.track.split, "failed", error=reason)
            else:
                workers //= 2
                log.warning("A worker was killed, perhaps for want of memory; going on with %d.", workers)


def _in_processes(left: list[Job], settings: Settings, workers: int) -> Iterator[Outcome]:
    """Outcomes as they arrive; jobs that have one leave ``left``."""
    with _pool(workers) as pool:
        futures = {pool.submit(prepare_track, job, settings): job for job in left}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                raise
            except Exception as error:
                outcome = _unexpected(futures[future], error)
            left.remove(futures[future])
            yield outcome


def _unexpected(job: Job, error: Exception) -> Outcome:
    log.error("%s", job.track.name, exc_info=error)
    reason = f"{job.track.path} cannot be prepared ({type(error).__name__}: {error}); please report this."
    return Outcome(job.track.name, job.track.split, "failed", error=reason)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this block, at once if it ends by an error or an interruption."""
    others = set(multiprocessing.active_children())
    # Not forked: torch's threads do not survive that.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's worker would wait for ever for a parent that was killed, and hold on to the track in hand."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
