"""Songs of equal content under different ids: separated once, then copied. Each id has outputs of its own all the same."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from pathlib import Path

from .._io import sha256_file
from .destination import Destination, song_folder
from .result import Result

__all__ = ["Twins"]

MOST = 100_000
"""Contents that a worker remembers, the latest ones: some 20 MB."""


class Twins:
    """Which song of this worker has which content, for one model and settings."""

    def __init__(self, destination: Destination, key: str) -> None:
        self._destination = destination
        self._key = key
        self._ids: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, content: str, id: str) -> None:
        """A song with this content is done."""
        with self._lock:
            self._ids[content] = id
            self._ids.move_to_end(content)
            while len(self._ids) > MOST:
                self._ids.popitem(last=False)

    def copy(self, content: str, staged: Path) -> Result | None:
        """Put the stems of a done song with this content into a folder; its result, or None if there is none."""
        with self._lock:
            id = self._ids.get(content)
        result = None if id is None else self._destination.result(id)
        if result is None or result.key != self._key or result.content != content:
            return None
        for file in result.files.values():
            with self._destination.storage.local(f"{song_folder(result.id)}/{file.path}") as path:
                try:
                    shutil.copyfile(path, staged / file.path)
                except FileNotFoundError:
                    return None
            if sha256_file(staged / file.path) != file.sha256:
                return None
        return result
