"""The layout of a destination.

songs/ab/cd/<name>/   the stems of a song and result.json; abcd begins the SHA-256 of its id
ledger/<run>...jsonl  one outcome a line, only ever added to
runs/<run>/           the report of a run
.staging/             songs that are being written (local destinations)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from types import TracebackType

from .outcome import Outcome, Status
from .result import RESULT_NAME, Result
from .song import Song, safe_name
from .source import Source, sha256_of
from .storage import LocalStorage, Storage, open_storage

__all__ = ["Destination", "LedgerWriter", "song_folder"]

SONGS = "songs"
LEDGER = "ledger"
PART_ROWS = 500
"""Rows of the ledger that an object store gets in one object."""


def song_folder(id: str) -> str:
    """Where a song's outputs are, relative to the destination; 65,536 folders share the songs."""
    digest = hashlib.sha256(id.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{SONGS}/{digest[:2]}/{digest[2:4]}/{safe_name(id)}"


class Destination:
    """A folder or fsspec URI with the outputs of a catalogue."""

    def __init__(self, uri: str, storage: Storage | None = None) -> None:
        self.uri = uri
        self.storage = storage or open_storage(uri)

    @property
    def is_local(self) -> bool:
        return isinstance(self.storage, LocalStorage)

    def result(self, id: str) -> Result | None:
        """A song's ``result.json``, if it is whole."""
        content = self.storage.read(f"{song_folder(id)}/{RESULT_NAME}")
        result = None if content is None else Result.from_json(content)
        return result if result is not None and result.id == id else None

    def complete(self, id: str, result: Result) -> bool:
        """Whether all files that a result names are there, in their sizes."""
        sizes = self.storage.sizes(song_folder(id))
        return all(sizes.get(file.path) == file.bytes for file in result.files.values())

    def done(self, song: Song, key: str, source: Source) -> Result | None:
        """The song's result, if it is done: for these model and settings (``key``), and for the content that the input has now.

        The content is read only if size and time of change do not prove that it is the same.

        Raises:
            SongError: if the input cannot be found.
        """
        result = self.result(song.id)
        if result is None or result.key != key or not self.complete(song.id, result):
            return None
        stamp = source.stamp()
        if stamp.proves(result.input["stamp"]):
            return result
        if stamp.size != result.input["bytes"]:
            return None
        with source.local() as path:
            return result if sha256_of(path) == result.content else None

    def results(self) -> Iterator[tuple[str, Result | None]]:
        """Every song folder that has a ``result.json``, and what it says; None if that is damaged."""
        for path in self.storage.find(SONGS):
            folder, _, name = path.rpartition("/")
            if name == RESULT_NAME:
                content = self.storage.read(path)
                if content is not None:
                    result = Result.from_json(content)
                    yield folder, result if result is not None and song_folder(result.id) == folder else None

    def ledger(self) -> Iterator[Outcome]:
        """All outcomes of all runs, the oldest run first; a line that a crash cut off is left out."""
        for path in sorted(self.storage.find(LEDGER)):
            for line in (self.storage.read(path) or b"").splitlines():
                try:
                    outcome = Outcome.from_dict(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue
                yield outcome

    def lasting_failures(self) -> dict[str, Outcome]:
        """Songs whose last outcome is a failure that only another file can mend."""
        last: dict[str, Outcome] = {}
        for outcome in self.ledger():
            if outcome.failure is not None and outcome.failure.lasting:
                last[outcome.id] = outcome
            elif outcome.status is Status.done or outcome.failure is not None:
                last.pop(outcome.id, None)
        return last


class LedgerWriter:
    """Appends outcomes to ``ledger/<name>.jsonl``, each on disk at once; to object stores in parts of some hundred rows."""

    def __init__(self, destination: Destination, name: str) -> None:
        self._storage = destination.storage
        self._name = name
        self._file = None
        self._rows: list[str] = []
        self._parts = 0
        if isinstance(self._storage, LocalStorage):
            folder = self._storage.path / LEDGER
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / f"{name}.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def add(self, outcome: Outcome) -> None:
        row = json.dumps(outcome.to_dict()) + "\n"
        if self._file is not None:
            self._file.write(row)
            self._file.flush()
            return
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Put the rows that have gathered."""
        if self._rows:
            path = f"{LEDGER}/{self._name}-{self._parts:06d}.jsonl"
            self._storage.write(path, "".join(self._rows).encode())
            self._rows, self._parts = [], self._parts + 1

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
