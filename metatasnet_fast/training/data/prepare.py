"""Prepare a cache: decode and resample every track once, in parallel; an interrupted run can be continued.

A track is done when it has an entry with the hash of its input files. So finished tracks are skipped, changed tracks
are prepared again, and a half-written folder never counts as a track. A track that cannot be used has the outcome
``failed``, and the others go on. If a track changed its split in the source, its folder is moved by a single rename, so
that it is in exactly one split at any time.
"""

from __future__ import annotations

import dataclasses
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..._io import claiming, reporting_write_errors, sync
from ...errors import MetaTasNetError, TrainingDataError
from .convert import Outcome, Settings, content_hash, inputs, prepare_track
from .sources import TrackSource, read_unknown, stem_files, stems_found
from .store import (
    DEFAULT,
    DTYPES,
    PARTIAL,
    SPLIT_FOLDER,
    SPLITS,
    Stems,
    TrackEntry,
    check_rates,
    entries_in,
    read_entry,
    refuse_shared_tracks,
    rewrite_entry,
    write_manifest,
)

__all__ = ["Preparation", "prepare", "refuse_own_folder"]


@dataclass(frozen=True)
class Migration:
    """Result of :func:`migrate_splits`."""

    moved: list[tuple[str, str, str]]
    """Name, old and new split of every track that changed its split."""
    gone: list[str]
    """``split/name`` of the cached tracks that came from this source, but are no longer in the source."""


def migrate_splits(settings: Settings, source: Sequence[TrackSource]) -> Migration:
    """Move every cached track to the split that it has in the source, and list the tracks that the source lacks.

    Args:
        settings: the settings of the cache.
        source: all tracks of the source.

    Raises:
        TrainingDataError: if a folder cannot be moved.
    """
    wanted = {(track.split, track.name) for track in source}
    folders = _folders(source)
    moved, gone = [], []
    for entry in list(entries_in(settings.out)):
        if (entry.split, entry.name) in wanted:
            continue
        now = next((t for t in source if t.name == entry.name and _is_same(entry, t, settings)), None)
        if now is not None:
            _move(settings.out, entry, now.split)
            moved.append((entry.name, entry.split, now.split))
        elif Path(entry.origin).parent in folders:
            gone.append(f"{entry.split}/{entry.name}")
    return Migration(moved, gone)


def refuse_own_folder(out: Path, source: Sequence[TrackSource]) -> None:
    """Raise :class:`TrainingDataError` if a cache in ``out`` would lie among the songs, or be taken for a song."""
    folder = Path(os.path.realpath(out))
    tracks = {Path(os.path.realpath(track.path)) for track in source}
    beside = {track.parent for track in tracks}
    roots = beside | {path.parent for path in beside if SPLIT_FOLDER.fullmatch(path.name)}
    # A folder next to the tracks does no harm if it is no track, but inside a split every folder counts as a track.
    among = {path for path in beside if SPLIT_FOLDER.fullmatch(path.name)}
    if (
        folder in roots
        or (folder.parent in roots and SPLIT_FOLDER.fullmatch(folder.name))
        or not among.isdisjoint(folder.parents)
        or not tracks.isdisjoint((folder, *folder.parents))
    ):
        raise TrainingDataError(f"{out} is where the songs are; choose another folder for what is made of them.")


def _folders(source: Sequence[TrackSource]) -> set[Path]:
    """Return the folders of the source's tracks, and the folders of the other splits next to these."""
    folders = {Path(os.path.abspath(track.path)).parent for track in source}
    return folders | {folder.parent / split for folder in folders if folder.name in SPLITS for split in SPLITS}


def _is_same(entry: TrackEntry, track: TrackSource, settings: Settings) -> bool:
    if entry.origin == os.path.abspath(track.path):
        return True
    try:
        return entry.sha256 == content_hash(inputs(track, settings))
    except MetaTasNetError:
        return False  # the error is reported when the track is prepared


