"""Read a destination: plan a run, count songs by the names of their results, or check every byte."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress, islice
from typing import Any, TypeVar

from .._io import sha256_file
from .destination import MOST_CONTENTS, SONGS, Destination
from .inputs import Source, Stamp
from .outcome import Failure, Listed, Outcome, Result, SongError, Status
from .settings import Settings, Song, digest, song_folder
from .storage import client_errors, local_path, reaching

__all__ = ["Finding", "Plan", "Survey", "count_missing", "make_plan", "survey", "verify"]

T = TypeVar("T")
U = TypeVar("U")
THREADS = 32
"""Number of songs that are read at once. Reading mostly waits for a store; a checksum takes one core for each song."""


@dataclass
class Plan:
    """The songs of a manifest, sorted by what has to be done with them."""

    todo: list[Song] = field(default_factory=list)
    """Songs to separate, the longest first."""
    done: list[Listed] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    """Songs that failed before for a reason in their files, which have not changed since."""
    unwritten: list[Outcome] = field(default_factory=list)
    """New rows of the ledger for songs that are done without such a row: a killed run may lose its last rows."""
    contents: dict[str, str] = field(default_factory=dict)
    """Folders of songs that are done with the same key, by the beginning of the content's SHA-256. These songs may
    belong to other runs or shards."""


def make_plan(songs: Sequence[Song], settings: Settings, key: str, destination: Destination) -> Plan:
    """Decide which songs are done, without reading their contents: by the names of the files at the destination, and by
    the sizes and times of the inputs.

    A song that is not certainly done is to do: its worker compares contents.

    Args:
        key: checksum of the model and the settings, ``Identity.key``.

    Raises:
        ConfigError: if the destination cannot be read.
    """
    plan = Plan()
    with reaching(destination.uri):
        there = {} if settings.overwrite else dict(destination.listing())
        last, _ = destination.last_rows()
    wanted = settings.overwrite or settings.retry_failed
    lasting = {failure.value for failure in Failure if failure.lasting and not wanted}
    failures = {id: row for id, row in last.items() if row is not None and row["failure"] in lasting}
    listed = [there.get(song_folder(song.id)) for song in songs]
    known = [
        song.id in failures or (found is not None and found.is_done(key))
        for song, found in zip(songs, listed, strict=True)
    ]
    stamps = _stamps(list(compress(songs, known)))
    for song, found, is_known in zip(songs, listed, known, strict=True):
        stamp = next(stamps) if is_known else None
        before = failures.get(song.id)
        if stamp is None or stamp.version is None:
            plan.todo.append(song)
        elif found is not None and found.proves(key, stamp.text):
            plan.done.append(found)
            if song.id not in last or last[song.id] is not None:
                folder = song_folder(song.id)
                row = Outcome(song.id, song.uri, Status.skipped, key, folder=folder, duration=found.duration)
                plan.unwritten.append(row)
        elif before is not None and before["uri"] == song.uri and stamp.proves(before.get("stamp")):
            plan.failed.append(Outcome.from_dict(before))
        else:
            plan.todo.append(song)
    if plan.todo:
        done = ((found.content, folder) for folder, found in there.items() if found.is_done(key))
        plan.contents = dict(islice(done, MOST_CONTENTS))
    plan.todo.sort(key=Song.expected_seconds, reverse=True)
    return plan


def count_missing(songs: Sequence[Song]) -> int:
    """Return how many songs cannot be found or read now."""
    return sum(stamp is None for stamp in _stamps(songs))


def _stamps(songs: Sequence[Song]) -> Iterator[Stamp | None]:
    """Yield the stamps of the songs' inputs, in order; None for an input that cannot be read."""
    quick = all(song.stamp is not None or local_path(song.uri) is not None for song in songs)
    return map(_stamp, songs) if quick else _at_once(_stamp, songs)


def _stamp(song: Song) -> Stamp | None:
    if song.stamp is not None:
        size, _, version = song.stamp.partition(":")
        return Stamp(int(size), version)
    try:
        with client_errors():
            return Source(song.uri).stamp()
    except (SongError, OSError):
        return None


@dataclass
class Survey:
    """Counts of the songs at a destination. Sizes are in bytes, times in seconds.

    ``failures`` are the last outcomes of the songs that failed and have no result; ``failed`` counts them by type. A
    song whose id is ``taken`` is among these, too: the result under this id is that of another song.
    """

    destination: str
    done: int = 0
    damaged_results: int = 0
    """Number of songs' folders that have no readable result, or other files than those that the result was written
    for."""
    audio_seconds: float = 0.0
    bytes: int = 0
    models: Counter[str] = field(default_factory=Counter)
    """Number of songs by model and settings; the keys are ``<name of the model> <first 8 digits of the key>``."""
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return {**vars(self), "failures": [outcome.to_dict() for outcome in self.failures]}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a song's folder."""

    folder: str
    problem: str


