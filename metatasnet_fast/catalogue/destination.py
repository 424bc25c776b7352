"""Read and write a destination. Its layout:

    songs/ab/cd/<name>/   the stems of a song and its result; abcd are the first four digits of the SHA-256 of its id
    ledger/<run>...jsonl  one outcome per line; lines are only added
    runs/<run>/           the report of a run
    .catalogue            a mark that tells this folder from another one at the same path (local destinations)
    .staging/, .claims/   songs that are being written, and locks on them (local destinations)

A song's folder appears at once on a local disk, by one rename. On an object store its files appear one by one, the result
last.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from typing import Any

from .failures import Failure, SongError
from .result import Listed, Outcome, Result
from .settings import song_folder
from .storage import LocalStorage, Storage, open_storage

__all__ = ["Destination", "LedgerWriter", "song_folder"]

SONGS = "songs"
LEDGER = "ledger"
MARK = ".catalogue"
PART_ROWS = 500
"""Number of ledger rows in one object of an object store."""


class Destination:
    """A folder or fsspec URI with the outputs of a catalogue.

    Args:
        token: mark that :meth:`check` compares with; None for the mark of the folder that exists at the first use.
    """

    def __init__(self, uri: str, storage: Storage | None = None, token: str | None = None) -> None:
        self.uri = uri
        self.storage = storage or open_storage(uri)
        self._token = token

    @property
    def token(self) -> str | None:
        """The mark that tells this folder from any other at the same path, made if it is missing; None on object
        stores.

        Raises ``OSError`` if the folder cannot be made or written to.
        """
        if self._token is None and isinstance(self.storage, LocalStorage):
            self.storage.path.mkdir(parents=True, exist_ok=True)
            (self.storage.path / MARK).touch()
            self._token = self._mark()
        return self._token

    def check(self) -> None:
        """Raise :class:`SongError` if the folder is gone or replaced, for example because its disk was unmounted."""
        if self.token is not None and self._mark() != self.token:
            raise SongError(
                Failure.gone,
                f"{self.uri} is not the folder that it was when the run began: it was removed or unmounted.",
            )

    def is_gone(self) -> bool:
        """Return whether a local folder lacks a destination's mark: no run has begun there, or it was removed or unmounted."""
        return isinstance(self.storage, LocalStorage) and self._mark() is None

    def _mark(self) -> str | None:
        assert isinstance(self.storage, LocalStorage)
        try:
            status = os.stat(self.storage.path / MARK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{status.st_dev}:{status.st_ino}"

    def listing(self) -> Iterator[tuple[str, Listed]]:
        """Yield every song folder, with its result as the names in the folder describe it."""
        for folder, sizes in self.storage.listing(SONGS):
            yield folder, Listed.of(sizes)

    def read_result(self, folder: str, name: str) -> Result | None:
        """Return the result in file ``name`` of a song's folder; None if it is missing, damaged or another song's."""
        content = self.storage.read(f"{folder}/{name}") if name else None
        result = None if content is None else Result.from_json(content)
        return result if result is not None and song_folder(result.id) == folder else None

    def found(self, folder: str) -> tuple[Result | None, bool]:
        """Return the result in a song's folder (None if there is no valid one), and whether all its files are there in
        their sizes."""
        sizes = self.storage.sizes(folder)
        result = self.read_result(folder, Listed.of(sizes).name)
        return result, result is not None and all(sizes.get(file.path) == file.bytes for file in result.files.values())

    def result(self, folder: str) -> Result | None:
        """Return the result in a song's folder; None unless it is valid and all its files are there in their sizes."""
        result, whole = self.found(folder)
        return result if whole else None

    def ledger(self, run: str | None = None) -> Iterator[Outcome]:
        """Yield all outcomes of a run, or of all runs, the oldest first."""
        for _, row in self.ledger_rows(run):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                yield Outcome.from_dict(row)

    def ledger_rows(self, run: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each row as it is, after the name of its file without suffix; leave out lines that a crash cut off."""
        for folder, sizes in self.storage.listing(LEDGER):
            for name in sorted(sizes):
                if run is None or name.startswith((f"{run}.", f"{run}-")):
                    with self.storage.local(f"{folder}/{name}") as path, open(path, "rb") as lines:
                        for line in lines:
                            with contextlib.suppress(ValueError):
                                row = json.loads(line)
                                if isinstance(row, dict) and "id" in row:
                                    yield name.removesuffix(".jsonl"), row

    def last_rows(self) -> tuple[dict[str, dict[str, Any] | None], list[str]]:
        """Read the whole ledger. Return the last row of every song by id, None if that row is not a failure, and the
        names of the ledger's files in order."""
        last: dict[str, dict[str, Any] | None] = {}
        runs: dict[str, None] = {}
        for run, row in self.ledger_rows():
            runs[run] = None
            last[row["id"]] = None if row.get("failure") is None else row
        return last, list(runs)


class LedgerWriter:
    """A writer that appends each outcome to ``ledger/<name>.jsonl`` at once, on object stores in parts of PART_ROWS.

    Rows that cannot be written are kept, and tried again with the next; ``close`` raises ``OSError`` if rows are left.
    """

    def __init__(self, destination: Destination, name: str) -> None:
        self._destination = destination
        self._storage = destination.storage
        self._name = name
        self._rows: list[bytes] = []
        self._parts = 0

    def add(self, outcome: Outcome) -> None:
        self._rows.append((json.dumps(outcome.to_dict()) + "\n").encode())
        if isinstance(self._storage, LocalStorage) or len(self._rows) >= PART_ROWS:
            with contextlib.suppress(OSError):
                self.close()

    def close(self) -> None:
        """Write the rows that are not written yet."""
        if not self._rows:
            return
        try:
            self._destination.check()
        except SongError as error:
            raise OSError(str(error)) from error
        rows = b"".join(self._rows)
        if isinstance(self._storage, LocalStorage):
            folder = self._storage.path / LEDGER
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"{self._name}.jsonl", "ab", buffering=0) as file:
                before = file.tell()
                if file.write(rows) != len(rows):
                    file.truncate(before)  # a row that a full disk cut off must not damage the next one
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        else:
            self._storage.write(f"{LEDGER}/{self._name}-{self._parts:06d}.jsonl", rows)
            self._parts += 1
        self._rows.clear()
