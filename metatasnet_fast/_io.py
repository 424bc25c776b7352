"""Write files that appear whole or not at all, lock folders and compute checksums, for the whole package."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import MetaTasNetError

if TYPE_CHECKING:
    from torch import Tensor

    from .config import MetaTasNetConfig

__all__ = [
    "claiming", "describe_os_error", "model_checksum", "reporting_write_errors", "same_checksum", "sha256_file",
    "sync", "to_json", "try_lock", "write_atomically", "writing",
]  # fmt: skip

PART = ".part"
"""Suffix of files that are being written. Such a file can be deleted when its writer has ended."""

LOCK = ".lock"
"""The locked file in a claimed folder."""

CHECKSUM_VERSION = "1"
"""Version of :func:`model_checksum`. It increases when that function reads other data, so that old records do not
match."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    At the end, the file and its name are on the disk, so that both survive a loss of power. After an error, ``path`` is
    unchanged.

    Raises:
        OSError: the system's error; :func:`describe_os_error` puts the reason into words.
    """
    # The name is short, as the name of ``path`` may already be as long as the file system allows.
    part = path.with_name(f".{secrets.token_hex(8)}{PART}")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write or replace a file in a folder that exists; see :func:`writing`."""
    with writing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def reporting_write_errors(
    path: str | os.PathLike[str], kind: type[MetaTasNetError], advice: str = "make room or choose another folder"
) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an error of the type ``kind``: one sentence about ``path``, with ``advice``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, MetaTasNetError):
            raise
        raise kind(f"{path} cannot be written ({describe_os_error(error)}): {advice}.") from error


@contextlib.contextmanager
def claiming(folder: Path, kind: type[MetaTasNetError], busy: str) -> Iterator[bool]:
    """Make a folder, keep other processes out of it, and remove the half-written files of killed processes.

    The folder is locked until the block ends. If this process is killed, the system releases the lock.

    Args:
        kind: type of the error if the folder cannot be written, or another process has it.
        busy: message if another process has the folder.

    Yields:
        True; False if the file system has no locks: then nothing is removed, and other processes are not kept out.
    """
    with reporting_write_errors(folder, kind, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab")
    with file:
        locked = try_lock(file)
        if locked is False:
            raise kind(busy)
        if locked:
            for part in folder.rglob(f".*{PART}"):
                part.unlink(missing_ok=True)
        yield bool(locked)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk, so that it survives a loss of power (Windows cannot flush
    folders)."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe_os_error(error: BaseException) -> str:
    """Return the system's reason for a failed read or write in words; a full disk is named as such.

    Libraries may raise their own errors while they handle a system error, so the causes are searched too.
    """
    found: BaseException | None = error
    while found is not None:
        # On a full disk numpy reports how much it could write, but no error number.
        counted = isinstance(found, OSError) and found.errno is None and "requested and" in str(found)
        if counted or (isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT)):
            return "no space left on the disk"
        found = found.__cause__ or found.__context__
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_checksum(config: MetaTasNetConfig, state: Mapping[str, Tensor]) -> str:
    """Return ``version:sha256`` of a configuration and its weights. The order of the weights does not change it."""
    import torch

    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(state.items()):
        data = value.detach().cpu().contiguous()
        digest.update(f"\0{name} {data.dtype} {tuple(data.shape)}\0".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return f"{CHECKSUM_VERSION}:{digest.hexdigest()}"


def same_checksum(one: str, other: str) -> bool:
    """Return whether two model checksums are equal; a checksum without a version counts as version 1."""
    return _versioned(one) == _versioned(other)


def _versioned(checksum: str) -> str:
    return checksum if ":" in checksum else f"1:{checksum}"


def to_json(value: Any) -> str:
    """Return the text of a value in one line; numbers that JSON does not have, NaN and infinity, are null."""
    return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def try_lock(file: int | IO[Any]) -> bool | None:
    """Take an exclusive lock on an open file until it is closed.

    Returns:
        True if this process has it now, False if another one has it, None if the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
