"""Tracks of a cache whose split in their source has changed, or that their source no longer has.

A track is the same as before if it comes from the same place or has the same contents. If it moved, its finished
conversion moves in a single rename, so that it is in exactly one split at any time.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..._io import reporting_write_errors, sync
from ...errors import MetaTasNetError, TrainingDataError
from .convert import Settings, inputs
from .decode import content_hash
from .entry import SPLIT_FOLDER, SPLITS, TrackEntry
from .sources import TrackSource
from .store import PARTIAL, entries_in, place_of, read_entry, rewrite_entry

__all__ = ["Migration", "migrate_splits", "refuse_own_folder"]


@dataclass(frozen=True)
class Migration:
    """Result of :func:`migrate_splits`."""

    moved: list[tuple[str, str, str]]
    """Name, old and new split of every track that changed its split."""
    gone: list[str]
    """``split/name`` of the tracks that came from this source, which no longer has them."""


def migrate_splits(settings: Settings, source: Sequence[TrackSource]) -> Migration:
    """Move every cached track to the split that it has in its source, and list those that the source lacks.

    Args:
        settings: of the cache.
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
    """Raise :class:`TrainingDataError` if a cache in ``out`` would lie among the songs, or be taken for them."""
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
    """Return the folders where the source's tracks are or were."""
    folders = {Path(os.path.abspath(track.path)).parent for track in source}
    return folders | {folder.parent / split for folder in folders if folder.name in SPLITS for split in SPLITS}


def _is_same(entry: TrackEntry, track: TrackSource, settings: Settings) -> bool:
    if entry.origin == os.path.abspath(track.path):
        return True
    try:
        return entry.sha256 == content_hash(inputs(track, settings))
    except MetaTasNetError:
        return False  # it is reported when its turn comes


def _move(cache: Path, entry: TrackEntry, split: str) -> None:
    place, target = place_of(cache, entry.split, entry.name), place_of(cache, split, entry.name)
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
    """Remove a track's folder, in such a way that a half-removed folder is never read as a track."""
    scrap = cache / PARTIAL / f"{place.parent.name}--{place.name}.old"
    scrap.parent.mkdir(exist_ok=True)
    place.rename(scrap)
    shutil.rmtree(scrap)
