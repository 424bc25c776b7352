"""Keep workers from doing the same song: claims on songs, contents in work, and folders for songs that are being written.

A local destination has ``.staging/<host>-<pid>-<token>/`` on its own file system, so that a finished song needs a rename only.
The owner holds a lock, which ends with it however it ends. For object stores the same lies in the system's temporary folder.
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
"""Contents that a worker remembers, the latest ones: some 20 MB."""

FOREIGN_AGE = 86_400.0
"""Seconds without a change after which another machine's folder counts as abandoned; its lock may not be visible here."""


@contextlib.contextmanager
def claim(storage: Storage, id: str) -> Iterator[bool]:
    """Keep other runs at a local destination from a song for the block; False if one has it in hand now."""
    if not isinstance(storage, LocalStorage):
        yield True
        return
    path = storage.path / CLAIMS_NAME / safe_name(id)
    with reporting_write_errors(path.parent, OutputError):
        path.parent.mkdir(exist_ok=True)
        file = open(path, "ab")
    with file:
        locked = try_lock(file)
        # None: there are no locks here. The other run may have removed the file before it was locked.
        claimed = locked is None or (locked and _is_still(file, path))
        try:
            yield claimed
        finally:
            if claimed:
                with contextlib.suppress(OSError):  # the lock counts, which ends with the file, and not the name
                    path.unlink(missing_ok=True)


def _is_still(file: IO[bytes], path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


class Contents:
    """Knows in which folder a content is done; of songs of equal content, one at a time is separated.

    Args:
        done: folder by the beginning of the content's SHA-256.
    """

    def __init__(self, done: Mapping[str, str]) -> None:
        self._folders = dict(done)
        self._held: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, content: str) -> Iterator[str | None]:
        """Keep other songs of this content out of the block; give the folder of a song that is done, probably of this content:
        its result says."""
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
    """A worker's folder; ``folder()`` makes one for a song in it. Everything goes away with ``close``."""

    def __init__(self, storage: Storage) -> None:
        parent, host = _place(storage)
        parent.mkdir(exist_ok=True)
        sweep(parent, host)
        self.path = parent / f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path.mkdir()
        # It is locked before it gets its name, so a run that cleans up finds it taken.
        self._lock = open(self.path / f"{LOCK}.new", "wb")
        try_lock(self._lock)
        os.rename(self.path / f"{LOCK}.new", self.path / LOCK)

    @contextlib.contextmanager
    def folder(self, id: str) -> Iterator[Path]:
        """Make a song's folder for the block; :class:`OutputError` if that is impossible."""
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
    """Return the folder that holds those of all workers, and this machine's name in it."""
    host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname())[:40] or "host"
    if isinstance(storage, LocalStorage):
        return storage.path / STAGING_NAME, host
    return Path(tempfile.gettempdir(), f"metatasnet-fast-staging-{os.getuid()}"), host


def remove_abandoned(storage: Storage, patience: float = 0.0) -> None:
    """Remove what workers of this machine that are gone, or go within ``patience`` seconds, left: folders and claims."""
    parent, host = _place(storage)
    claims = storage.path.glob(f"{CLAIMS_NAME}/*") if isinstance(storage, LocalStorage) else ()
    for path in claims:
        with contextlib.suppress(OSError), open(path, "ab") as file:  # another run may remove it, or own it
            if try_lock(file) and _is_still(file, path):
                path.unlink()
    deadline = time.monotonic() + patience
    while parent.is_dir():
        sweep(parent, host)
        if time.monotonic() > deadline or not any(parent.glob(f"{host}-*")):
            return
        time.sleep(0.1)


def sweep(parent: Path, host: str) -> None:
    """Remove the folders whose owners are gone."""
    for folder in parent.iterdir():
        mine = folder.name.startswith(f"{host}-")
        if folder.is_dir() and (not _owned(folder) if mine else _age(folder) > FOREIGN_AGE):
            shutil.rmtree(folder, ignore_errors=True)


def _owned(folder: Path) -> bool:
    """Return whether a process holds the lock; also while the folder is so young that it may have no lock yet."""
    try:
        with open(folder / LOCK, "rb") as file:
            return try_lock(file) is not True
    except FileNotFoundError:
        return _age(folder) < 60


def _age(folder: Path) -> float:
    """Return the seconds since it changed; 0 if it is gone, as its owner may take it away at any instant."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
