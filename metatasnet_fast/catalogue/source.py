"""The input of a song: where it is, whether it is still the same, and a local copy to decode."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .failures import Failure, SongError
from .storage import local_path, open_filesystem

__all__ = ["Source", "Stamp", "stamp_of"]

NO_PATH = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Error numbers of addresses that cannot name a file."""

PLAIN_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")

SETTLED = 2.0
"""Age in seconds from which a time of change belongs to one content only, however coarse the file system's clock is."""

VERSIONS = ("ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names that file systems give to the property that changes with the content, the most certain first."""


@dataclass(frozen=True)
class Stamp:
    """Size in bytes, and a version that changes with the content; None while that is too recent to be sure."""

    size: int
    version: str | None

    @property
    def text(self) -> str:
        return f"{self.size}:{self.version or ''}"

    def proves(self, recorded: str | None) -> bool:
        """Return whether ``recorded``, the text of an earlier stamp, shows that the content has not changed since.

        False if this stamp has no version.
        """
        return self.version is not None and recorded == self.text


class Source:
    """The input at a path or URI. Methods raise :class:`SongError` if it is missing, a folder, or may not be read."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.seen: Stamp | None = None
        """The stamp at the last call of :meth:`stamp`."""
        self.copy: Path | None = None
        """Path of the last local copy of a remote file; None if no copy was made."""
        self._path = local_path(uri)

    def stamp(self) -> Stamp:
        """Return the stamp that the file has now."""
        if self._path is None:
            filesystem, path = open_filesystem(self.uri)
            with self._found():
                self.seen = stamp_of(filesystem.info(path))
            return self.seen
        with self._found():
            status = os.stat(self._path)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(self.uri)
        if not stat.S_ISREG(status.st_mode):
            # Reading a pipe could block, and a device may never end.
            raise SongError(Failure.not_audio, f"{self.uri} is a pipe or a device, not a file.")
        settled = time.time() - status.st_mtime > SETTLED
        self.seen = Stamp(status.st_size, str(status.st_mtime_ns) if settled else None)
        return self.seen

    @contextlib.contextmanager
    def local(self, scratch: Path | None = None) -> Iterator[Path]:
        """Yield a local file with the content: the input itself, or a copy in ``scratch`` (None: temporary folder)."""
        if self._path is not None:
            with self._found(), open(self._path, "rb"):
                pass
            yield self._path
            return
        filesystem, path = open_filesystem(self.uri)
        with tempfile.TemporaryDirectory(prefix="metatasnet-fast-input-", dir=scratch) as folder:
            target = Path(folder, f"input{_ending(path)}")
            with self._found():
                filesystem.get_file(path, str(target))
            self.copy = target
            yield target

    @contextlib.contextmanager
    def _found(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise SongError(Failure.not_found, f"There is no file {self.uri}.") from None
        except IsADirectoryError:
            raise SongError(Failure.not_audio, f"{self.uri} is a folder, not a file.") from None
        except PermissionError as error:
            raise SongError(Failure.forbidden, f"{self.uri} may not be read ({error}).") from None
        except (OSError, ValueError) as error:  # a name below a file, or one that holds a zero byte
            if isinstance(error, OSError) and error.errno not in NO_PATH:
                raise
            raise SongError(Failure.not_found, f"{self.uri!r} cannot be opened ({error}).") from None


def _ending(path: str) -> str:
    """Return the suffix of the file's name, which a decoder may need, or an empty text.

    The whole address is not used as a name: with a query it may be too long for the file system.
    """
    suffixes = (PurePosixPath(name).suffix for name in (path.partition("?")[0], path))
    return next(filter(PLAIN_ENDING.fullmatch, suffixes), "")


def stamp_of(info: dict[str, Any]) -> Stamp:
    """Return the stamp of a file, from the entry that a file system of fsspec returns for it."""
    value = next((info[name] for name in VERSIONS if info.get(name) is not None), None)
    changed, version = 0.0, None if value is None else str(value)
    if isinstance(value, datetime.datetime):
        changed = (value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)).timestamp()
        version = value.isoformat()
    elif isinstance(value, float):
        changed = value
    return Stamp(int(info.get("size") or 0), version if time.time() - changed > SETTLED else None)