def _move(cache: Path, entry: TrackEntry, split: str) -> None:
    place, target = cache / entry.split / entry.name, cache / split / entry.name
    with reporting_write_errors(target, TrainingDataError, f"move or delete {place}, and prepare again"):
        if read_entry(target) is not None:
            _discard(cache, place)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        place.rename(target)
        for folder in (target.parent, place.parent):
            sync(folder)
    rewrite_entry(target, dataclasses.replace(entry, split=split))


def _discard(cache: Path, place: Path) -> None:
    """Remove a track's folder. It is renamed first, so that a half-removed folder is never read as a track."""
    scrap = cache / PARTIAL / f"{place.parent.name}--{place.name}.old"
    scrap.parent.mkdir(exist_ok=True)
    place.rename(scrap)
    shutil.rmtree(scrap)


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """The result of preparing a cache."""

    outcomes: list[Outcome]
    seconds: dict[str, float]
    """Seconds of audio that the cache now holds, by split."""

    migration: Migration = field(default_factory=lambda: Migration([], []))
    """Tracks that moved to another split of the cache, and tracks that the source no longer has."""

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]


def prepare(
    tracks: Sequence[TrackSource],
    out: str | os.PathLike[str],
    *,
    rates: Sequence[int] = (8000, 16000, 32000),
    dtype: str = "int16",
    stems: Stems | None = None,
    workers: int = 1,
    source: Sequence[TrackSource] | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> Preparation:
    """Make or continue a cache, write its manifest, and return what was done.

    Args:
        tracks: the tracks to prepare, as :func:`find_stems`, :func:`find_musdb` or :func:`find_original` returns them.
        out: the cache's folder. Tracks that earlier calls put there stay.
        rates: sampling rates in hertz, multiples of the lowest.
        dtype: ``int16`` or ``float32``.
        stems: the instruments of the cache, and the stems that each is the sum of; by default the stems that the tracks have,
            see :func:`metatasnet_fast.training.data.sources.stems_found`.
        workers: number of processes; with 1, everything happens in this process.
        source: all tracks of the source, if ``tracks`` are only some of these. Cached tracks move to the split that
            they have in the source.
        report: called with each outcome as it arrives.

    Raises:
        TrainingDataError: if ``out`` cannot be used or has other settings, or if two tracks have the same name and
            split.
        MissingDependencyError: if a program or package that the tracks need is missing.
    """
    settings = Settings(Path(out), check_rates(rates), dtype, _stems_of(tracks) if stems is None else stems)
    _check(settings, tracks, workers)
    refuse_own_folder(settings.out, tracks if source is None else source)
    busy = f"Another process is preparing into {settings.out}; wait for it to end."
    with claiming(settings.out, TrainingDataError, busy), _scratch(settings.out / PARTIAL):
        _refuse_other_settings(settings)
        migration = migrate_splits(settings, tracks if source is None else source)
        if migration.moved:
            write_manifest(settings.out, settings.rates, stems=settings.stems)
        outcomes = []
        for outcome in _run(tracks, settings, workers):
            outcomes.append(outcome)
            report(outcome)
        failed = [{"name": o.name, "split": o.split, "error": o.error} for o in outcomes if o.status == "failed"]
        manifest = write_manifest(settings.out, settings.rates, failed, settings.stems)
        refuse_shared_tracks(settings.out, entries_in(settings.out))
    return Preparation(outcomes, manifest["seconds"], migration)


def _stems_of(tracks: Sequence[TrackSource]) -> Stems:
    """Return the instruments of tracks: one for each stem that has a file, or that a ``track.json`` names as unknown;
    ``DEFAULT`` if there is no such stem."""
    names: set[str] = set()
    for track in tracks:
        if track.kind == "stems":
            names.update(stem_files(track.path))
            with suppress(TrainingDataError):  # the error is reported when the track is prepared
                names.update(read_unknown(track.path))
    return stems_found(names) if names else DEFAULT


def _check(settings: Settings, tracks: Sequence[TrackSource], workers: int) -> None:
    if settings.dtype not in DTYPES:
        raise TrainingDataError(f"There is no sample type {settings.dtype!r}; choose one of {', '.join(DTYPES)}.")
    if workers < 1:
        raise TrainingDataError(f"workers must be at least 1, got {workers}.")
    if settings.stems != DEFAULT and any(track.kind == "original" for track in tracks):
        raise TrainingDataError(f"Tracks of the authors' program have {', '.join(DEFAULT)}: leave --instruments out.")
    twice = [key for key, count in Counter((t.split, t.name) for t in tracks).items() if count > 1]
    if twice:
        raise TrainingDataError(f"Two tracks of {twice[0][0]} are called {twice[0][1]!r}; rename one of them.")


def _refuse_other_settings(settings: Settings) -> None:
    for entry in entries_in(settings.out):
        rates = tuple(sorted(entry.rates))
        if rates != settings.rates or entry.dtype != settings.dtype:
            raise TrainingDataError(
                f"{settings.out} holds tracks at {', '.join(map(str, rates))} Hz as {entry.dtype}; go on with these "
                "settings, or choose another folder."
            )
        if list(entry.stems.items()) != list(settings.stems.items()):  # in another order, too
            raise TrainingDataError(
                f"{settings.out} holds the instruments {_named(entry.stems)}, not {_named(settings.stems)}; name them with "
                "--instruments, or choose another folder."
            )


def _named(stems: Stems) -> str:
    """Format instruments as ``--instruments`` takes them."""
    return ",".join(name if parts == (name,) else f"{name}={'+'.join(parts)}" for name, parts in stems.items())


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Remove the half-written files in ``folder``: those of a killed run before the block, those of this run after
    it."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(tracks: Sequence[TrackSource], settings: Settings, workers: int) -> Iterator[Outcome]:
    """Prepare tracks, and yield outcomes as they arrive.

    If a worker is killed, for example because memory ran out, continue with half as many workers. If the only worker is
    killed, its track fails.
    """
    if workers == 1:
        for track in tracks:
            try:
                yield prepare_track(track, settings)
            except Exception as error:
                yield _unexpected(track, error)
        return
    left = list(tracks)
    workers = min(workers, max(1, len(left)))
    while left:
        try:
            yield from _in_processes(left, settings, workers)
        except BrokenProcessPool:
            if workers == 1:
                track = left.pop(0)
                reason = f"The process that prepared {track.path} was killed, perhaps for want of memory; make room."
                yield Outcome(track.name, track.split, "failed", error=reason)
            else:
                workers //= 2
                log.warning("A worker was killed, perhaps for want of memory; going on with %d.", workers)


def _in_processes(left: list[TrackSource], settings: Settings, workers: int) -> Iterator[Outcome]:
    """Prepare tracks in worker processes: yield outcomes as they arrive, and remove each finished track from ``left``.

    If a worker is killed, raise ``BrokenProcessPool``; ``left`` then holds the tracks that are not finished.
    """
    with _pool(workers) as pool:
        futures = {pool.submit(prepare_track, track, settings): track for track in left}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                raise
            except Exception as error:
                outcome = _unexpected(futures[future], error)
            left.remove(futures[future])
            yield outcome


def _unexpected(track: TrackSource, error: Exception) -> Outcome:
    log.error("%s", track.name, exc_info=error)
    reason = f"{track.path} cannot be prepared ({type(error).__name__}: {error}); please report this."
    return Outcome(track.name, track.split, "failed", error=reason)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool whose processes end with the block; after an error or interruption, they are terminated at once."""
    others = set(multiprocessing.active_children())
    # Do not fork: torch's threads do not exist in a forked process.
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
    # Ctrl-C reaches all processes of a terminal; the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the parent process ends; otherwise it would go on waiting after the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
