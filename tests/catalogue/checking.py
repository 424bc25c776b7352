"""What must hold for a destination when a catalogue has been run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from metatasnet_fast import Separator
from metatasnet_fast.catalogue import Outcome, Status
from metatasnet_fast.catalogue.destination import Destination, song_folder
from metatasnet_fast.catalogue.outcome import is_result
from metatasnet_fast.catalogue.survey import Finding, verify

from .corpus import Corpus, Entry

__all__ = ["assert_every_song_once", "assert_rows_are_right", "assert_same_results", "assert_stems_are_separators"]


def assert_every_song_once(corpus: Corpus, destination: Path) -> None:
    """The good songs have their folder and nothing else is there, to the last byte as their results say."""
    checked = list(verify(Destination(str(destination))))
    assert [found for found in checked if isinstance(found, Finding)] == []
    assert sorted(found.id for found in checked) == sorted(entry.id for entry in corpus.good)  # type: ignore[union-attr]
    staging = destination / ".staging"
    assert not staging.exists() or list(staging.iterdir()) == []
    folders = {path.parent for path in (destination / "songs").rglob("*") if path.is_file()}
    assert folders == {destination / song_folder(entry.id) for entry in corpus.good}


def assert_rows_are_right(corpus: Corpus, rows: Iterable[Outcome], once: bool = True) -> None:
    """A row for every song, and every failure of the type that was expected."""
    last: dict[str, Outcome] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.id] += 1
        last[row.id] = row
    assert set(last) == {entry.id for entry in corpus.entries}
    assert not once or set(counts.values()) == {1}
    for entry in corpus.entries:
        assert _what_became(last[entry.id]) == entry.expected, (entry.what, last[entry.id])
        assert (last[entry.id].error is None) == (entry.expected == "done")


def _what_became(row: Outcome) -> str:
    if row.status is Status.failed:
        return row.failure.value if row.failure else "failed without a type"
    return "done"


def assert_stems_are_separators(
    entries: Iterable[Entry], destination: Path, separator: Separator, folder: Path, limit: float = 0.0
) -> None:
    """Stems as ``Separator`` writes them alone: the same bytes, or within ``limit``."""
    for entry in entries:
        found = separator.separate_file(entry.path, folder / entry.id, name="{stem}", format="flac")
        for stem, alone in found.files.items():
            stored = destination / song_folder(entry.id) / f"{stem}.flac"
            if limit == 0.0:
                assert _digest(stored) == _digest(alone), (entry.id, entry.what, stem)
            else:
                expected, samples = sf.read(alone)[0], sf.read(stored)[0]
                # Each may have rounded to another of two steps of 16 bits.
                assert np.abs(samples - expected).max() <= limit + 2**-15, (entry.id, entry.what, stem)
            alone.unlink()


def assert_same_results(destination: Path, undisturbed: Path) -> None:
    """The same files with the same contents, except for times."""
    assert _contents(destination) == _contents(undisturbed)


def _contents(destination: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted((destination / "songs").rglob("*")):
        name = path.relative_to(destination).as_posix()
        if is_result(path.name):
            # The name tells the time of change of the input, which a copy does not share.
            name = f"{Path(name).parent}/result"
            values = json.loads(path.read_text())
            found[name] = {key: value for key, value in values.items() if key not in ("seconds", "finished")}
            found[name]["input"].pop("stamp", None)
        elif path.is_file():
            found[name] = _digest(path)
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
