"""Storing float samples as int16, with the rounding noise moved away from where a resampled recording has nothing.

    v[t] = x[t] / scale + sum_j h[j] e[t - j];  q[t] = round(v[t]);  e[t] = q[t] - v[t]

so the noise q scale - x is that of rounding, filtered by 1 + sum_j h[j] z^-j. Plain rounding would fill the last 6 % of the
band, where a resampler has left 1e-5 of the mixture or less, and these bins of the network's logarithmic spectrogram would have
other values in training (by several of their standard deviations, measured on music) than in separation. The filter is the
best one of its length: h minimises the noise weighted with WEIGHT above EDGE and 1 below, the normal equations of linear
prediction (Gerzon & Craven 1989 on what can be gained: below the edge the noise grows by 3.5 dB).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["error_filter", "quantise"]

TAPS, EDGE, WEIGHT = 12, 0.94, 3e4
"""Taps of the filter; the edge as a share of the Nyquist frequency; the weight of the frequencies above it."""

LONGEST = 32768
"""Most samples of a piece. The samples of a piece are rounded in order; all pieces at once, each starting with zero
errors."""

FULL = 32760
"""The peak in units of the scale. The rest up to 32767 is room for the filtered noise."""


@functools.cache
def error_filter() -> NDArray[np.float32]:
    """Return h[1], ..., h[TAPS]."""
    frequency = np.linspace(0, 1, 4097)
    correlation = np.fft.irfft(np.where(frequency >= EDGE, WEIGHT, 1.0))[: TAPS + 1]
    lags = np.abs(np.subtract.outer(np.arange(TAPS), np.arange(TAPS)))
    h: NDArray[np.float32] = np.linalg.solve(correlation[lags], -correlation[1:]).astype(np.float32)
    return h


def quantise(stems: NDArray[np.float32]) -> tuple[NDArray[np.int16], tuple[float, ...]]:
    """Return the stems (4, channels, samples) in units of each stem's scale, which is its peak over 32760; and the scales.

    Samples that are exactly 0 stay 0, so that a silent source is recognised. The error is at most 1.7 units, half of
    ``1 + sum |h|``.
    """
    peaks = np.abs(stems).max(axis=(1, 2))
    # A silent stem may have any scale. The scale of a stem that is almost silent must not round to 0.
    scale = np.maximum(np.where(peaks > 0, peaks, 1.0) / FULL, np.finfo(np.float32).tiny).astype(np.float32)
    samples = stems.shape[-1]
    piece = min(samples, LONGEST, max(2048, samples // 64))
    pieces = -(-samples // piece)
    # Time first, so that every step reads one row: (piece, stems * channels * pieces).
    rows = np.zeros((*stems.shape[:2], pieces * piece), np.float32)
    np.divide(stems, scale[:, None, None], out=rows[..., :samples])
    rows = np.ascontiguousarray(rows.reshape(-1, piece).T)
    stored = _round(rows).T.reshape(*stems.shape[:2], -1)[..., :samples]
    return np.ascontiguousarray(stored), tuple(float(s) for s in scale)


def _round(rows: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round along the first dimension."""
    h = error_filter()
    # Row `t % TAPS` holds the error of step t, so the filter is rotated instead of moving the errors.
    turned = [np.array([h[(t - j - 1) % TAPS] for j in range(TAPS)])[:, None] for t in range(TAPS)]
    errors = np.zeros((TAPS, rows.shape[1]), np.float32)
    products = np.empty_like(errors)
    stored = np.empty(rows.shape, np.int16)
    for t, x in enumerate(rows):
        place, sounds = t % TAPS, x != 0
        # A BLAS product would add in an order that depends on the machine, and the result would too.
        np.multiply(turned[place], errors, out=products)
        wanted = products.sum(0)
        wanted += x
        rounded = np.rint(wanted)
        rounded *= sounds
        stored[t] = rounded
        rounded -= wanted
        rounded *= sounds
        errors[place] = rounded
    return stored
