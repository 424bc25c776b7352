"""Store a catalogue's outputs: in a local folder, or in a folder of any object store that fsspec knows.

A file appears complete or not at all: locally by renaming, elsewhere because a single put is atomic.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from .._extras import require
from .._io import sync, write_atomically
from ..errors import ConfigError, MetaTasNetError, MissingDependencyError
from .outcome import is_result

__all__ = [
    "ContestedError", "FsspecStorage", "LocalStorage", "Storage", "client_errors", "local_path", "open_filesystem",
    "open_storage", "reaching",
]  # fmt: skip

LISTED_AT_ONCE = 16

CONDITIONAL = {"s3", "s3a"}
"""Protocols of stores that can put a file only if no file has its name."""

PREFIXED = CONDITIONAL | {"gs", "gcs"}
"""Protocols of stores whose clients can list all names that begin in a given way."""

KEYED = PREFIXED | {"abfs", "az", "adl"}
"""Protocols of stores without folders: a request to make a folder would have no effect."""

TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
"""Error numbers that the system gives when a folder is renamed to the name of a folder that exists."""

MISSING = (FileNotFoundError, NotADirectoryError)


class LocalStorage:
    """Storage below a local folder. Files and folders have relative paths with ``/``. Methods raise ``OSError`` if the
    system refuses."""

    def __init__(self, root: Path) -> None:
        self.path = root

    def read(self, path: str) -> bytes | None:
        """Return the file's contents; None if the file does not exist."""
        try:
            return (self.path / path).read_bytes()
        except MISSING:
            return None

    def write(self, path: str, content: bytes) -> None:
        """Make or replace a file, atomically."""
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of every file directly in a folder, by name; empty if the folder does not exist."""
        return next((sizes for found, sizes in self.listing(folder) if found == folder), {})

    def listing(self, folder: str) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield ``folder`` and the folders below it, if they hold files, each with the sizes in bytes of its files by
        name."""
        try:
            with os.scandir(f"{self.path}/{folder}") as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except MISSING:  # the owner of a folder may remove it at any time
            return
        sizes: dict[str, int] = {}
        for entry in entries:
            if entry.is_dir():
                yield from self.listing(f"{folder}/{entry.name}")
            else:
                with contextlib.suppress(FileNotFoundError):
                    sizes[entry.name] = entry.stat().st_size
        if sizes:
            yield folder, sizes

    def publish(self, staged: Path, folder: str, last: str) -> None:
        """Move the local folder ``staged`` to ``folder``. The file ``last`` is never there without the other files.

        The whole folder gets its name at once; a folder that is there already is moved away first. After an error, this
        may be called again.
        """
        target = self.path / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(staged)
        while True:
            try:
                os.rename(staged, target)
                break
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
            before = staged.with_name(f"{staged.name}.replaced-{secrets.token_hex(4)}")
            # Another run may have moved the folder in the meantime.
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, before)
                shutil.rmtree(before, ignore_errors=True)
        sync(target.parent)

    def remove(self, path: str) -> None:
        """Delete a file, if it exists."""
        (self.path / path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """Yield the path of a local file with the content; it may be a copy that ends with the ``with`` statement."""
        yield self.path / path


@contextlib.contextmanager
def client_errors() -> Iterator[None]:
    """Turn the exceptions of object stores' clients into ``OSError``, which other file systems raise."""
    try:
        yield
    except (OSError, MetaTasNetError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class ContestedError(OSError):
    """Error: another run is publishing the same song now."""


class FsspecStorage:
    """A storage with the methods of :class:`LocalStorage`, on any file system that fsspec knows."""

    def __init__(self, filesystem: Any, base: str) -> None:
        self._fs, self._base = filesystem, base.rstrip("/")
        self._protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
        self._empty: set[str] = set()
        """Folders that were empty when they were listed: before files are published there, they need not be listed
        again."""

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}"

    @client_errors()
    def read(self, path: str) -> bytes | None:
        try:
            content: bytes = self._fs.cat_file(self._at(path))
        except MISSING:
            return None
        return content

    @client_errors()
    def write(self, path: str, content: bytes) -> None:
        self._make_folder(path.rpartition("/")[0])
        self._fs.pipe_file(self._at(path), content)

    @client_errors()
    def sizes(self, folder: str) -> dict[str, int]:
        try:
            if self._protocols & PREFIXED:
                # One request; listing a folder that does not exist would take two.
                bucket, _, prefix = self._at(folder).partition("/")
                entries = list(self._fs.find(bucket, prefix=f"{prefix}/", detail=True).values())
            else:
                self._fs.invalidate_cache()
                entries = self._fs.ls(self._at(folder), detail=True)
        except MISSING:
            entries = []
        if not entries:
            self._empty.add(folder)
        return _file_sizes(entries)

    def listing(self, folder: str) -> Iterator[tuple[str, dict[str, int]]]:
        self._fs.invalidate_cache()
        with client_errors():
            try:
                entries = self._fs.ls(self._at(folder), detail=True)
            except MISSING:
                return
            parts = sorted(entry["name"] for entry in entries if entry["type"] == "directory")
            with ThreadPoolExecutor(LISTED_AT_ONCE) as pool:
                for found in pool.map(functools.partial(self._fs.find, detail=True), parts):
                    for place, names in groupby(sorted(found), key=lambda name: name.rpartition("/")[0]):
                        yield place[len(self._base) :].lstrip("/"), _file_sizes(found[name] for name in names)
        if here := _file_sizes(entries):
            yield folder, here

    @client_errors()
    def publish(self, staged: Path, folder: str, last: str) -> None:
        """Put all files of the local folder ``staged`` to ``folder``, the file ``last`` after the others.

        An old result is removed first, so that it never stands for new files.

        Raises:
            ContestedError: if the folder was empty before, and another run is putting its files there now. If this
                method is called again, it replaces those files.
        """
        before = {} if folder in self._empty else self.sizes(folder)
        self._empty.discard(folder)
        for name in filter(is_result, before):
            self.remove(f"{folder}/{name}")
        self._make_folder(folder)
        stems = sorted(file.name for file in staged.iterdir() if file.name != last)

        def put(name: str, **how: str) -> None:
            self._fs.put_file(str(staged / name), self._at(f"{folder}/{name}"), **how)

        try:
            # The first stem is a claim: if two runs put the same names, one of them stops here.
            put(stems[0], **({"mode": "create"} if self._protocols & CONDITIONAL and not before else {}))
        except FileExistsError as error:
            raise ContestedError(f"Another run is putting files to {folder}.") from error
        with ThreadPoolExecutor(len(stems)) as pool:
            list(pool.map(put, stems[1:]))
        put(last)
        for name in set(before) - {*stems, last}:
            self.remove(f"{folder}/{name}")
        shutil.rmtree(staged)

    @client_errors()
    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(path))

    @contextlib.contextmanager
    def local(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="metatasnet-fast-") as folder:
            target = Path(folder, path.rsplit("/", 1)[-1])
            with client_errors():
                self._fs.get_file(self._at(path), str(target))
            yield target

    def _make_folder(self, folder: str) -> None:
        """Make a folder, if the store has folders."""
        if not self._protocols & KEYED:
            self._fs.makedirs(self._at(folder), exist_ok=True)


