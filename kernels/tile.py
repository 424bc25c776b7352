"""Compute on one tile of frames by channels: device functions that several kernels share."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["activation", "prelu", "slope_of", "store_moments", "store_moments_of_rows"]


@triton.jit
def slope_of(p_slope):
    """Return the PReLU's slope, float32; 1 if ``p_slope`` is None."""
    b_slope = 1.0
    if p_slope is not None:
        b_slope = tl.load(p_slope).to(tl.float32)
    return b_slope


@triton.jit
def prelu(b_x, slope):
    """Return PReLU of ``b_x``. As in PyTorch, zero belongs to the side with the slope; the other side is ``b_x > 0``."""
    return tl.where(b_x > 0, b_x, slope * b_x)


@triton.jit
def activation(b_x, slope):
    """Return PReLU of the stored value ``b_x``, rounded to its dtype, as float32.

    Because of the rounding, statistics, products and the depthwise taps all see the same numbers. This matters for a constant
    signal, whose group norm multiplies any difference between two such numbers by ten thousand.
    """
    return prelu(b_x.to(tl.float32), slope).to(b_x.dtype).to(tl.float32)


@triton.jit
def store_moments(b_z, m_t, count, p_statistics, row, i_c, m_c, C: tl.constexpr, INSIDE: tl.constexpr = False):
    """Compute each channel's mean and M2 over the ``count`` frames of a tile; write both to row ``row`` of ``p_statistics``.

    A row is (2, C). First the mean is taken, then the deviations from the mean, so that a constant offset costs no digits.
    INSIDE says that all frames are in the signal.
    """
    if not INSIDE:
        b_z = tl.where(m_t[:, None], b_z, 0.0)
    b_mean = tl.sum(b_z, 0) / count
    b_deviation = b_z - b_mean[None, :]
    if not INSIDE:
        b_deviation = tl.where(m_t[:, None], b_deviation, 0.0)
    p_row = p_statistics + row.to(tl.int64) * 2 * C + i_c
    tl.store(p_row, b_mean, mask=m_c)
    tl.store(p_row + C, tl.sum(b_deviation * b_deviation, 0), mask=m_c)


@triton.jit
def store_moments_of_rows(b_mean, b_m2, b_count, p_statistics, row, i_c, m_c, C: tl.constexpr):
    """Write what :func:`store_moments` writes, computed from the mean and M2 of each row of frames.

    ``b_count`` (rows, 1) is the number of frames in each row.
    """
    b_all = tl.sum(tl.where(b_count > 0, b_count * b_mean, 0.0), 0) / tl.sum(b_count, 0)
    b_deviation = tl.where(b_count > 0, b_mean - b_all[None, :], 0.0)
    p_row = p_statistics + row.to(tl.int64) * 2 * C + i_c
    tl.store(p_row, b_all, mask=m_c)
    tl.store(p_row + C, tl.sum(tl.where(b_count > 0, b_m2, 0.0) + b_count * b_deviation * b_deviation, 0), mask=m_c)
