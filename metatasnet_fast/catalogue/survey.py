"""What lies at a destination: counted, or checked to the last byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from .destination import SONGS, Destination, song_folder
from .outcome import Failure, Outcome, Status
from .result import RESULT_NAME, Result
from .source import sha256_of

__all__ = ["Finding", "Survey", "survey", "verify"]


@dataclass
class Survey:
    """``failed`` are songs whose last outcome is a failure and that have no result; sizes in bytes, times in seconds."""

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
    found.failures = [outcome for outcome in failures.values() if outcome.id not in done]
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
        content = storage.read(f"{folder}/{RESULT_NAME}")
        result = None if content is None else Result.from_json(content)
        problem: str | None
        if content is None:
            unwanted, problem = names, f"no result.json, but {', '.join(sorted(names))}"
        elif result is None or song_folder(result.id) != folder:
            unwanted, problem = {RESULT_NAME}, "result.json is damaged"
        else:
            unwanted, problem = {RESULT_NAME}, _problem(destination, result)
            strays = names - {file.path for file in result.files.values()} - {RESULT_NAME}
            if problem is None:
                yield result
                if not strays:
                    continue
                unwanted, problem = strays, f"files that result.json does not name: {', '.join(sorted(strays))}"
        yield Finding(folder, problem)
        if repair:
            for name in unwanted:
                storage.remove(f"{folder}/{name}")


def _problem(destination: Destination, result: Result) -> str | None:
    """What is wrong with a song's stems, in a few words."""
    folder = song_folder(result.id)
    sizes = destination.storage.sizes(folder)
    for stem, file in result.files.items():
        if file.path not in sizes:
            return f"{stem} is missing"
        if sizes[file.path] != file.bytes:
            return f"{stem} has {sizes[file.path]} bytes, not {file.bytes}"
        with destination.storage.local(f"{folder}/{file.path}") as path:
            if sha256_of(path) != file.sha256:
                return f"{stem} has another content than it had when it was written"
    return None
