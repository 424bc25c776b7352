"""Integrated loudness, level and peak of a signal.

    y = K-weighted x;  l_j = -0.691 + 10 log10( sum over channels of mean(y^2 over block j) )
    blocks of 400 ms every 100 ms; those below -70 LUFS are left out, then those 10 LU below the loudness of the rest

Source: ITU-R BS.1770-4. Its two filters are given at 48 kHz; at other rates they are made anew from the analogue prototypes
that reproduce the table (a shelf of +4 dB at 1682 Hz and a high-pass at 38 Hz, by the bilinear transform).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["integrated_loudness", "levels"]

SHELF_HZ, SHELF_DB, SHELF_Q = 1681.974450955533, 3.999843853973347, 0.7071752369554196
PASS_HZ, PASS_Q = 38.13547087602444, 0.5003270373238773

ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0

Coefficients = tuple[NDArray[np.float64], NDArray[np.float64]]


def shelf(rate: float) -> Coefficients:
    """Numerator and denominator of the first filter, in powers of z^-1."""
    k, gain = math.tan(math.pi * SHELF_HZ / rate), 10 ** (SHELF_DB / 20)
    middle = gain**0.4996667741545416
    a0 = 1 + k / SHELF_Q + k * k
    b = np.array([gain + middle * k / SHELF_Q + k * k, 2 * (k * k - gain), gain - middle * k / SHELF_Q + k * k])
    return b / a0, np.array([a0, 2 * (k * k - 1), 1 - k / SHELF_Q + k * k]) / a0


def high_pass(rate: float) -> Coefficients:
    """Of the second filter; its numerator is not normalised, as in the table."""
    k = math.tan(math.pi * PASS_HZ / rate)
    a0 = 1 + k / PASS_Q + k * k
    return np.array([1.0, -2.0, 1.0]), np.array([a0, 2 * (k * k - 1), 1 - k / PASS_Q + k * k]) / a0


def k_weighted(x: Tensor, rate: int) -> Tensor:
    """Both filters by their frequency response; zeros of half a second keep the end's response off the beginning."""
    size = _smooth_length(x.shape[-1] + rate // 2)
    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    response = np.ones(len(delay), np.complex128)
    for b, a in (shelf(rate), high_pass(rate)):
        response *= np.polyval(b[::-1], delay) / np.polyval(a[::-1], delay)
    spectrum = torch.fft.rfft(x, n=size) * torch.from_numpy(response.astype(np.complex64))
    weighted: Tensor = torch.fft.irfft(spectrum, n=size)
    return weighted[..., : x.shape[-1]]


def integrated_loudness(x: Tensor, rate: int) -> float | None:
    """Of (channels, n), mono or stereo, LUFS; None for silence and for less than 400 ms."""
    step = rate // 10
    blocks = x.shape[-1] // step - 3
    if blocks < 1 or not x.any():
        return None
    power = torch.cat([k_weighted(one, rate).square_()[None] for one in x]).double().sum(0)
    tenths = power[: (blocks + 3) * step].view(-1, step).sum(1)
    mean = tenths.unfold(0, 4, 1).sum(1) / (4 * step)
    for gate in (ABSOLUTE_GATE, None):
        if gate is None:
            gate = _lufs(mean.mean()) + RELATIVE_GATE
        mean = mean[mean > 10 ** ((gate + 0.691) / 10)]
        if not len(mean):
            return None
    return round(_lufs(mean.mean()), 2)


def levels(x: Tensor, rate: int) -> dict[str, float | None]:
    """``lufs``, ``rms_dbfs`` and ``peak_dbfs`` of (channels, n), full scale 1; None where there is only silence."""
    peak = float(x.abs().max())
    if peak == 0:
        return {"lufs": None, "rms_dbfs": None, "peak_dbfs": None}
    rms = float(torch.linalg.vector_norm(x, dtype=torch.float64)) / math.sqrt(x.numel())
    return {
        "lufs": integrated_loudness(x, rate),
        "rms_dbfs": round(20 * math.log10(rms), 2),
        "peak_dbfs": round(20 * math.log10(peak), 2),
    }


def _lufs(power: Tensor) -> float:
    return -0.691 + 10 * math.log10(float(power))


def _smooth_length(n: int) -> int:
    """The next product of a power of two and 1, 3, 5 or 9, where Fourier transforms are fast."""
    return min(m << max(0, math.ceil(math.log2(n / m))) for m in (1, 3, 5, 9))
