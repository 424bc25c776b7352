"""Keep workers from doing the same song: claims on songs, contents in work, and folders for songs that are being written.

A local destination has ``.staging/<host>-<pid>-<token>/`` on its own file system, so that a finished song needs a rename only.
The owner holds a lock, which ends with it however it ends. For object stores the same lies in the system's temporary folder.
"""

from __future__ import annotations

import contextlib
import itertools
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
from weakref import WeakValueDictionary

from .._io import try_lock
from .failures import Failure, SongError
from .result import LONG, Listed, Result
from .settings import song_folder
from .storage import LocalStorage, Storage

__all__ = ["Claims", "Contents", "Staging", "find_contents", "remove_abandoned"]

CLAIMS_NAME = ".claims"
POLL_SECONDS = 0.1


class Claims:
    """Claims of one worker; ``stop`` ends the waiting for those of others."""

    def __init__(self, storage: Storage, stop: threading.Event) -> None:
        self._folder = storage.path / CLAIMS_NAME if isinstance(storage, LocalStorage) else None
        self._stop = stop

    @contextlib.contextmanager
    def claim(self, name: str, wait: bool) -> Iterator[bool]:
        """Claim a name for the block. False if another run holds it; with ``wait``, if ``stop`` is set before that run ends."""
        if self._folder is None:
            yield True
            return
        path = self._folder / name
        handle = self._take(path, wait)
        if handle is None:
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):  # the lock counts, which ends with the handle, and not the name
                path.unlink(missing_ok=True)
            os.close(handle)

    def _take(self, path: Path, wait: bool) -> int | None:
        while True:
            try:
                path.parent.mkdir(exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise SongError(Failure.write, f"Nothing can be written to {path.parent} ({error}).") from error
            locked = try_lock(handle)
            # None: there are no locks here. The file may have been removed between opening and locking.
            if locked is None or (locked and _is_still(handle, path)):
                return handle
            os.close(handle)
            if not locked and (not wait or self._stop.wait(POLL_SECONDS)):
                return None


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


MOST_CONTENTS = 100_000
"""Contents that a worker remembers, the latest ones: some 20 MB."""


class Contents:
    """Knows in which folder a content is done; of songs of equal content, one at a time is separated.

    Args:
        done: folder by the beginning of the content's SHA-256, as :func:`find_contents` returns it.
    """

    def __init__(self, done: Mapping[str, str]) -> None:
        self._folders = dict(done)
        self._held: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, content: str) -> Iterator[None]:
        """Keep other songs of this content out of the block."""
        with self._lock:
            held = self._held.setdefault(content, threading.Lock())
        with held:
            yield

    def add(self, done: Result) -> None:
        with self._lock:
            self._folders[done.content[:LONG]] = song_folder(done.id)
            if len(self._folders) > MOST_CONTENTS:
                del self._folders[next(iter(self._folders))]

    def find(self, content: str) -> str | None:
        """Return the folder of a song that is done, probably of this content: its result says."""
        with self._lock:
            return self._folders.get(content[:LONG])


def find_contents(listing: Mapping[str, Listed], key: str) -> dict[str, str]:
    """Return the folders of songs that are done for a key, by the beginning of their content's SHA-256."""
    done = ((found.content, folder) for folder, found in listing.items() if found.is_done(key))
    return dict(itertools.islice(done, MOST_CONTENTS))


STAGING_NAME = ".staging"
LOCK = "lock"
FOREIGN_AGE = 86_400.0
"""Seconds without a change after which another machine's folder counts as abandoned; its lock may not be visible here."""


class Staging:
    """A worker's folder; ``folder()`` makes one for a song in it. Everything goes away with ``close``."""

    def __init__(self, storage: Storage) -> None:
        parent, host = _place(storage)
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent, host)
        self.path = parent / f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path.mkdir()
        # It is locked before it gets its name, so a run that cleans up finds it taken.
        self._lock = open(self.path / f"{LOCK}.new", "wb")
        try_lock(self._lock.fileno())
        os.rename(self.path / f"{LOCK}.new", self.path / LOCK)

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Make a folder for the block; :class:`SongError` if that is impossible."""
        path = self.path / f"{name}-{secrets.token_hex(3)}"
        try:
            path.mkdir()
        except OSError as error:
            raise SongError(Failure.write, f"Nothing can be written to {path.parent} ({error}).") from error
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _place(storage: Storage) -> tuple[Path, str]:
    """Return the folder that holds those of all workers, and this machine's name in it."""
    host = re.sub(r"[^A-Za-z0-9.]+", "_", socket.gethostname())[:40] or "host"
    if isinstance(storage, LocalStorage):
        return storage.path / STAGING_NAME, host
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir(), f"metatasnet-fast-staging-{user}"), host


def remove_abandoned(storage: Storage, patience: float) -> None:
    """Remove the folders of this machine's workers that are gone, or go within ``patience`` seconds."""
    parent, host = _place(storage)
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
            return try_lock(file.fileno()) is not True
    except FileNotFoundError:
        return _age(folder) < 60


def _age(folder: Path) -> float:
    """Return the seconds since it changed; 0 if it is gone, as its owner may take it away at any instant."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
