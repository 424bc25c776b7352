"""Read and write a destination, and keep workers from doing the same song twice. The layout of a destination:

    songs/ab/cd/<name>/   the stems of a song and its result; abcd are the first four digits of the SHA-256 of its id
    ledger/<run>...jsonl  one outcome per line; lines are only added
    runs/<run>/           the report of a run
    .catalogue            a mark that tells this folder from another one at the same path (local destinations)
    .staging/, .claims/   songs that are being written, and locks on them (local destinations)

A song's folder appears at once on a local disk, by one rename. On an object store its files appear one by one, the result
last.

Each worker has a folder for unfinished songs. A local destination holds it, as ``.staging/<host>-<pid>-<token>/``: on one
file system, a finished song needs only a rename. For object stores, the folder is in the system's temporary folder. The
worker holds a lock on its folder, which ends with the worker's process in any case.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

from .._io import reporting_write_errors, try_lock
from ..errors import OutputError
from .outcome import LONG, Failure, Listed, Outcome, Result, SongError
from .settings import safe_name, song_folder
from .storage import LocalStorage, Storage, open_storage

__all__ = [
    "Contents", "Destination", "LedgerWriter", "MOST_CONTENTS", "Staging", "claim", "remove_abandoned", "song_folder",
]  # fmt: skip

SONGS = "songs"
LEDGER = "ledger"
MARK = ".catalogue"
PART_ROWS = 500
"""Number of ledger rows in one object of an object store."""


class Destination:
    """A destination: a folder or fsspec URI with the outputs of a catalogue.

    Args:
        uri: path or URI.
        storage: the storage there; None to open it.
        token: the mark that :meth:`check` expects; None for the mark that the folder has at the first use.
    """

    def __init__(self, uri: str, storage: Storage | None = None, token: str | None = None) -> None:
        self.uri = uri
        self.storage = storage or open_storage(uri)
        self._token = token

    @property
    def token(self) -> str | None:
        """The mark that tells this folder from any other one at the same path; None on object stores.

        Folder and mark are made if they are missing. Raises ``OSError`` if this fails.
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
        """Return whether this is a local folder without a mark: no run has begun there, or it was removed or
        unmounted."""
        return isinstance(self.storage, LocalStorage) and self._mark() is None

    def _mark(self) -> str | None:
        assert isinstance(self.storage, LocalStorage)
        try:
            status = os.stat(self.storage.path / MARK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{status.st_dev}:{status.st_ino}"

    def listing(self) -> Iterator[tuple[str, Listed]]:
        """Yield every song's folder, with what the names of the files in it say about the song's result."""
        for folder, sizes in self.storage.listing(SONGS):
            yield folder, Listed.of(sizes)

    def read_result(self, folder: str, name: str) -> Result | None:
        """Return the result in file ``name`` of a song's folder; None if it is missing, damaged or another song's."""
        content = self.storage.read(f"{folder}/{name}") if name else None
        result = None if content is None else Result.from_json(content)
        return result if result is not None and song_folder(result.id) == folder else None

    def found(self, folder: str) -> tuple[Result | None, bool]:
        """Return the result in a song's folder, None if there is no valid one, and whether the result is whole.

        It is whole if all of its files are there and have the right sizes.
        """
        sizes = self.storage.sizes(folder)
        result = self.read_result(folder, Listed.of(sizes).name)
        return result, result is not None and all(sizes.get(file.path) == file.bytes for file in result.files.values())

    def result(self, folder: str) -> Result | None:
        """Return the result in a song's folder; None unless it is valid and whole, see :meth:`found`."""
        result, whole = self.found(folder)
        return result if whole else None

    def ledger(self, run: str | None = None) -> Iterator[Outcome]:
        """Yield all outcomes of a run, or of all runs, the oldest first."""
        for _, row in self.ledger_rows(run):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                yield Outcome.from_dict(row)

    def ledger_rows(self, run: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of the ledger's file, without suffix, and the row as it is, for each row of a run or of all
        runs.

        Lines that a crash cut off are left out.
        """
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
        """Read the whole ledger.

        Returns:
            the last row of every song by the song's id, None if this row is not a failure; and the names of the
            ledger's files, in order.
        """
        last: dict[str, dict[str, Any] | None] = {}
        runs: dict[str, None] = {}
        for run, row in self.ledger_rows():
            runs[run] = None
            last[row["id"]] = None if row.get("failure") is None else row
        return last, list(runs)


class LedgerWriter:
    """A writer that appends each outcome to ``ledger/<name>.jsonl`` at once. On object stores it writes PART_ROWS at a
    time.

    Rows that cannot be written are kept, and tried again with the next row. ``close`` raises ``OSError`` if it cannot
    write the rows that are left.
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


CLAIMS_NAME = ".claims"
STAGING_NAME = ".staging"
LOCK = "lock"

MOST_CONTENTS = 100_000
"""Number of contents that a worker remembers, the latest ones. They take about 20 MB."""

FOREIGN_AGE = 86_400.0
"""Seconds without a change after which another machine's folder counts as abandoned: its lock may not be visible
here."""


@contextlib.contextmanager
def claim(storage: Storage, id: str) -> Iterator[bool]:
    """Claim a song for the block, so that other runs at a local destination leave it alone.

    Yield True; False if another run has claimed the song. On object stores there are no claims: always yield True.
    """
    if not isinstance(storage, LocalStorage):
        yield True
        return
    path = storage.path / CLAIMS_NAME / safe_name(id)
    with reporting_write_errors(path.parent, OutputError):
        path.parent.mkdir(exist_ok=True)
        file = open(path, "ab")
    with file:
        locked = try_lock(file)
        # None means that this file system has no locks. Another run may have removed the file before it was locked
        # here.
        claimed = locked is None or (locked and _is_still(file, path))
        try:
            yield claimed
        finally:
            if claimed:
                with contextlib.suppress(OSError):  # what counts is the lock, which ends anyway
                    path.unlink(missing_ok=True)


def _is_still(file: IO[bytes], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


class Contents:
    """The contents that are done, with their folders. Of songs with equal content, one is separated at a time.

    Args:
        done: folders of songs that are done, by the beginning of the content's SHA-256.
    """

    def __init__(self, done: Mapping[str, str]) -> None:
        self._folders = dict(done)
        self._held: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, content: str) -> Iterator[str | None]:
        """Keep other songs of this content, a SHA-256, out of the block.

        Yield the folder of a song that is done and whose SHA-256 begins in the same way, or None. The result in that
        folder says whether the content really is equal.
        """
        with self._lock:
            held = self._held.setdefault(content, threading.Lock())
        with held:
            yield self._folders.get(content[:LONG])

    def add(self, done: Result) -> None:
        with self._lock:
            self._folders[done.content[:LONG]] = song_folder(done.id)
            if len(self._folders) > MOST_CONTENTS:
                del self._folders[next(iter(self._folders))]


class Staging:
    """A worker's folder for unfinished songs. ``folder()`` makes a song's folder in it; ``close`` removes
    everything."""

    def __init__(self, storage: Storage) -> None:
        parent, host = _place(storage)
        parent.mkdir(exist_ok=True)
        sweep(parent, host)
        self.path = parent / f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path.mkdir()
        # The file is locked before it gets its name: a run that cleans up never finds it without a lock.
        self._lock = open(self.path / f"{LOCK}.new", "wb")
        try_lock(self._lock)
        os.rename(self.path / f"{LOCK}.new", self.path / LOCK)

    @contextlib.contextmanager
    def folder(self, id: str) -> Iterator[Path]:
        """Make a song's folder for the block, and yield its path; raise :class:`OutputError` if that is impossible."""
        path = self.path / f"{safe_name(id)}-{secrets.token_hex(3)}"
        with reporting_write_errors(path.parent, OutputError):
            path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def _place(storage: Storage) -> tuple[Path, str]:
    """Return the folder that holds the folders of all workers, and the name of this machine with which these begin."""
    host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname())[:40] or "host"
    if isinstance(storage, LocalStorage):
        return storage.path / STAGING_NAME, host
    return Path(tempfile.gettempdir(), f"metatasnet-fast-staging-{os.getuid()}"), host


def remove_abandoned(storage: Storage, patience: float = 0.0) -> None:
    """Remove what this machine's ended workers have left: claims, and the folders of unfinished songs.

    Wait up to ``patience`` seconds for workers that are still ending.
    """
    parent, host = _place(storage)
    claims = storage.path.glob(f"{CLAIMS_NAME}/*") if isinstance(storage, LocalStorage) else ()
    for path in claims:
        with contextlib.suppress(OSError), open(path, "ab") as file:  # another run may remove the claim, or hold it
            if try_lock(file) and _is_still(file, path):
                path.unlink()
    deadline = time.monotonic() + patience
    while parent.is_dir():
        sweep(parent, host)
        if time.monotonic() > deadline or not any(parent.glob(f"{host}-*")):
            return
        time.sleep(0.1)


def sweep(parent: Path, host: str) -> None:
    """Remove the folders in ``parent`` whose owners have ended. ``host`` is the name of this machine.

    Folders of other machines are removed if they have not changed for FOREIGN_AGE seconds.
    """
    for folder in parent.iterdir():
        mine = folder.name.startswith(f"{host}-")
        if folder.is_dir() and (not _owned(folder) if mine else _age(folder) > FOREIGN_AGE):
            shutil.rmtree(folder, ignore_errors=True)


def _owned(folder: Path) -> bool:
    """Return whether a process holds the folder's lock. A folder that is too young to have a lock counts as owned."""
    try:
        with open(folder / LOCK, "rb") as file:
            return try_lock(file) is not True
    except FileNotFoundError:
        return _age(folder) < 60


def _age(folder: Path) -> float:
    """Return the seconds since the folder changed; 0 if it is gone: its owner may remove it at any time."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
