"""Keep workers from doing the same song twice: claims on songs, contents in work, and folders for unfinished songs.

A local destination has ``.staging/<host>-<pid>-<token>/`` on its own file system, so that a finished song needs only a
rename. The worker that owns the folder holds a lock, which ends with its process in any case. For object stores, the
folder is in the system's temporary folder.
"""

from __future__ import annotations

import contextlib
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
from typing import IO
from weakref import WeakValueDictionary

from .._io import reporting_write_errors, try_lock
from ..errors import OutputError
from .result import LONG, Result
from .settings import safe_name, song_folder
from .storage import LocalStorage, Storage

__all__ = ["MOST_CONTENTS", "Contents", "Staging", "claim", "remove_abandoned"]

CLAIMS_NAME = ".claims"
STAGING_NAME = ".staging"
LOCK = "lock"

MOST_CONTENTS = 100_000
"""Number of contents that a worker remembers, the latest ones: about 20 MB."""

FOREIGN_AGE = 86_400.0
"""Seconds without a change after which another machine's folder counts as abandoned; its lock may not be visible here."""


@contextlib.contextmanager
def claim(storage: Storage, id: str) -> Iterator[bool]:
    """Keep other runs at a local destination from a song during the block; yield False if another run has it."""
    if not isinstance(storage, LocalStorage):
        yield True
        return
    path = storage.path / CLAIMS_NAME / safe_name(id)
    with reporting_write_errors(path.parent, OutputError):
        path.parent.mkdir(exist_ok=True)
        file = open(path, "ab")
    with file:
        locked = try_lock(file)
        # None: this file system has no locks. The other run may have removed the file before we locked it.
        claimed = locked is None or (locked and _is_still(file, path))
        try:
            yield claimed
        finally:
            if claimed:
                with contextlib.suppress(OSError):  # only the lock counts, not the file's name
                    path.unlink(missing_ok=True)


def _is_still(file: IO[bytes], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


class Contents:
    """The folders in which contents are done; of songs with equal content, one is separated at a time.

    Args:
        done: folders, by the beginning of the content's SHA-256.
    """

    def __init__(self, done: Mapping[str, str]) -> None:
        self._folders = dict(done)
        self._held: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, content: str) -> Iterator[str | None]:
        """Keep other songs of this content out of the block. Yield the folder of a done song whose SHA-256 begins
        alike, or None; its result says whether the content is equal."""
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
    """A worker's folder; ``folder()`` makes a song's folder in it. ``close`` removes all of them."""

    def __init__(self, storage: Storage) -> None:
        parent, host = _place(storage)
        parent.mkdir(exist_ok=True)
        sweep(parent, host)
        self.path = parent / f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path.mkdir()
        # The file is locked before it gets its name, so a run that cleans up never finds it unlocked.
        self._lock = open(self.path / f"{LOCK}.new", "wb")
        try_lock(self._lock)
        os.rename(self.path / f"{LOCK}.new", self.path / LOCK)

    @contextlib.contextmanager
    def folder(self, id: str) -> Iterator[Path]:
        """Make a song's folder for the block; raise :class:`OutputError` if that is impossible."""
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
    """Return the folder that holds the folders of all workers, and this machine's name in their names."""
    host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname())[:40] or "host"
    if isinstance(storage, LocalStorage):
        return storage.path / STAGING_NAME, host
    return Path(tempfile.gettempdir(), f"metatasnet-fast-staging-{os.getuid()}"), host


def remove_abandoned(storage: Storage, patience: float = 0.0) -> None:
    """Remove folders and claims of this machine's workers that have ended, or end within ``patience`` seconds."""
    parent, host = _place(storage)
    claims = storage.path.glob(f"{CLAIMS_NAME}/*") if isinstance(storage, LocalStorage) else ()
    for path in claims:
        with contextlib.suppress(OSError), open(path, "ab") as file:  # another run may remove or own the claim
            if try_lock(file) and _is_still(file, path):
                path.unlink()
    deadline = time.monotonic() + patience
    while parent.is_dir():
        sweep(parent, host)
        if time.monotonic() > deadline or not any(parent.glob(f"{host}-*")):
            return
        time.sleep(0.1)


def sweep(parent: Path, host: str) -> None:
    """Remove the folders whose owners have ended; another machine's, if they are unchanged for FOREIGN_AGE seconds."""
    for folder in parent.iterdir():
        mine = folder.name.startswith(f"{host}-")
        if folder.is_dir() and (not _owned(folder) if mine else _age(folder) > FOREIGN_AGE):
            shutil.rmtree(folder, ignore_errors=True)


def _owned(folder: Path) -> bool:
    """Return whether a process holds the folder's lock; True also while the folder is too young to have a lock."""
    try:
        with open(folder / LOCK, "rb") as file:
            return try_lock(file) is not True
    except FileNotFoundError:
        return _age(folder) < 60


def _age(folder: Path) -> float:
    """Return the seconds since the folder changed; 0 if it is gone, as its owner may remove it at any time."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
