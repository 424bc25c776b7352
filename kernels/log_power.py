"""Logarithm of the short-time power spectrum: centred frames, reflect padding, one-sided, minus a stored mean.

    y[n, f, b] = log10(|X_b|^2 + 1e-8) - mean[b],  X_b = sum_m w[m] x[f hop + m - N / 2] e^(-2 pi i b m / N),  0 <= b <= N / 2

The transform is a product with cosines and sines of a quarter of the length. With v = w x the real part needs
e[k] = v[k] + v[N - k] alone, the imaginary part o[k] = v[k] - v[N - k]; even bins see k and N / 2 - k alike, odd bins see
them with opposite signs, so both halve once more (Q = N / 4, 0 <= k <= Q; at k = Q there is one term, at k = 0 no o):
    cos, even b: e[k] + e[N/2 - k];   odd: e[k] - e[N/2 - k];   sin, even b: o[k] - o[N/2 - k];   odd: o[k] + o[N/2 - k]
`fold_kernel` writes these four rows, and bin N / 2, an alternating sum, by itself: four products of exactly Q columns remain.
They are taken in float32 accuracy on the tensor cores (three TF32 products): one TF32 product in front of
log10(1e-8 + .) would drown silence in the rounding of what sounds beside it. Below 1e-7 the logarithm is taken of
1 + 1e8 |X|^2 and 8 is added to the mean: bins that never sound have a standard deviation of 1e-3 and less.

FLOPs: N^2 / 2 a frame, a quarter of the plain product's, at 31.25 frames a second: stage 3 0.33 MMAC a latent frame, times
three, of the network's 40. Bytes a frame: N written and read as float32, and N / 2 written; the basis, 4 Q^2 4 bytes
(1, 4, 17 MB), stays in L2, whose reads (9 GB of a song at stage 3) take as long as the products: 1.8 ms predicted on an H100.
Idle columns: none; rows Q + 1 of blocks of 32: 12, 6, 3 %.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.3; original model/spectrogram.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bottleneck import STAGES
from .launch import exact_products, launch, operands_in_shared_memory

__all__ = ["basis", "fold", "fold_kernel", "log_power_forward", "power_kernel", "row_length", "transform"]

FOLD_BLOCK = 128
BLOCK_ROWS, BLOCK_K = 64, 32


def block_columns(device: torch.device) -> int:
    """Bins of a program: 64 where tensor cores take an operand from shared memory; elsewhere its registers do not suffice."""
    return 64 if operands_in_shared_memory(device) else 32


FLOOR = tl.constexpr(1e-8)
QUIET = tl.constexpr(1e-7)
LOG10_2 = tl.constexpr(0.30102999566398120)
SLOPE = tl.constexpr(2 / math.log(10))


@triton.jit
def _windowed(p_signal, p_window, i_first, i_m, mask, SAMPLES):
    """w[m] times the sample under it, reflected at both ends."""
    i_sample = tl.abs(i_first + i_m)
    i_sample = tl.where(i_sample >= SAMPLES, 2 * (SAMPLES - 1) - i_sample, i_sample)
    return tl.load(p_signal + i_sample, mask=mask, other=0.0) * tl.load(p_window + i_m, mask=mask, other=0.0)


@triton.jit
def _log_power(b_power, b_mean):
    """log10(power + 1e-8) - mean, to the last digit also where hardly anything sounds."""
    b_quiet = b_power < QUIET
    b_value = tl.where(b_quiet, 1.0 + b_power * 1e8, b_power + FLOOR)
    return tl.log2(b_value) * LOG10_2 - tl.where(b_quiet, b_mean + 8.0, b_mean)


@triton.jit(do_not_specialize=["SAMPLES", "FRAMES", "signal_n"])
def fold_kernel(
    p_signal, p_window, p_mean, p_dy, p_folded, p_last, SAMPLES, FRAMES, signal_n,
    N: tl.constexpr, HOP: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one frame's four rows of Q + 1 and zeros; bin N / 2 of y, or, given dy, the gradient of its sum."""
    Q: tl.constexpr = N // 4
    row = tl.program_id(0).to(tl.int64)
    p_signal += (row // FRAMES) * signal_n
    i_first = (row % FRAMES) * HOP - N // 2
    p_folded += row * 4 * ROW
    b_last = tl.zeros([BLOCK], tl.float32)
    for k in range(0, ROW, BLOCK):
        i_k = k + tl.arange(0, BLOCK)
        mask, m_row = i_k <= Q, i_k < ROW
        m_far, m_pair = i_k < Q, mask & (i_k > 0)
        b_1 = _windowed(p_signal, p_window, i_first, i_k, mask, SAMPLES)
        b_2 = _windowed(p_signal, p_window, i_first, N - i_k, m_pair, SAMPLES)
        b_3 = _windowed(p_signal, p_window, i_first, N // 2 - i_k, m_far, SAMPLES)
        b_4 = _windowed(p_signal, p_window, i_first, N // 2 + i_k, m_far & m_pair, SAMPLES)
        b_cos, b_far_cos = b_1 + b_2, b_3 + b_4
        b_sin, b_far_sin = tl.where(m_pair, b_1 - b_2, 0.0), tl.where(m_pair, b_3 - b_4, 0.0)
        b_last += tl.where(i_k % 2 == 0, b_cos + b_far_cos, -b_cos - b_far_cos)
        tl.store(p_folded + i_k, b_cos + b_far_cos, mask=m_row)
        tl.store(p_folded + ROW + i_k, b_cos - b_far_cos, mask=m_row)
        tl.store(p_folded + 2 * ROW + i_k, b_sin - b_far_sin, mask=m_row)
        tl.store(p_folded + 3 * ROW + i_k, b_sin + b_far_sin, mask=m_row)
    last = tl.sum(b_last, 0)
    bins = N // 2 + 1
    if p_dy is not None:
        dy = tl.load(p_dy + row * bins + N // 2)
        tl.store(p_last + row, dy * SLOPE * last / (last * last + FLOOR))
    else:
        tl.store(p_last + row * bins + N // 2, _log_power(last * last, tl.load(p_mean + N // 2)))


@triton.jit(do_not_specialize=["ROWS"])
def power_kernel(
    p_folded, p_basis, p_mean, p_dy, p_y, p_dparts, ROWS,
    N: tl.constexpr, ROW: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_COLUMNS even or odd bins of BLOCK_ROWS frames; given dy, the gradients of both parts instead."""
    Q: tl.constexpr = N // 4
    blocks = tl.cdiv(Q, BLOCK_COLUMNS)
    i_row, i_block = tl.program_id(0) // (2 * blocks), tl.program_id(0) % (2 * blocks)
    odd = i_block // blocks
    i_r = (i_row * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    i_j = (i_block % blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    m_r, m_j = i_r < ROWS, i_j < Q
    b_cos = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    b_sin = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for k in range(0, Q + 1, BLOCK_K):
        i_k = k + tl.arange(0, BLOCK_K)
        m_x, m_w = m_r[:, None], m_j[None, :]  # rows end in zeros: a mask along k would break 16-byte copies
        p_x = p_folded + i_r[:, None] * (4 * ROW) + odd * ROW + i_k[None, :]
        p_w = p_basis + (odd * Q + i_j)[None, :] * ROW + i_k[:, None]
        b_x, b_w = tl.load(p_x, mask=m_x, other=0.0), tl.load(p_w, mask=m_w, other=0.0)
        b_cos = tl.dot(b_x, b_w, b_cos, input_precision=PRECISION)
        b_x = tl.load(p_x + 2 * ROW, mask=m_x, other=0.0)
        b_w = tl.load(p_w + 2 * Q * ROW, mask=m_w, other=0.0)
        b_sin = tl.dot(b_x, b_w, b_sin, input_precision=PRECISION)
    b_power = b_cos * b_cos + b_sin * b_sin
    mask = m_r[:, None] & m_j[None, :]
    i_bin = 2 * i_j + odd
    i_y = i_r[:, None] * (N // 2 + 1) + i_bin[None, :]
    if p_dy is not None:
        b_slope = tl.load(p_dy + i_y, mask=mask, other=0.0) * SLOPE / (b_power + FLOOR)
        p_dparts += i_r[:, None] * (4 * Q) + odd * Q + i_j[None, :]
        tl.store(p_dparts, b_slope * b_cos, mask=mask)
        tl.store(p_dparts + 2 * Q, b_slope * b_sin, mask=mask)
    else:
        b_mean = tl.load(p_mean + i_bin, mask=m_j, other=0.0)
        tl.store(p_y + i_y, _log_power(b_power, b_mean[None, :]), mask=mask)


def row_length(n_fft: int) -> int:
    """Q + 1 values and zeros up to whole blocks."""
    return (n_fft // 4 // BLOCK_K + 1) * BLOCK_K


@functools.lru_cache(maxsize=16)
def basis(n_fft: int, device: torch.device) -> Tensor:
    """cos, cos, sin, sin of even, odd, even, odd bins: (4, Q, row_length(n_fft)) float32, kept for every length and device."""
    quarter = n_fft // 4
    k, j = torch.arange(quarter + 1), torch.arange(quarter)[:, None]
    rows = torch.zeros(4, quarter, row_length(n_fft), dtype=torch.float64)
    for odd in (0, 1):
        angle = 2 * math.pi / n_fft * ((2 * j + odd) * k % n_fft).double()
        rows[odd, :, : quarter + 1] = angle.cos()
        rows[2 + odd, :, : quarter + 1] = angle.sin()
    rows[1, :, quarter] = rows[2, :, quarter] = 0  # zero by mathematics, not by rounding: the fold leaves values there
    found = rows.float().to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # other streams will read it
    return found


def fold(signal: Tensor, window: Tensor, hop: int, mean: Tensor | None, dy: Tensor | None, last: Tensor) -> Tensor:
    """The four rows of every frame, (n F, 4, row_length); writes bin N / 2 into ``last`` (y, or the gradient of its sum)."""
    n, samples = signal.shape
    n_fft, frames = len(window), samples // hop + 1
    row = row_length(n_fft)
    folded = torch.empty(n * frames, 4, row, dtype=torch.float32, device=signal.device)
    launch(
        fold_kernel, n * frames, signal,
        p_signal=signal, p_window=window, p_mean=mean, p_dy=dy, p_folded=folded, p_last=last, SAMPLES=samples,
        FRAMES=frames, signal_n=signal.stride(0), N=n_fft, HOP=hop, ROW=row, BLOCK=FOLD_BLOCK, num_warps=4,
    )  # fmt: skip
    return folded


def transform(
    folded: Tensor, n_fft: int, mean: Tensor | None, dy: Tensor | None, y: Tensor | None, dparts: Tensor | None
) -> None:
    """Write all bins but N / 2 of y, or, given dy, the gradients of the parts, (n F, 4, Q)."""
    quarter, rows, block = n_fft // 4, len(folded), block_columns(folded.device)
    launch(
        power_kernel, -(-rows // BLOCK_ROWS) * 2 * -(-quarter // block), folded,
        p_folded=folded, p_basis=basis(n_fft, folded.device), p_mean=mean, p_dy=dy, p_y=y, p_dparts=dparts, ROWS=rows,
        N=n_fft, ROW=folded.shape[2], BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=block, BLOCK_K=BLOCK_K,
        PRECISION=exact_products(), num_warps=4, num_stages=STAGES,
    )  # fmt: skip


def log_power_forward(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    """y (n, F, N / 2 + 1); all float32, ``signal`` (n, samples) with unit stride along samples."""
    frames, bins = signal.shape[1] // hop + 1, len(window) // 2 + 1
    y = torch.empty(len(signal), frames, bins, dtype=torch.float32, device=signal.device)
    transform(fold(signal, window, hop, mean, None, y), len(window), mean, None, y, None)
    return y
