"""Folders for songs that are being written, and the removal of what crashed runs left in theirs.

A local destination has ``.staging/<host>-<pid>-<token>/`` on its own file system, so that a finished song needs a rename only.
The owner holds a lock, which ends with it however it ends. For object stores the same lies in the system's temporary folder.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import TracebackType

from .._io import try_lock
from .storage import LocalStorage, Storage

__all__ = ["STAGING_NAME", "Staging", "remove_abandoned"]

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
        # Under its name it is locked already: whoever sweeps finds it taken.
        self._lock = open(self.path / f"{LOCK}.new", "wb")
        try_lock(self._lock.fileno())
        os.rename(self.path / f"{LOCK}.new", self.path / LOCK)

    def folder(self, name: str) -> Path:
        path = self.path / f"{name}-{secrets.token_hex(3)}"
        path.mkdir()
        return path

    def close(self) -> None:
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _place(storage: Storage) -> tuple[Path, str]:
    """The folder that holds everyone's, and this machine's name in it."""
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
        if not folder.is_dir():
            continue
        if folder.name.startswith(f"{host}-"):
            if not _owned(folder):
                shutil.rmtree(folder, ignore_errors=True)
        elif _age(folder) > FOREIGN_AGE:
            shutil.rmtree(folder, ignore_errors=True)


def _owned(folder: Path) -> bool:
    """Whether somebody holds the lock; also while the folder is so young that it may have no lock yet."""
    try:
        with open(folder / LOCK, "rb") as file:
            return try_lock(file.fileno()) is not True
    except FileNotFoundError:
        return _age(folder) < 60


def _age(folder: Path) -> float:
    """Seconds since it changed; 0 if it is gone, as its owner may take it away at any instant."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
