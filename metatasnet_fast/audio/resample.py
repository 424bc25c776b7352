"""Resample whole signals or streams with the `kaiser_best` filter, by a few small matrices per pair of rates.

Resampling by L / M reads the signal x at the times t M / L, t = 0, 1, ...; with n + frac = t M / L, g = min(1, L / M)

    y[t] = g sum_i h(g (frac + i)) x[n - i] + g sum_k h(g (1 - frac + k)) x[n + 1 + k]

with h the right half of a Kaiser-windowed sinc, stored at 8192 points per zero crossing and interpolated linearly. The
stride through the stored points is the integer part of 8192 g, and a wing ends one whole stride before the table does:
both are part of the recorded behaviour. `frac` repeats every L outputs, so y is a fixed linear map per period of M
inputs. Consecutive outputs share most of their inputs, so each GROUP of them is one dense matrix over the union of
their windows: the few zeros in it cost less than separate dot products.

Source: the numbers and conventions of resampy 0.4.3 (McFee, "resampy: efficient sample rate conversion in Python",
JOSS 2016), which follow Smith's "Digital Audio Resampling" (CCRMA).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from metatasnet_fast.errors import ShapeError

__all__ = ["StreamingResampler", "filter_bank", "fit_length", "kaiser_table", "resample", "resampled_length"]

ZEROS = 50
POINTS_PER_ZERO = 2**13
ROLLOFF = 0.9173473712608761
KAISER_BETA = 12.984585247040012

GROUP = 64
CACHE_BYTES = 256 * 2**20


@lru_cache(maxsize=1)
def kaiser_table() -> npt.NDArray[np.float64]:
    """Return the right half of the filter, float64 `(50 * 8192 + 1,)`: `r sinc(r z) kaiser(z / 50)` for z in zero
    crossings."""
    size = ZEROS * POINTS_PER_ZERO
    z = np.linspace(0, ZEROS, size + 1)
    table = np.kaiser(2 * size + 1, KAISER_BETA)[size:] * ROLLOFF * np.sinc(ROLLOFF * z)
    table.setflags(write=False)
    return table


@dataclass(frozen=True)
class FilterBank:
    """One period of the map from input to output: `hop` samples in, `period` samples out.

    `groups[j]` makes the outputs `j GROUP ... j GROUP + columns - 1` of a period out of `rows` consecutive inputs, of
    which the first is `starts[j] - before` samples after the period's start. `span` inputs, from `before` samples
    before the start, are needed for one period.
    """

    period: int
    hop: int
    before: int
    span: int
    starts: tuple[int, ...]
    groups: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(g.numel() * g.element_size() for g in self.groups)


def _wing(position: npt.NDArray[np.float64], stride: int, gain: float) -> npt.NDArray[np.float64]:
    """Return the taps of one wing, `(len(position), most taps)`; `position` is where the wing starts in the table, in
    points, for each output."""
    table = kaiser_table()
    offset = position.astype(np.int64)
    eta = (position - offset)[:, None]
    count = (len(table) - offset) // stride
    i = np.arange(count.max())
    index = offset[:, None] + stride * i
    inside = i < count[:, None]
    index = np.minimum(index, len(table) - 2)
    # The last stored point has no right neighbour. It is used only with eta = 0, or outside the wing.
    taps = table[index] * (1 - eta) + table[index + 1] * eta
    return np.where(inside, gain * taps, 0.0)


def _build(sr_in: int, sr_out: int, dtype: torch.dtype, device: torch.device) -> FilterBank:
    common = math.gcd(sr_in, sr_out)
    up, down = sr_out // common, sr_in // common
    # For a simple ratio several periods form one group, so that a group is never much smaller than GROUP.
    repeat = -(-GROUP // up)
    period, hop = up * repeat, down * repeat

    scale = min(1.0, sr_out / sr_in)
    stride = int(scale * POINTS_PER_ZERO)
    before = (ZEROS * POINTS_PER_ZERO + 1) // stride - 1
    starts: list[int] = []
    groups: list[torch.Tensor] = []
    span = 0
    for first in range(0, period, GROUP):
        time = np.arange(first, min(first + GROUP, period), dtype=np.int64) * down
        n, frac = time // up, (time % up) / up
        left = _wing(scale * frac * POINTS_PER_ZERO, stride, scale)
        right = _wing((scale - scale * frac) * POINTS_PER_ZERO, stride, scale)
        # Row r of column q is the tap by which output q multiplies input n[0] - before + r.
        matrix = np.zeros((int(n[-1] - n[0]) + before + 1 + right.shape[1], len(n)))
        column = np.arange(len(n))[:, None]
        centre = (n - n[0] + before)[:, None]
        matrix[centre - np.arange(left.shape[1]), column] = left
        matrix[centre + 1 + np.arange(right.shape[1]), column] = right
        starts.append(int(n[0]))
        groups.append(torch.from_numpy(matrix).to(device=device, dtype=dtype))
        span = max(span, int(n[0]) + len(matrix))
    return FilterBank(period, hop, before, span, tuple(starts), tuple(groups))


_banks: OrderedDict[tuple[int, int, torch.dtype, torch.device], FilterBank] = OrderedDict()
_lock = threading.Lock()


def filter_bank(sr_in: int, sr_out: int, dtype: torch.dtype, device: torch.device) -> FilterBank:
    """Return the bank for a pair of rates; the most recently used ones are kept, up to 256 MiB in all."""
    common = math.gcd(sr_in, sr_out)
    key = (sr_in // common, sr_out // common, dtype, device)
    with _lock:
        if key in _banks:
            _banks.move_to_end(key)
            return _banks[key]
        with torch.inference_mode(False):
            bank = _build(sr_in, sr_out, dtype, device)
        _banks[key] = bank
        while len(_banks) > 1 and sum(b.nbytes for b in _banks.values()) > CACHE_BYTES:
            _banks.popitem(last=False)
        return bank


# Outputs per channel that are computed at once: the windows of one piece stay in a core's cache, or fill a GPU.
PIECE_CPU = 2**16
PIECE_GPU = 2**20

# Beyond this ratio the filter's table has too few points.
MAX_RATIO = 1024


def resampled_length(length: int, sr_in: int, sr_out: int) -> int:
    """Return how many samples `resample` makes from `length` samples: `floor(length sr_out / sr_in)`."""
    return length * sr_out // sr_in


def fit_length(x: torch.Tensor, length: int) -> torch.Tensor:
    """Return a copy of `x` (..., n), cut to `length` samples or continued with zeros."""
    if length < 0:
        raise ShapeError(f"A signal cannot have {length} samples; ask for a length of 0 or more.")
    if length <= x.shape[-1]:
        return x[..., :length].clone()
    return torch.cat([x, x.new_zeros(*x.shape[:-1], length - x.shape[-1])], -1)


def resample(x: torch.Tensor, sr_in: int, sr_out: int, *, length: int | None = None) -> torch.Tensor:
    """Resample `x` (..., n), float32 or float64, any device, from `sr_in` to `sr_out` Hz, along its last dimension.

    Equals resampy 0.4.3's `resample(x, sr_in, sr_out, filter="kaiser_best")`: the signal is zero outside its range, the
    passband is 0.917 of the lower Nyquist frequency, and the result has `floor(n sr_out / sr_in)` samples. With
    `length` the result is cut or continued with zeros to that many samples (librosa's `fix=True` is `ceil(n sr_out /
    sr_in)`). Equal rates give an exact copy. Float32 is always computed in full precision, for all matmul settings.

    Raises `ShapeError` for other dtypes, for rates that are not positive and for ratios beyond 1024.
    """
    _check_rates(sr_in, sr_out)
    _check_signal(x)
    if sr_in == sr_out:
        y = x.clone()
    else:
        total = resampled_length(x.shape[-1], sr_in, sr_out)
        y = x.new_empty(*x.shape[:-1], total)
        if y.numel() > 0:
            flat = x.reshape(-1, x.shape[-1])
            resampling = _Resampling(sr_in, sr_out, flat)
            pieces = [resampling.piece(flat, 0, first, total) for first in range(0, total, resampling.piece_length)]
            y = torch.cat(pieces, -1).view(y.shape)
    return y if length is None else fit_length(y, length)


class StreamingResampler:
    """A resampler for a signal that arrives in blocks; the joined results equal `resample` of the whole signal.

    Blocks are `(channels, n)` with any `n`, all of one dtype and device. Memory does not grow with the signal: only the
    input of one piece of the result is kept (2**16 samples on a CPU, 2**20 on a GPU, or `sr_out / gcd` if that is
    more).
    """

    def __init__(self, sr_in: int, sr_out: int, channels: int) -> None:
        _check_rates(sr_in, sr_out)
        if channels < 1:
            raise ShapeError(f"A signal cannot have {channels} channels; give a number of 1 or more.")
        self.sr_in, self.sr_out, self.channels = sr_in, sr_out, channels
        self._resampling: _Resampling | None = None
        self._blocks: list[torch.Tensor] = []
        self._start = 0  # the input index of the first sample in _blocks
        self._received = 0
        self._made = 0
        self._finished = False

    def push(self, block: torch.Tensor) -> torch.Tensor:
        """Take the next `(channels, n)` samples; return the `(channels, m)` results that are complete (m may be 0)."""
        if self._finished:
            raise RuntimeError("This stream is finished; make a new StreamingResampler for the next signal.")
        _check_signal(block)
        if block.dim() != 2 or block.shape[0] != self.channels:
            raise ShapeError(f"A block of {self.channels} channels is needed, got shape {tuple(block.shape)}.")
        if self.sr_in == self.sr_out:
            self._received += block.shape[1]
            return block.clone()
        if self._resampling is None:
            self._resampling = _Resampling(self.sr_in, self.sr_out, block)
            self._blocks.append(block[:, :0])
        last = self._blocks[-1]
        if last.dtype != block.dtype or last.device != block.device:
            raise ShapeError(
                f"All blocks of a stream need one dtype and device; got {block.dtype} on {block.device} "
                f"after {last.dtype} on {last.device}."
            )
        # The caller may write the next block into the same memory.
        self._blocks.append(block.clone())
        self._received += block.shape[1]
        ready = self._resampling.complete(self._received)
        return self._make(ready)

    def finish(self) -> torch.Tensor:
        """End the signal; return the results that remain, `(channels, m)`."""
        if self._finished:
            raise RuntimeError("This stream is finished; make a new StreamingResampler for the next signal.")
        self._finished = True
        if self._resampling is None:
            return torch.zeros(self.channels, 0, dtype=torch.float32)
        rest = self._make(resampled_length(self._received, self.sr_in, self.sr_out))
        self._blocks.clear()
        return rest

    def _make(self, until: int) -> torch.Tensor:
        assert self._resampling is not None
        if until <= self._made:
            return self._blocks[0][:, :0].clone()
        held = torch.cat(self._blocks, -1)
        pieces = []
        for first in range(self._made, until, self._resampling.piece_length):
            pieces.append(self._resampling.piece(held, self._start, first, until))
        self._made = until
        keep = max(self._start, self._resampling.first_input(until))
        self._blocks = [held[:, keep - self._start :].clone()]
        self._start = keep
        return torch.cat(pieces, -1)


class _Resampling:
    """The resampling of one signal, piece by piece.

    Every piece but the last has `piece_length` outputs, in whole signals and streams alike, so that both do the same
    arithmetic in the same order.
    """

    def __init__(self, sr_in: int, sr_out: int, like: torch.Tensor) -> None:
        self.dtype = like.dtype
        compute = torch.float64 if _float32_is_reduced(like) else like.dtype
        self.bank: FilterBank = filter_bank(sr_in, sr_out, compute, like.device)
        self.compute = compute
        target = PIECE_CPU if like.device.type == "cpu" else PIECE_GPU
        self.periods = max(1, target // self.bank.period)
        self.piece_length = self.periods * self.bank.period

    def first_input(self, output: int) -> int:
        """Return the first input sample that the piece starting at `output` reads; it may be negative."""
        return output // self.bank.period * self.bank.hop - self.bank.before

    def complete(self, received: int) -> int:
        """Return how many outputs no further input can change, a multiple of the piece length."""
        periods = (received + self.bank.before - self.bank.span) // self.bank.hop + 1
        return max(0, periods // self.periods * self.piece_length)

    def piece(self, x: torch.Tensor, start: int, first: int, total: int) -> torch.Tensor:
        """Compute the outputs `first ... min(first + piece_length, total) - 1` from `x` (channels, n), which begins at
        sample `start`."""
        bank = self.bank
        wanted = min(self.piece_length, total - first)
        periods = -(-wanted // bank.period)
        begin = self.first_input(first) - start
        end = begin + (periods - 1) * bank.hop + bank.span
        low, high = max(begin, 0), min(end, x.shape[-1])
        window = F.pad(x[:, low:high].to(self.compute), (low - begin, end - high))
        channels = x.shape[0]
        y = window.new_empty(channels, periods, bank.period)
        for j, (offset, taps) in enumerate(zip(bank.starts, bank.groups, strict=True)):
            frames = window[:, offset : offset + (periods - 1) * bank.hop + len(taps)].unfold(-1, len(taps), bank.hop)
            outputs = frames.reshape(-1, len(taps)).mm(taps)
            y[:, :, j * GROUP : j * GROUP + taps.shape[1]] = outputs.view(channels, periods, -1)
        return y.view(channels, -1)[:, :wanted].to(self.dtype)


def _check_rates(sr_in: int, sr_out: int) -> None:
    for rate in (sr_in, sr_out):
        if int(rate) != rate or rate <= 0:
            raise ShapeError(f"A sample rate must be a positive whole number of Hz, got {rate!r}.")
    if max(sr_in, sr_out) > MAX_RATIO * min(sr_in, sr_out):
        raise ShapeError(f"Cannot resample {sr_in} Hz to {sr_out} Hz: the ratio must be at most {MAX_RATIO}.")


def _check_signal(x: torch.Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise ShapeError(f"Resampling needs float32 or float64 samples, got {x.dtype}; convert them with .float().")
    if x.dim() < 1:
        raise ShapeError("Resampling needs a signal of shape (..., samples), got a single number.")


def _float32_is_reduced(x: torch.Tensor) -> bool:
    """Return whether torch may compute float32 products on this device in tf32 or bf16, too imprecise for audio."""
    if x.dtype != torch.float32:
        return False
    backend: Any = torch.backends.mkldnn if x.device.type == "cpu" else torch.backends.cuda
    try:
        return backend.matmul.fp32_precision not in ("ieee", "none")
    except AttributeError:  # in torch 2.8 one setting holds for all devices
        return torch.get_float32_matmul_precision() != "highest"
