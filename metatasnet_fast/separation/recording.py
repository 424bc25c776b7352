"""A recording as blocks of clean float32 samples, from memory or from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..audio import AudioStream
from ..errors import EmptyAudioError, ShapeError

__all__ = ["Recording"]

BLOCK = 2**20
"""Samples per channel that are taken from memory at once."""

FILE_BLOCK = 2**18
"""The same for a file."""

MOST_CHANNELS = 64
FULL_SCALE = {torch.int16: 2.0**15, torch.int32: 2.0**31}


@dataclass
class Recording:
    """``blocks()`` yields (channels, n) tensors, once; ``samples`` is their number, if it is known beforehand."""

    sample_rate: int
    channels: int
    samples: int | None
    blocks: Callable[[], Iterator[Tensor]]
    invalid: int = field(default=0, init=False)
    """Samples so far that were NaN or infinite."""

    @classmethod
    def from_memory(cls, waveform: Tensor | npt.NDArray[Any], sample_rate: int) -> Recording:
        """Raises as ``Separator.separate``."""
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
        """An open file. Its blocks are gathered into larger ones, which resample faster."""

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
        """Blocks in float32 on ``device``, with 0 for every sample that is NaN or infinite."""
        for block in self.blocks():
            block = _as_float(block.to(device))
            finite = block.isfinite()
            if not finite.all():
                self.invalid += int((~finite).sum())
                block = torch.where(finite, block, 0.0)
            yield block

    def warnings(self) -> list[str]:
        """Return the defects of the samples read so far."""
        return [f"{self.invalid} samples were NaN or infinite and count as 0."] if self.invalid else []


def _as_tensor(block: Any) -> Tensor:
    # A copy: torch cannot hold read-only, reversed or byte-swapped arrays.
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