def _file_sizes(entries: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return the size in bytes of every file in a listing by fsspec, by the file's name without its folder."""
    return {e["name"].rpartition("/")[2]: int(e["size"] or 0) for e in entries if e["type"] == "file"}


def local_path(uri: str) -> Path | None:
    """Return the local path that a URI or path names; None if it is not on this machine's file systems."""
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    return None if "://" in uri or "::" in uri else Path(uri)


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn an ``OSError`` in the block into a :class:`ConfigError` that names ``uri``."""
    try:
        with client_errors():
            yield
    except OSError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        text = f"{uri} cannot be used ({reason}): check the address, its permissions and the connection."
        raise ConfigError(text) from error


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URI, and the path of the URI in that file system.

    Raises:
        MissingDependencyError: if fsspec, or its package for this kind of address, is missing.
        ConfigError: if fsspec does not know this kind of address.
    """
    fsspec = require("fsspec", f"The address {uri}")
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise MissingDependencyError(f"The address {uri} needs another package: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"The address {uri} cannot be used ({error}); check its beginning.") from error
    return filesystem, path


def open_storage(uri: str) -> Storage:
    """Return the storage at a path or URI; no folder or file is made. Raise the errors of :func:`open_filesystem`."""
    path = local_path(uri)
    if path is not None:
        return LocalStorage(path)
    with reaching(uri):
        return FsspecStorage(*open_filesystem(uri))


Storage: TypeAlias = "LocalStorage | FsspecStorage"
