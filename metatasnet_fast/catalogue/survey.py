"""What lies at a destination: counted, or checked to the last byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from .._io import sha256_file
from .destination import SONGS, Destination, song_folder
from .outcome import Failure, Outcome, Status
from .result import RESULT_NAME, Result

__all__ = ["Finding", "Survey", "survey", "verify"]


@dataclass
class Survey:
    """``failed`` are songs whose last outcome is a failure and that have no result; sizes in bytes, times in seconds.

    Where the id is ``taken``, the result is that of another song.
    """

    destination: str
    done: int = 0
    damaged_results: int = 0
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
    """Count what is done and what failed; results are read, stems are not."""
    found = Survey(destination.uri)
    done: set[str] = set()
    for _, result in destination.results():
        if result is None:
            found.damaged_results += 1
            continue
        done.add(result.id)
        found.done += 1
        found.audio_seconds += float(result.audio["duration"])
        found.bytes += sum(file.bytes for file in result.files.values())
        found.models[f"{result.identity.model_name} {result.key[:8]}"] += 1
    failures: dict[str, Outcome] = {}
    runs: dict[str, None] = {}
    for run, outcome in destination.ledger_by_run():
        runs[run] = None
        if outcome.status is Status.failed:
            failures[outcome.id] = outcome
        else:
            failures.pop(outcome.id, None)
    found.failures = [
        outcome for outcome in failures.values() if outcome.id not in done or outcome.failure is Failure.taken
    ]
    found.failed = Counter((outcome.failure or Failure.unknown).value for outcome in found.failures)
    found.runs = list(runs)
    return found


def verify(destination: Destination, repair: bool = False) -> Iterator[Finding | Result]:
    """Read every stem of every song and compare it with what its result says; yields the results that hold, and findings.

    Args:
        repair: take away what does not hold, so that the next run makes those songs anew; only while no run is going on.
    """
    storage = destination.storage
    for folder, paths in groupby(storage.find(SONGS), key=lambda path: path.rpartition("/")[0]):
        names = {path.rpartition("/")[2] for path in paths}
        result, problem, unwanted = _judged(destination, folder, names)
        if result is not None:
            yield result
        if problem is None:
            continue
        yield Finding(folder, problem)
        if repair:
            for name in unwanted:
                storage.remove(f"{folder}/{name}")


def _judged(destination: Destination, folder: str, names: set[str]) -> tuple[Result | None, str | None, set[str]]:
    """A song's result if it holds, what is wrong in its folder if anything, and the files that must go for that."""
    try:
        content = destination.storage.read(f"{folder}/{RESULT_NAME}")
    except OSError as error:
        return None, _unreadable(destination, RESULT_NAME, error), {RESULT_NAME}
    if content is None:
        return None, f"no result.json, but {', '.join(sorted(names))}", names
    result = Result.from_json(content)
    if result is None or song_folder(result.id) != folder:
        return None, "result.json is damaged", {RESULT_NAME}
    problem = _problem(destination, result)
    if problem is not None:
        return None, problem, {RESULT_NAME}
    strays = names - {file.path for file in result.files.values()} - {RESULT_NAME}
    problem = f"files that result.json does not name: {', '.join(sorted(strays))}" if strays else None
    return result, problem, strays


def _unreadable(destination: Destination, name: str, error: OSError) -> str:
    """What is wrong with a file that a disk cannot read, where its folder could be; raises what an object store refuses."""
    if not destination.is_local:
        raise error
    return f"{name} cannot be read ({error.strerror or error})"


def _problem(destination: Destination, result: Result) -> str | None:
    """What is wrong with a song's stems, in a few words."""
    folder = song_folder(result.id)
    sizes = destination.storage.sizes(folder)
    for stem, file in result.files.items():
        if file.path not in sizes:
            return f"{stem} is missing"
        if sizes[file.path] != file.bytes:
            return f"{stem} has {sizes[file.path]} bytes, not {file.bytes}"
        try:
            with destination.storage.local(f"{folder}/{file.path}") as path:
                found = sha256_file(path)
        except OSError as error:
            return _unreadable(destination, stem, error)
        if found != file.sha256:
            return f"{stem} has another content than it had when it was written"
    return None
