"""The plan of a run: the manifest compared with one listing of the destination and with its ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from .destination import Destination, song_folder
from .failures import Failure, SongError
from .machinery import find_identity
from .result import Listed, Outcome, Status, utc_now
from .settings import Settings
from .song import Song
from .source import Source, Stamp
from .storage import client_errors, local_path, reaching

__all__ = ["Plan", "count_missing", "make_plan"]

THREADS = 32
"""Songs on object stores that are looked at at once: most of the time is waiting."""


@dataclass
class Plan:
    """The songs of a manifest by what is to be done with them."""

    key: str
    """Checksum of the model and the settings."""
    todo: list[Song] = field(default_factory=list)
    """The longest first."""
    done: list[tuple[Song, Listed]] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    """Failed before, for a reason that lies in their files, which are still the same."""
    unwritten: list[Outcome] = field(default_factory=list)
    """Rows for songs that are done and have none in the ledger: a run that was killed may lose rows."""

    @property
    def audio_seconds_done(self) -> float:
        return sum(listed.duration for _, listed in self.done)


def make_plan(songs: Sequence[Song], settings: Settings, destination: Destination) -> Plan:
    """Decide what is done from the names at the destination and the sizes and times of the inputs; no content is read.

    Songs for which that is no proof are to do: the worker that gets them compares contents.

    Raises:
        MetaTasNetError: if the model cannot be loaded.
        ConfigError: if the destination cannot be read.
    """
    plan = Plan(find_identity(settings).key)
    with reaching(destination.uri), client_errors():
        there = dict(destination.listing())
        lasting, known = _history(destination)
    if settings.overwrite:
        plan.todo = list(songs)
    else:
        listed = [there.get(song_folder(song.id)) for song in songs]
        failures = {} if settings.retry_failed else lasting
        asked = [
            song.id in failures or (found is not None and found.is_whole and plan.key.startswith(found.key))
            for song, found in zip(songs, listed, strict=True)
        ]
        stamps = _stamps([song for song, wanted in zip(songs, asked, strict=True) if wanted])
        for song, found, wanted in zip(songs, listed, asked, strict=True):
            stamp = next(stamps) if wanted else None
            before = failures.get(song.id)
            if stamp is None or stamp.version is None:
                plan.todo.append(song)
            elif found is not None and found.proves(plan.key, stamp.text):
                plan.done.append((song, found))
                if song.id not in known:
                    row = Outcome(song.id, song.uri, Status.skipped, plan.key, folder=song_folder(song.id))
                    plan.unwritten.append(replace(row, duration=found.duration, finished=utc_now()))
            elif before is not None and before["uri"] == song.uri and stamp.proves(before.get("stamp")):
                plan.failed.append(Outcome.from_dict(before))
            else:
                plan.todo.append(song)
    plan.todo.sort(key=Song.expected_seconds, reverse=True)
    return plan


def count_missing(songs: Sequence[Song]) -> int:
    """Return how many songs cannot be found or read now."""
    return sum(stamp is None for stamp in _stamps(songs))


def _stamps(songs: Sequence[Song]) -> Iterator[Stamp | None]:
    """The stamp of each input; None for one that cannot be had."""
    if all(song.stamp is not None or local_path(song.uri) is not None for song in songs):
        yield from map(_stamp, songs)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(_stamp, songs)


def _stamp(song: Song) -> Stamp | None:
    if song.stamp is not None:
        size, _, version = song.stamp.partition(":")
        return Stamp(int(size), version)
    try:
        with client_errors():
            return Source(song.uri).stamp()
    except (SongError, OSError):
        return None


def _history(destination: Destination) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """The rows of songs whose last outcome is a failure that only another file can mend, and the ids of all rows."""
    lasting: dict[str, dict[str, Any]] = {}
    known: set[str] = set()
    for _, row in destination.ledger_rows():
        id, failure = row["id"], row.get("failure")
        known.add(id)
        if failure in LASTING:
            lasting[id] = row
        elif failure is not None or row.get("status") == Status.done.value:
            lasting.pop(id, None)
    return lasting, known


LASTING = {failure.value for failure in Failure if failure.lasting}
