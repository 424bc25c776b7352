"""Read which songs a catalogue has, from a folder, a glob, a list, or a table; open the file of each song.

    folder/            all audio files below it, also behind links to folders, except hidden files
    music/**/*.flac    the files that match
    songs.txt          one address per line; empty lines and lines that begin with # are ignored
    songs.csv, .tsv    a table with the column uri, and optionally id, duration (seconds) and bytes
    songs.jsonl        the same table, one object per line
    songs.parquet      the same table
    song.mp3           a single song

Each may be at any address that fsspec opens. Relative paths in lists and tables count from the manifest's folder. Songs
without an id get one from their address in the manifest (in folders and globs: from their path below the folder). So
the id stays the same when other songs are added.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import errno
import functools
import glob
import io
import itertools
import json
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeAlias

from .._extras import require
from ..audio.read import AUDIO_SUFFIXES, find_audio, is_audio_name, lies_in
from ..errors import ConfigError
from .outcome import Failure, SongError
from .settings import Song, derived_id, digest, safe_name
from .storage import local_path, open_filesystem, reaching

__all__ = ["Source", "Stamp", "parse_shard", "read_manifest", "stamp_of"]

COLUMNS = ("id", "uri", "duration", "bytes")

Row: TypeAlias = dict[str, Any]
"""A row of a manifest: ``uri``, and optionally ``id``, ``duration`` and ``bytes``. Rows that come from a listing also
have ``name``, from which the id is derived, and ``stamp``."""


def read_manifest(text: str, shard: tuple[int, int] = (1, 1), exclude: str | None = None) -> list[Song]:
    """Return the songs of a manifest that belong to a shard, in its order. The songs' files are not opened.

    Args:
        text: one of the forms that the top of this module lists.
        shard: (i, n) for the i-th of n parts, i from 1. The part of a song depends on its id alone.
        exclude: a folder or URI below which folders and patterns find no file, not even through links. So stems are not
            taken for songs.

    Raises:
        ConfigError: if the manifest cannot be read, has no songs, or has different songs with one id.
        MissingDependencyError: if the manifest needs fsspec or pyarrow, and the package is missing.
    """
    index, count = shard
    songs: dict[str, Song] = {}
    number = 0
    for number, row in enumerate(_rows(text, exclude), 1):
        song = _song(row, text, number)
        if _part(song.id, count) != index - 1:
            continue
        # To some file systems, two ids that differ in case only are the same name.
        before = songs.setdefault(safe_name(song.id).casefold(), song)
        if before.id != song.id:
            raise ConfigError(
                f"The ids {before.id!r} and {song.id!r} in {text} differ in case only: choose another one."
            )
        if before.uri != song.uri:
            raise ConfigError(
                f"The manifest {text} has the id {song.id!r} twice, for {before.uri} and for {song.uri}: "
                "give every song an id of its own."
            )
    if number == 0:
        raise ConfigError(f"{text} names no songs: choose another folder, pattern or list.")
    return list(songs.values())


def parse_shard(text: str) -> tuple[int, int]:
    """Return the numbers i and n of a shard ``i/n``, such as ``3/16``, the third of sixteen parts.

    Raises:
        ConfigError: for any other text.
    """
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise ConfigError(f"A shard is i/n with i from 1 to n, such as 3/16, not {text!r}.")


def _part(id: str, count: int) -> int:
    return int(digest(f"shard {id}")[:15], 16) % count


def _song(row: Row, manifest: str, number: int) -> Song:
    uri = row.get("uri")
    if not isinstance(uri, str) or not uri:
        raise ConfigError(f"Row {number} of {manifest} has no uri: give every song one, in a column of that name.")
    duration, size = (_number(row.get(name), name, manifest, number) for name in ("duration", "bytes"))
    try:
        id = derived_id(str(row.get("name", uri))) if _is_absent(row.get("id")) else str(row["id"])
        id.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"Row {number} of {manifest} has an id or uri with half a character: write it again."
        ) from None
    stamp = row.get("stamp")  # in a table, a column of this name has another meaning
    known = stamp.text if isinstance(stamp, Stamp) and stamp.version is not None else None
    return Song(id, uri, duration, None if size is None else int(size), known)


def _is_absent(value: Any) -> bool:
    """Return whether a cell is empty. In tables that were made from data frames, an empty cell is NaN."""
    return value is None or value == "" or value != value


def _number(value: Any, name: str, manifest: str, row: int) -> float | None:
    if _is_absent(value):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.inf
    if not math.isnan(found) and not 0 <= found < math.inf:
        raise ConfigError(f"Row {row} of {manifest} has {name} {value!r}, which is no number from 0 on.")
    return None if math.isnan(found) else found


def _rows(text: str, exclude: str | None) -> Iterator[Row]:
    if not text:  # an unset variable of a script; Path("") would be the current folder
        raise ConfigError(
            "The manifest's name is empty: name a folder (`.` is this one), a pattern, a list or a table."
        )
    path = local_path(text)
    with reaching(text):
        rows = _remote_rows(text, exclude) if path is None else _local_rows(text, path, exclude)
    if rows is None:
        raise ConfigError(f"There is no manifest {text}: name a folder, a pattern, a list or a table.")
    return rows


def _local_rows(text: str, path: Path, exclude: str | None) -> Iterator[Row] | None:
    excluded = None if exclude is None else local_path(exclude)
    hidden = [] if excluded is None else [os.path.realpath(excluded)]
    if path.is_dir():
        return _files(find_audio(str(path), hidden, _unreadable), path)
    if path.exists():
        return _resolved(_listed(text, path.suffix, path.read_bytes), text)
    if not _is_pattern(text):
        return None
    is_hidden = functools.cache(lambda folder: lies_in(folder, hidden))
    matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
    fixed = Path(*itertools.takewhile(lambda part: not _is_pattern(part), path.parts))
    return _files((match for match in matches if match.is_file() and not is_hidden(str(match.parent))), fixed)


def _files(paths: Iterable[Path], base: Path) -> Iterator[Row]:
    """Yield a row for each file of this machine. The ids of the songs come from the paths below ``base``."""
    for path in paths:
        try:
            size = path.stat().st_size
        except OSError:  # a dangling link: the song fails later
            size = None
        yield {"uri": os.path.abspath(path), "name": path.relative_to(base).as_posix(), "bytes": size}


def _unreadable(error: OSError) -> NoReturn:
    """Raise :class:`ConfigError` for a folder that cannot be read: without it, the folder's songs would be skipped."""
    raise ConfigError(
        f"The folder {error.filename} cannot be read ({error.strerror}): change its permissions, or list the songs."
    )


