"""The layout of a destination, and what is read from and written to it.

    songs/ab/cd/<name>/   the stems of a song and result.json; abcd begins the SHA-256 of its id
    ledger/<run>...jsonl  one outcome a line, only ever added to
    runs/<run>/           the report of a run
    .staging/, .claims/   songs that are being written, and locks on them (local destinations)

The stems of a song appear at once, with their ``result.json`` last.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from .._io import sha256_file
from .outcome import Outcome, Status
from .result import RESULT_NAME, Result
from .song import Song, safe_name
from .source import Source
from .storage import LocalStorage, Storage, local_path, open_storage

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
            return result if sha256_file(path) == result.content else None

    def from_elsewhere(self, song: Song) -> Result | None:
        """The result under the song's id, if it was made of a file at another address: that of another song, or of this one."""
        result = self.result(song.id)
        return None if result is None or _real_address(result.uri) == _real_address(song.uri) else result

    def results(self) -> Iterator[tuple[str, Result | None]]:
        """Every song folder that has a ``result.json``, and what it says; None if that is damaged."""
        for path in self.storage.find(SONGS):
            folder, _, name = path.rpartition("/")
            if name == RESULT_NAME:
                content = self.storage.read(path)
                if content is not None:
                    result = Result.from_json(content)
                    yield folder, result if result is not None and song_folder(result.id) == folder else None

    def ledger(self, run: str | None = None) -> Iterator[Outcome]:
        """All outcomes of a run, or of all runs, the oldest first; a line that a crash cut off is left out."""
        for name, outcome in self.ledger_by_run():
            if run is None or name == run or name.startswith(f"{run}-"):
                yield outcome

    def ledger_by_run(self) -> Iterator[tuple[str, Outcome]]:
        """The name of the file without its ending, and the outcomes in it."""
        for path in sorted(self.storage.find(LEDGER)):
            name = path.rpartition("/")[2].removesuffix(".jsonl")
            for line in (self.storage.read(path) or b"").splitlines():
                try:
                    outcome = Outcome.from_dict(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue
                yield name, outcome

    def lasting_failures(self) -> dict[str, Outcome]:
        """Songs whose last outcome is a failure that only another file can mend."""
        last: dict[str, Outcome] = {}
        for outcome in self.ledger():
            if outcome.failure is not None and outcome.failure.lasting:
                last[outcome.id] = outcome
            elif outcome.status is Status.done or outcome.failure is not None:
                last.pop(outcome.id, None)
        return last


def _real_address(uri: str) -> str:
    """The same for all ways to write the address of a local file, and for all links that lead to it."""
    path = local_path(uri)
    return uri if path is None else os.path.realpath(path)


class LedgerWriter:
    """Appends outcomes to ``ledger/<name>.jsonl``, each at once; to object stores in parts of some hundred rows.

    Rows that cannot be written are kept and tried again with the next; ``close`` raises ``OSError`` for what is left then.
    """

    def __init__(self, destination: Destination, name: str) -> None:
        self._storage = destination.storage
        self._name = name
        self._rows: list[bytes] = []
        self._parts = 0
        self._torn = False

    def add(self, outcome: Outcome) -> None:
        self._rows.append((json.dumps(outcome.to_dict()) + "\n").encode())
        if isinstance(self._storage, LocalStorage) or len(self._rows) >= PART_ROWS:
            with contextlib.suppress(OSError):
                self.flush()

    def flush(self) -> None:
        """Write the rows that have gathered."""
        if not self._rows:
            return
        if isinstance(self._storage, LocalStorage):
            self._append(self._storage.path / LEDGER)
        else:
            self._storage.write(f"{LEDGER}/{self._name}-{self._parts:06d}.jsonl", b"".join(self._rows))
            self._parts += 1
        self._rows.clear()

    def close(self) -> None:
        self.flush()

    def _append(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{self._name}.jsonl", "ab", buffering=0) as file:
            for row in self._rows:
                # What a full disk cut off must not spoil the row that follows.
                data = b"\n" + row if self._torn else row
                self._torn = True
                written = file.write(data)
                if written != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
                self._torn = False

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
