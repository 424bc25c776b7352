"""Between libsndfile and the disk: what goes wrong there, and is not told by libsndfile, is kept.

libsndfile writes an encoder's last block when the file is closed, and says nothing when the disk does not take it. So it
does not get the file's name but functions that write for it. What these raise, and an interrupt that arrives while C
runs, would be printed and forgotten by cffi; here it is kept, and raised as soon as C is left.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from metatasnet_fast.errors import MissingDependencyError

__all__ = ["Sink"]

HOOK = "_init_virtual_io"
"""The method in which soundfile makes the functions that C calls."""


class Sink:
    """The open, unbuffered `file` as something that libsndfile can write to."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self._failure: BaseException | None = None

    def sound_file(self, sf: Any, sample_rate: int, channels: int, format: str, subtype: str) -> Any:
        """A soundfile.SoundFile on the file; every call of it belongs into `heard`."""
        if not hasattr(sf.SoundFile, HOOK):
            raise MissingDependencyError(
                f"soundfile {sf.__version__} would not tell of a full disk; install soundfile 0.14, which does."
            )

        def functions(sound: Any, _: io.FileIO) -> Any:
            sound._virtual_io = self._functions(sf._ffi)  # they must live as long as the SoundFile
            return sf._ffi.new("SF_VIRTUAL_IO*", sound._virtual_io)

        # soundfile's own functions lose an interrupt before they reach anything that could keep it.
        kind = type("SoundFile", (sf.SoundFile,), {HOOK: functions})
        return kind(self.file, "w", sample_rate, channels, format=format, subtype=subtype)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Around calls of libsndfile: raises what went wrong in the file, in place of what libsndfile makes of it."""
        try:
            yield
        except Exception:
            failure = self.taken()
            if failure is None:
                raise
            raise failure from None
        failure = self.taken()
        if failure is not None:
            raise failure

    def taken(self) -> BaseException | None:
        """Return the first error since the last call, or None."""
        failure, self._failure = self._failure, None
        return failure

    def _functions(self, ffi: Any) -> dict[str, Any]:
        """For each of libsndfile's needs a function that C can call."""

        def seek(offset: int, whence: int, _: Any) -> int:
            return self.file.seek(offset, whence)

        def read(target: Any, count: int, _: Any) -> int:
            return self.file.readinto(ffi.buffer(target, count)) or 0

        def write(source: Any, count: int, _: Any) -> int:
            self._write(memoryview(ffi.buffer(source, count)))
            return count

        functions = {
            "get_filelen": lambda _: os.fstat(self.file.fileno()).st_size,
            "seek": seek,
            "read": read,
            "write": write,
            "tell": lambda _: self.file.tell(),
        }
        return {
            name: ffi.callback(f"sf_vio_{name}", function, error=-1 if name != "write" else 0, onerror=self._keep)
            for name, function in functions.items()
        }

    def _write(self, data: memoryview) -> None:
        # A disk that gets full takes a part first; only the next attempt says why.
        while data:
            written = self.file.write(data)
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data = data[written:]

    def _keep(self, _: type[BaseException], error: BaseException, trace: TracebackType) -> None:
        if self._failure is None:
            self._failure = error
