"""Signals that are written once, front to back, and read again: in memory while they fit, else in a temporary file."""

from __future__ import annotations

import bisect
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..errors import OutputError

__all__ = ["Budget", "Spool"]

FILE_BLOCK = 2**18
"""Samples per channel that :meth:`Spool.drain` reads from a file at once."""


class Budget:
    """Bytes that the spools of one separation may keep in memory together; None for any number."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """Take ``size`` more bytes if they fit, and return whether they do."""
        if self._left is None:
            return True
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        if self._left is not None:
            self._left += size


class Spool:
    """A (channels, samples) float32 signal of growing length.

    Blocks stay on the device on which they arrive. When the budget is spent, the whole signal moves into an unnamed file in the
    system's temporary folder (``TMPDIR``), 4 bytes a sample, and comes back as CPU tensors.

    Raises:
        OutputError: if that folder is full or not writable.
    """

    def __init__(self, channels: int, budget: Budget) -> None:
        self.channels = channels
        self.length = 0
        self._budget = budget
        self._blocks: list[Tensor] = []
        self._starts: list[int] = []
        self._file: IO[bytes] | None = None

    def append(self, block: Tensor) -> None:
        """Continue the signal by (channels, n) samples. The block must not be changed afterwards."""
        assert block.shape[0] == self.channels and block.dtype == torch.float32
        if block.shape[1] == 0:
            return
        if self._file is None and not self._budget.take(_size(block)):
            self._move_to_file()
        if self._file is None:
            self._starts.append(self.length)
            self._blocks.append(block)
        else:
            self._write(block)
        self.length += block.shape[1]

    def read(self, start: int, stop: int) -> Tensor:
        """Samples ``start`` to ``stop``, (channels, stop - start); zeros after the signal's end."""
        end = max(start, min(stop, self.length))
        if self._file is not None:
            parts = [self._read_file(start, end)]
        else:
            first = max(0, bisect.bisect_right(self._starts, start) - 1)
            last = bisect.bisect_left(self._starts, end)
            parts = [
                block[:, max(0, start - at) : end - at]
                for at, block in zip(self._starts[first:last], self._blocks[first:last], strict=True)
            ]
        if stop > end or not parts:
            like = parts[0] if parts else torch.empty(0, dtype=torch.float32)
            parts.append(like.new_zeros(self.channels, stop - end))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def drain(self) -> Iterator[Tensor]:
        """The signal in blocks, front to back, for the last time: memory is freed behind the reader."""
        if self._file is not None:
            for start in range(0, self.length, FILE_BLOCK):
                yield self._read_file(start, min(start + FILE_BLOCK, self.length))
        blocks, self._blocks, self._starts = self._blocks[::-1], [], []
        while blocks:
            block = blocks.pop()
            self._budget.give_back(_size(block))
            yield block
        self.close()

    def close(self) -> None:
        """Free memory and file; the signal is gone."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._budget.give_back(sum(_size(block) for block in self._blocks))
        self._blocks, self._starts, self.length = [], [], 0

    def _move_to_file(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="metatasnet-fast-")
        except OSError as error:
            raise OutputError(f"No temporary file can be made ({error}): set TMPDIR to a writable folder.") from error
        blocks, self._blocks, self._starts = self._blocks, [], []
        for block in blocks:
            self._write(block)
            self._budget.give_back(_size(block))

    def _write(self, block: Tensor) -> None:
        assert self._file is not None
        try:
            self._file.write(block.cpu().T.contiguous().numpy().data.cast("B"))
        except OSError as error:
            raise OutputError(
                f"The temporary folder cannot take {_size(block)} more bytes ({error}): set TMPDIR to a larger one."
            ) from error

    def _read_file(self, start: int, stop: int) -> Tensor:
        assert self._file is not None
        self._file.seek(4 * self.channels * start)
        samples = np.empty((stop - start, self.channels), np.float32)
        if samples.size:
            done = self._file.readinto(samples.data.cast("B"))  # type: ignore[attr-defined]
            assert done == samples.nbytes
        self._file.seek(0, 2)
        return torch.from_numpy(samples).T


def _size(block: Tensor) -> int:
    return block.numel() * block.element_size()
