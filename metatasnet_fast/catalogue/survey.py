"""A survey of a destination: songs counted by the names of their results, or every byte checked."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .._io import sha256_file
from .destination import SONGS, Destination, song_folder
from .failures import Failure
from .result import Listed, Outcome, Result, Status

__all__ = ["Finding", "Survey", "survey", "verify"]

THREADS = 16
"""Songs that are read at once; hashing takes one core for each, reading from an object store takes none."""


@dataclass
class Survey:
    """``failed`` are songs whose last outcome is a failure and that have no result; sizes in bytes, times in seconds.

    Where the id is ``taken``, the result is that of another song.
    """

    destination: str
    done: int = 0
    damaged_results: int = 0
    """Folders whose files are not those that the result was written for, or that have no result that can be read."""
    audio_seconds: float = 0.0
    bytes: int = 0
    models: Counter[str] = field(default_factory=Counter)
    """Songs by model and settings: ``name key``."""
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **vars(self),
            "models": dict(self.models),
            "failed": dict(self.failed),
            "failures": [outcome.to_dict() for outcome in self.failures],
        }


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a song's folder."""

    folder: str
    problem: str


def survey(destination: Destination) -> Survey:
    """Count what is done and what failed, from one listing and the ledger.

    Only the first result of every model and settings is read, for the model's name.
    """
    found = Survey(destination.uri)
    done: set[str] = set()
    names: dict[str, str] = {}
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
    failures: dict[str, dict[str, Any]] = {}
    runs: dict[str, None] = {}
    for run, row in destination.ledger_rows():
        runs[run] = None
        if row.get("status") == Status.failed.value:
            failures[row["id"]] = row
        else:
            failures.pop(row["id"], None)
    outcomes = map(Outcome.from_dict, failures.values())
    found.failures = [o for o in outcomes if o.failure is Failure.taken or song_folder(o.id) not in done]
    found.failed = Counter((outcome.failure or Failure.unknown).value for outcome in found.failures)
    found.runs = list(runs)
    return found


def verify(
    destination: Destination, repair: bool = False, shard: tuple[int, int] = (1, 1), sample: float = 1.0
) -> Iterator[Finding | Result]:
    """Read every stem of every song and compare it with what its result says; yields the results that hold, and findings.

    Args:
        repair: take away what does not hold, so that the next run makes those songs again; only while no run is going on.
        shard: check the ``i``-th of ``n`` parts of the songs only, ``i`` from 1.
        sample: check this share of the songs only, 0 to 1, the same ones in every call.
    """
    index, count = shard

    def chosen() -> Iterator[tuple[str, dict[str, int]]]:
        for folder, sizes in destination.storage.listing(SONGS):
            number = int.from_bytes(hashlib.sha256(b"verify " + folder.encode()).digest()[:8], "big")
            if number % count == index - 1 and number // count / 2**64 * count < sample:
                yield folder, sizes

    def judge(entry: tuple[str, dict[str, int]]) -> tuple[str, Result | None, str | None, set[str]]:
        return entry[0], *_judged(destination, *entry)

    for folder, result, problem, unwanted in _at_once(judge, chosen()):
        if result is not None:
            yield result
        if problem is not None:
            yield Finding(folder, problem)
            for name in unwanted if repair else ():
                destination.storage.remove(f"{folder}/{name}")


def _at_once(work: Any, items: Iterable[Any]) -> Iterator[Any]:
    """Results of ``work`` in the order of the items, some of which are worked on at the same time."""
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[Future[Any]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _judged(destination: Destination, folder: str, sizes: dict[str, int]) -> tuple[Result | None, str | None, set[str]]:
    """A song's result if it holds, what is wrong in its folder if anything, and the files that must go for that."""
    names = set(sizes)
    name = Listed.of(sizes).name
    if not name:
        return None, f"no result, but {', '.join(sorted(names))}", names
    try:
        result = destination.read_result(folder, name)
    except OSError as error:
        return None, f"the result cannot be read ({error.strerror or error})", {name}
    if result is None or name != result.name:
        return None, "the result is damaged", {name}
    problem = _problem(destination, result, sizes)
    if problem is not None:
        return None, problem, {name}
    strays = names - {file.path for file in result.files.values()} - {name}
    problem = f"files that the result does not name: {', '.join(sorted(strays))}" if strays else None
    return result, problem, strays


def _problem(destination: Destination, result: Result, sizes: dict[str, int]) -> str | None:
    """Return the defect of a song's stems in a few words."""
    folder = song_folder(result.id)
    for stem, file in result.files.items():
        if file.path not in sizes:
            return f"{stem} is missing"
        if sizes[file.path] != file.bytes:
            return f"{stem} has {sizes[file.path]} bytes, not {file.bytes}"
        try:
            with destination.storage.local(f"{folder}/{file.path}") as path:
                found = sha256_file(path)
        except OSError as error:
            return f"{stem} cannot be read ({error.strerror or error})"
        if found != file.sha256:
            return f"{stem} has another content than it had when it was written"
    return None