def survey(destination: Destination) -> Survey:
    """Count the songs that are done, and the songs that failed, from one listing and the ledger.

    Of all songs with the same model and settings, only the first result is read, for the model's name.

    Raises:
        ConfigError: if the destination cannot be read.
    """
    found = Survey(destination.uri)
    done: set[str] = set()
    names: dict[str, str] = {}
    with reaching(destination.uri):
        for folder, listed in destination.listing():
            if listed.is_whole and listed.key not in names:
                result = destination.read_result(folder, listed.name)
                if result is not None:
                    names[listed.key] = result.identity.model_name
            if not listed.is_whole or listed.key not in names:
                found.damaged_results += 1
                continue
            done.add(folder)
            found.done += 1
            found.bytes += listed.bytes
            found.audio_seconds += listed.duration
            found.models[f"{names[listed.key]} {listed.key[:8]}"] += 1
        last, found.runs = destination.last_rows()
    outcomes = map(Outcome.from_dict, filter(None, last.values()))
    found.failures = [o for o in outcomes if o.failure is Failure.taken or song_folder(o.id) not in done]
    found.failed = Counter((outcome.failure or Failure.unknown).value for outcome in found.failures)
    return found


def verify(
    destination: Destination, repair: bool = False, shard: tuple[int, int] = (1, 1), sample: float = 1.0
) -> Iterator[Finding | Result]:
    """Read every stem of every song, and compare it with the song's result; yield the correct results, and the
    findings.

    A file of a song that cannot be read is a finding, too.

    Args:
        repair: remove what is wrong, so that the next run makes those songs again. No other run may work there
            meanwhile.
        shard: (i, n) to check only the i-th of n parts of the songs, i from 1.
        sample: check only this share of the songs, 0 to 1, the same songs in every call.

    Raises:
        ConfigError: if the destination cannot be read.
    """
    index, count = shard

    def chosen() -> Iterator[tuple[str, dict[str, int]]]:
        for folder, sizes in destination.storage.listing(SONGS):
            number = int(digest(f"verify {folder}")[:16], 16)
            if number % count == index - 1 and number // count / 2**64 * count < sample:
                yield folder, sizes

    with reaching(destination.uri):
        judged = _at_once(lambda entry: (entry[0], *_judged(destination, *entry)), chosen())
        for folder, result, problem, unwanted in judged:
            if result is not None:
                yield result
            if problem is not None:
                yield Finding(folder, problem)
                for name in unwanted if repair else ():
                    destination.storage.remove(f"{folder}/{name}")


def _at_once(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield what ``work`` returns for each item, in order; THREADS items are worked on at the same time."""
    source = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = deque(pool.submit(work, item) for item in islice(source, 8 * THREADS))
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(work, item) for item in islice(source, 1))
                yield result
        finally:
            for future in ahead:
                future.cancel()


def _judged(destination: Destination, folder: str, sizes: dict[str, int]) -> tuple[Result | None, str | None, set[str]]:
    """Check a song's folder, whose files have these sizes.

    Returns:
        the song's result, None if it is wrong; what is wrong in the folder, None if nothing is; and the names of the
        files to remove for a repair.
    """
    names, name, what = set(sizes), Listed.of(sizes).name, "the result"
    if not name:
        return None, f"no result, but {', '.join(sorted(names))}", names
    try:
        result = destination.read_result(folder, name)
        if result is None or name != result.name:
            return None, "the result is damaged", {name}
        for what, file in result.files.items():
            if file.path not in sizes:
                return None, f"{what} is missing", {name}
            if sizes[file.path] != file.bytes:
                return None, f"{what} has {sizes[file.path]} bytes, not {file.bytes}", {name}
            with destination.storage.local(f"{folder}/{file.path}") as path:
                if sha256_file(path) != file.sha256:
                    return None, f"{what} has another content than it had when it was written", {name}
    except OSError as error:
        return None, f"{what} cannot be read ({error.strerror or error})", {name}
    strays = names - {file.path for file in result.files.values()} - {name}
    problem = f"files that the result does not name: {', '.join(sorted(strays))}" if strays else None
    return result, problem, strays
