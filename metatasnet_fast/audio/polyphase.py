"""The taps of the `kaiser_best` resampling filter, laid out as a few small matrices per pair of rates.

Resampling by L / M reads the signal x at the times t M / L, t = 0, 1, ...; with n + frac = t M / L, g = min(1, L / M)

    y[t] = g sum_i h(g (frac + i)) x[n - i] + g sum_k h(g (1 - frac + k)) x[n + 1 + k]

with h the right half of a Kaiser-windowed sinc, stored at 8192 points per zero crossing and interpolated linearly. The
stride through the stored points is the integer part of 8192 g, and a wing ends one whole stride before the table does:
both are part of the recorded behaviour. `frac` repeats every L outputs, so y is a fixed linear map per period of M
inputs. Consecutive outputs share most of their inputs, so each GROUP of them is one dense matrix over the union of
their windows: the few zeros in it cost less than separate dot products.

Source: the figures and conventions of resampy 0.4.3 (McFee, "resampy: efficient sample rate conversion in Python",
JOSS 2016), which follow Smith's "Digital Audio Resampling" (CCRMA).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["FilterBank", "filter_bank", "kaiser_table"]

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
    """Return the taps of one wing, `(len(position), most taps)`, from its position in the table (in points) for each
    output."""
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
        # Column q, row r: the tap by which output q multiplies input n[0] - before + r.
        matrix = np.zeros((int(n[-1] - n[0]) + before + 1 + right.shape[1], len(n)))
        column = np.arange(len(n))[:, None]
        centre = (n - n[0] + before)[:, None]
        matrix[centre - np.arange(left.shape[1]), column] = left
        matrix[centre + 1 + np.arange(right.shape[1]), column] = right
        starts.append(int(n[0]))
        groups.append(torch.from_numpy(matrix).to(device=device, dtype=dtype))
        span = max(span, int(n[0]) + len(matrix))
    return FilterBank(period, hop, before, span, tuple(starts), tuple(groups))


_cache: OrderedDict[tuple[int, int, torch.dtype, torch.device], FilterBank] = OrderedDict()
_lock = threading.Lock()


def filter_bank(sr_in: int, sr_out: int, dtype: torch.dtype, device: torch.device) -> FilterBank:
    """Return the bank for a pair of rates; the most recently used ones are kept, up to 256 MiB in all."""
    common = math.gcd(sr_in, sr_out)
    key = (sr_in // common, sr_out // common, dtype, device)
    with _lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
        with torch.inference_mode(False):
            bank = _build(sr_in, sr_out, dtype, device)
        _cache[key] = bank
        while len(_cache) > 1 and sum(b.nbytes for b in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
        return bank