def _remote_rows(text: str, exclude: str | None) -> Iterator[Row] | None:
    filesystem, base = open_filesystem(text)
    if _is_pattern(text):
        found = filesystem.glob(base, detail=True)
        base = base.split("*")[0].rpartition("/")[0]
    elif filesystem.isdir(base):
        everything = filesystem.find(base, detail=True)
        found = {name: info for name, info in everything.items() if is_audio_name(name[len(base) :])}
    elif filesystem.exists(base):
        return _resolved(_listed(text, Path(base).suffix, lambda: filesystem.cat_file(base)), text)
    else:
        return None
    hidden = None if exclude is None or local_path(exclude) else str(filesystem._strip_protocol(exclude)).rstrip("/")
    return (
        {
            "uri": filesystem.unstrip_protocol(name),
            "name": name[len(base) :].lstrip("/"),
            "bytes": info.get("size"),
            "stamp": stamp_of(info),
        }
        for name, info in sorted(found.items())
        if info.get("type") == "file" and not (hidden and name.startswith(f"{hidden}/"))
    )


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _resolved(rows: Iterable[Row], manifest: str) -> Iterator[Row]:
    """Yield the rows of a list, with relative addresses resolved from the list's folder.

    The ids come from the addresses as the list has them.
    """
    folder = local_path(manifest)
    for row in rows:
        uri = row.get("uri")
        path = local_path(uri) if isinstance(uri, str) and uri else None
        if path is not None and not path.is_absolute():
            at = f"{manifest.rpartition('/')[0]}/{uri}" if folder is None else os.path.abspath(folder.parent / path)
            row = {**row, "uri": at, "name": uri}
        yield row


