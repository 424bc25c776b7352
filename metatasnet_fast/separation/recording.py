"""Read a recording as blocks of clean float32 samples, from memory or from a file; keep signals for a second pass.

Kept signals are written once, from start to end, and read again. They are in memory if they fit, else in a temporary
file.
"""

from __future__ import annotations

import bisect
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..audio import AudioStream
from ..errors import EmptyAudioError, OutputError, ShapeError

__all__ = ["Budget", "Recording", "Spool"]

BLOCK = 2**20
"""Samples per channel of a block from memory."""

FILE_BLOCK = 2**18
"""Samples per channel of a block from a file."""

MOST_CHANNELS = 64
FULL_SCALE = {torch.int16: 2.0**15, torch.int32: 2.0**31}


@dataclass
class Recording:
    """A recording, in memory or in a file.

    ``blocks()`` yields its samples as (channels, n) tensors; for a file, this works only once. ``samples`` is the
    number of samples per channel, None if it is not known beforehand.
    """

    sample_rate: int
    channels: int
    samples: int | None
    blocks: Callable[[], Iterator[Tensor]]
    invalid: int = field(default=0, init=False)
    """Number of samples so far that were NaN or infinite."""

    @classmethod
    def from_memory(cls, waveform: Tensor | npt.NDArray[Any], sample_rate: int) -> Recording:
        """Make a recording from samples in memory, (channels, samples) or (samples,).

        Raise the errors of ``Separator.separate`` for samples or a rate that it does not accept.
        """
        try:
            whole = int(sample_rate) == sample_rate > 0
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise ShapeError(f"A sample rate must be a positive whole number of Hz, got {sample_rate!r}.")
        if isinstance(waveform, Tensor):
            if waveform.layout != torch.strided or waveform.is_meta:
                kind = "meta" if waveform.is_meta else str(waveform.layout)
                raise ShapeError(f"A waveform must be a dense tensor with contents, got a {kind} one: convert it.")
        elif not hasattr(waveform, "ndim"):
            raise ShapeError(
                f"A waveform must be a tensor or an array, got {type(waveform).__name__}: convert it with numpy.asarray, or "
                "give the name of a file to separate_file."
            )
        if waveform.ndim not in (1, 2):
            raise ShapeError(
                f"A waveform must be (channels, samples) or (samples,), got shape {tuple(waveform.shape)}."
            )
        signal = waveform[None] if waveform.ndim == 1 else waveform
        channels, samples = signal.shape
        if channels == 0 or samples == 0:
            raise EmptyAudioError("The waveform holds no samples: there is nothing to separate.")
        if channels > MOST_CHANNELS:
            raise ShapeError(f"A waveform must be (channels, samples), got shape {tuple(signal.shape)}: transpose it.")
        _as_float(_as_tensor(signal[:, :0]))

        def blocks() -> Iterator[Tensor]:
            for start in range(0, samples, BLOCK):
                yield _as_tensor(signal[:, start : start + BLOCK])

        return cls(int(sample_rate), channels, samples, blocks)

    @classmethod
    def from_stream(cls, stream: AudioStream) -> Recording:
        """Make a recording from an open file. Its blocks are joined into larger blocks, which are resampled faster."""

        def blocks() -> Iterator[Tensor]:
            gathered: list[Tensor] = []
            for block in stream:
                gathered.append(block)
                if sum(b.shape[1] for b in gathered) >= FILE_BLOCK:
                    yield torch.cat(gathered, dim=1)
                    gathered.clear()
            if gathered:
                yield torch.cat(gathered, dim=1)

        return cls(stream.sample_rate, stream.channels, stream.frames, blocks)

    def clean_blocks(self, device: torch.device) -> Iterator[Tensor]:
        """Yield the blocks in float32 on ``device``, with 0 for every sample that is NaN or infinite."""
        for block in self.blocks():
            block = _as_float(block.to(device))
            finite = block.isfinite()
            if not finite.all():
                self.invalid += int((~finite).sum())
                block = torch.where(finite, block, 0.0)
            yield block

    def warnings(self) -> list[str]:
        """Return a sentence about each defect of the samples that were read so far."""
        return [f"{self.invalid} samples were NaN or infinite and count as 0."] if self.invalid else []


def _as_tensor(block: Any) -> Tensor:
    # Arrays are copied, because torch cannot hold read-only, reversed or byte-swapped arrays.
    if isinstance(block, Tensor):
        return block.detach()
    try:
        return torch.from_numpy(np.array(block, dtype=block.dtype.newbyteorder("=")))
    except TypeError:
        raise ShapeError(f"Samples must be floating point, int16 or int32, got {block.dtype}: convert them.") from None


def _as_float(block: Tensor) -> Tensor:
    if block.is_floating_point():
        return block.float()
    if block.dtype in FULL_SCALE:
        return block.float() / FULL_SCALE[block.dtype]
    raise ShapeError(f"Samples must be floating point, int16 or int32, got {block.dtype}: convert them.")


class Budget:
    """Bytes of memory that several spools may take together; None for no limit. Threads may share a budget."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take ``size`` more bytes if so many are left; return whether this was so."""
        with self._lock:
            if self._left is None:
                return True
            if size > self._left:
                return False
            self._left -= size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            if self._left is not None:
                self._left += size


class Spool:
    """A signal (channels, samples), float32, that grows block by block.

    Blocks stay on the device on which they arrive. When the budget is spent, the whole signal moves into an unnamed
    file in the system's temporary folder (``TMPDIR``), which takes 4 bytes a sample. Then it is read as CPU tensors.

    Raises:
        OutputError: if the temporary folder is full or not writable.
    """

    def __init__(self, channels: int, budget: Budget) -> None:
        self.channels = channels
        self.length = 0
        self._budget = budget
        self._blocks: list[Tensor] = []
        self._starts: list[int] = []
        self._file: IO[bytes] | None = None

    def append(self, block: Tensor) -> None:
        """Append a block of samples, (channels, n). The block must not be changed afterwards."""
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
        """Return the samples from ``start`` to ``stop``, (channels, stop - start), with zeros after the end of the
        signal."""
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
        """Yield the signal in blocks from start to end, and free the memory of each block. This works only once."""
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
        """Free memory and file; the signal is lost."""
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