def _listed(text: str, suffix: str, content: Callable[[], bytes]) -> Iterator[Row]:
    """Return the rows of a list or table, without changes.

    Args:
        text: address of the manifest.
        suffix: its suffix, which tells the format.
        content: function that returns its bytes.
    """
    kind = suffix.lower().removeprefix(".")
    if kind in AUDIO_SUFFIXES:
        return iter([{"uri": text.rpartition("/")[2] if local_path(text) else text}])
    if kind == "parquet":
        return _parquet_rows(text, content())
    try:
        lines = content().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"The manifest {text} is no UTF-8 text ({error.reason}): save it as UTF-8.") from None
    if kind in ("csv", "tsv"):
        return _csv_rows(text, lines, "\t" if kind == "tsv" else ",")
    # Not ``splitlines``, which also splits at characters that names and JSON strings may hold, such as U+2028.
    stripped = (line.strip() for line in io.StringIO(lines, newline=None))
    if kind in ("jsonl", "ndjson"):
        return _jsonl_rows(text, stripped)
    if kind in ("txt", "lst", "m3u", "m3u8", ""):
        return ({"uri": line} for line in stripped if line and not line.startswith("#"))
    raise ConfigError(f"A manifest is a folder, a pattern, or a .txt, .csv, .tsv, .jsonl or .parquet file, not {text}.")


def _csv_rows(manifest: str, text: str, delimiter: str) -> Iterator[Row]:
    # Without ``strict``, an unclosed quote would make all following lines one name.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from reader
    except csv.Error as error:
        line = reader.line_num + 1
        raise ConfigError(f"Line {line} of {manifest} cannot be read ({error}): check its quotes.") from None


def _jsonl_rows(manifest: str, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line else None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"Line {number} of {manifest} is no JSON ({error}).") from None
        if isinstance(row, dict):
            yield row
        elif line:
            raise ConfigError(f"Line {number} of {manifest} is no JSON object with a uri.")


def _parquet_rows(manifest: str, content: bytes) -> Iterator[Row]:
    pyarrow = require("pyarrow", f"The manifest {manifest}")
    parquet = require("pyarrow.parquet", f"The manifest {manifest}")
    try:
        for batch in parquet.ParquetFile(io.BytesIO(content)).iter_batches(columns=list(COLUMNS)):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"The manifest {manifest} is no Parquet file, or damaged ({reason}): write it again."
        ) from None


NO_PATH = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Error numbers of addresses that cannot name a file."""

PLAIN_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")

SETTLED = 2.0
"""Age in seconds from which a time of change is the version of one content, even if the file system's clock is
coarse."""

VERSIONS = ("ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names of the property that changes with the content, as different file systems call it, the most certain first."""


@dataclass(frozen=True)
class Stamp:
    """The size of a file in bytes, and a version that changes with the content.

    The version is None while the last change is too recent: the file may change again without a new version.
    """

    size: int
    version: str | None

    @property
    def text(self) -> str:
        return f"{self.size}:{self.version or ''}"

    def proves(self, recorded: str | None) -> bool:
        """Return whether this stamp proves that the content is that of an earlier stamp, whose text is ``recorded``.

        A stamp without a version proves nothing.
        """
        return self.version is not None and recorded == self.text


class Source:
    """The input at a path or URI.

    The methods raise :class:`SongError` if the input is missing, is not a file, or may not be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.seen: Stamp | None = None
        """Result of the last call of :meth:`stamp`; None before the first call."""
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
        """Yield the path of a local file with the content: of the input itself, or of a copy that ends with the block.

        Args:
            scratch: folder for the copy; None for the system's temporary folder.
        """
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
    """Return the suffix of a file's name, which a decoder may need; an empty text if there is none.

    The copy does not get the whole name: with a query, it may be too long for the file system.
    """
    suffixes = (PurePosixPath(name).suffix for name in (path.partition("?")[0], path))
    return next(filter(PLAIN_ENDING.fullmatch, suffixes), "")


def stamp_of(info: dict[str, Any]) -> Stamp:
    """Return the stamp of a file, from the entry ``info`` that a file system of fsspec has for the file."""
    value = next((info[name] for name in VERSIONS if info.get(name) is not None), None)
    changed, version = 0.0, None if value is None else str(value)
    if isinstance(value, datetime.datetime):
        changed = (value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)).timestamp()
        version = value.isoformat()
    elif isinstance(value, float):
        changed = value
    return Stamp(int(info.get("size") or 0), version if time.time() - changed > SETTLED else None)
