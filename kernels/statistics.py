"""Group-norm statistics, taken per tile and channel, then merged by group in a fixed order.

    z = PReLU(x) as stored
    partials[n, i, tile, :, c] = (mean, M2) of z over the tile's frames; M2 is the sum of squared deviations from the mean
    affine[n, i, :, c] = (scale, shift, mean, rstd):
        mean, var over (channels of c's group, all frames); rstd = (var + eps)^(-1/2)
        scale = gamma[i, c] rstd; shift = beta[i, c] - scale mean

Statistics are taken per channel, not per group: a group of 20, 55 or 165 channels fits no tile, and one group may have channels
in two tensors. Tiles are merged first, then channels, after Chan, Golub and LeVeque (1979). There are no atomics, so the result
depends only on the item's own values. An offset of a thousand standard deviations costs no more than the offset's own rounding.

Bytes: x once, n I T C sizeof(dtype); partials, 8 / TILE bytes for each value, written once and read once. The 13 instructions
for each value limit the kernel: 1.5 ms are predicted for a song's latents on an H100, and 1.2 ms would be from bytes alone.
Merging waits for memory. Kernels that produce an activation write its partials themselves. `statistics_kernel` is for the
network's inputs.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (GroupNorm of every layer).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, alignment, channel_block, launch, power_of_two, strides
from .tile import activation, slope_of, store_moments_of_rows

__all__ = [
    "GROUPS", "affine_kernel", "group_affine", "group_of", "group_statistics", "merging", "new_affine", "new_statistics",
    "statistics_kernel",
]  # fmt: skip

ROWS = 8
"""Number of frames of a tile that one warp loads at a time, with 32 channels."""
GROUPS = 8
EPSILON = 1e-8
MERGED_TILES, MERGED = 64, 2048
"""Largest numbers of tiles, and of values, that are merged at a time: as many as memory delivers in one wait."""


@triton.jit
def _moments(
    p_x, p_statistics, row, slope, count, x_t, i_c, m_c,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Write the partials of a tile; load ROWS frames at a time. INSIDE says that all frames of the tile are in the signal."""
    i_row = tl.arange(0, ROWS)[:, None]
    b_pivot = activation(tl.load(p_x + i_row * x_t, mask=m_c[None, :] & (i_row < count), other=0.0), slope)
    # Take moments about each row's first value, so that a constant offset costs no digits.
    b_sum = tl.zeros([ROWS, BLOCK_C], tl.float32)
    b_squares = b_sum
    for first in tl.range(ROWS, BLOCK_T, ROWS, loop_unroll_factor=5):
        i_t = first + i_row
        if INSIDE:
            b_d = activation(tl.load(p_x + i_t * x_t, mask=m_c[None, :], other=0.0), slope) - b_pivot
        else:
            m_t = i_t < count
            b_d = activation(tl.load(p_x + i_t * x_t, mask=m_t & m_c[None, :], other=0.0), slope) - b_pivot
            b_d = tl.where(m_t, b_d, 0.0)
        b_sum += b_d
        b_squares += b_d * b_d
    b_count = tl.cdiv(tl.maximum(count - i_row, 0), ROWS).to(tl.float32)
    b_shift = b_sum / tl.maximum(b_count, 1.0)
    store_moments_of_rows(b_pivot + b_shift, b_squares - b_sum * b_shift, b_count, p_statistics, row, i_c, m_c, C)


@triton.jit(do_not_specialize=["T", "x_n", "x_i", "x_t"])
def statistics_kernel(
    p_x, p_slope, p_statistics, T, x_n, x_i, x_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute the partials of one tile and BLOCK_C channels of one item and instrument."""
    blocks = tl.cdiv(C, BLOCK_C)
    row = tl.program_id(0) // blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_ni, i_tile = row // tiles, row % tiles
    i_c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_t = x_t.to(tl.int64) * ALIGN
    p_x += (i_ni // INSTRUMENTS) * (x_n.to(tl.int64) * ALIGN) + (i_ni % INSTRUMENTS) * (x_i.to(tl.int64) * ALIGN)
    p_x += i_tile * BLOCK_T * x_t + i_c[None, :]
    slope, count, m_c = slope_of(p_slope), tl.minimum(T - i_tile * BLOCK_T, BLOCK_T), i_c < C
    if count == BLOCK_T:
        _moments(p_x, p_statistics, row, slope, count, x_t, i_c, m_c, C, BLOCK_T, BLOCK_C, ROWS, True)
    else:
        _moments(p_x, p_statistics, row, slope, count, x_t, i_c, m_c, C, BLOCK_T, BLOCK_C, ROWS, False)


@triton.jit
def group_of(
    p_statistics, p_gamma, p_beta, p_affine, i_ni, i_group, T, C: tl.constexpr, INSTRUMENTS: tl.constexpr,
    GROUPS: tl.constexpr, EPSILON: tl.constexpr, TILE: tl.constexpr, BLOCK_TILES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge the partials of one group of one item and instrument, and write its affine.

    Return the group's channels, their mask, their scale and beta, and the mean.
    """
    width = C // GROUPS
    tiles = tl.cdiv(T, TILE)
    i_c = i_group * width + tl.arange(0, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < width
    p_statistics += i_ni.to(tl.int64) * tiles * 2 * C + i_c
    b_count = tl.zeros([], tl.float32)
    b_mean = tl.zeros([BLOCK_C], tl.float32)
    b_m2 = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, tiles, BLOCK_TILES):
        i_tile = first + tl.arange(0, BLOCK_TILES)
        mask = (i_tile < tiles)[:, None] & m_c[None, :]
        p_tile = p_statistics[None, :] + (i_tile * 2).to(tl.int64)[:, None] * C
        b_counts = tl.minimum(tl.maximum(T - i_tile * TILE, 0), TILE).to(tl.float32)
        b_means = tl.load(p_tile, mask=mask, other=0.0)
        b_m2s = tl.load(p_tile + C, mask=mask, other=0.0)  # loaded before the sum below waits for b_means
        more = tl.sum(b_counts, 0)
        b_more_mean = tl.sum(b_counts[:, None] * b_means, 0) / more
        b_difference = b_means - b_more_mean[None, :]
        b_more_m2 = tl.sum(b_m2s + b_counts[:, None] * b_difference * b_difference, 0)
        b_delta = b_more_mean - b_mean
        b_m2 += b_more_m2 + b_delta * b_delta * (b_count * more / (b_count + more))
        b_mean += b_delta * (more / (b_count + more))
        b_count += more
    mean = tl.sum(tl.where(m_c, b_mean, 0.0), 0) / width
    b_difference = b_mean - mean
    m2 = tl.sum(tl.where(m_c, b_m2 + b_count * b_difference * b_difference, 0.0), 0)
    rstd = 1.0 / tl.sqrt_rn(m2 / (b_count * width) + EPSILON)
    i_parameter = (i_ni % INSTRUMENTS) * C + i_c
    b_scale = tl.load(p_gamma + i_parameter, mask=m_c, other=0.0).to(tl.float32) * rstd
    b_beta = tl.load(p_beta + i_parameter, mask=m_c, other=0.0).to(tl.float32)
    p_affine += i_ni.to(tl.int64) * 4 * C + i_c
    tl.store(p_affine, b_scale, mask=m_c)
    tl.store(p_affine + C, b_beta - b_scale * mean, mask=m_c)
    tl.store(p_affine + 2 * C, tl.zeros([BLOCK_C], tl.float32) + mean, mask=m_c)
    tl.store(p_affine + 3 * C, tl.zeros([BLOCK_C], tl.float32) + rstd, mask=m_c)
    return i_c, m_c, b_scale, b_beta, mean


@triton.jit(do_not_specialize=["T"])
def affine_kernel(
    p_statistics, p_gamma, p_beta, p_affine, T, C: tl.constexpr, INSTRUMENTS: tl.constexpr,
    GROUPS: tl.constexpr, EPSILON: tl.constexpr, TILE: tl.constexpr, BLOCK_TILES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the affine of one group of one item and instrument."""
    group_of(
        p_statistics, p_gamma, p_beta, p_affine, tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS, T,
        C, INSTRUMENTS, GROUPS, EPSILON, TILE, BLOCK_TILES, BLOCK_C,
    )  # fmt: skip


def new_statistics(x: Tensor, channels: int) -> Tensor:
    """Return new partials (n, I, tiles, 2, channels), float32, not initialised, for an activation with x's items and frames."""
    n, instruments, frames, _ = x.shape
    return torch.empty(n, instruments, -(-frames // TILE), 2, channels, dtype=torch.float32, device=x.device)


def group_statistics(x: Tensor, slope: Tensor | None) -> Tensor:
    """Return the partials of PReLU(x), (n, I, tiles, 2, C) float32.

    ``x`` (n, I, T, C) has unit stride along channels; I is 1 if the instruments share x.
    """
    n, instruments, frames, channels = x.shape
    statistics = new_statistics(x, channels)
    block, align = channel_block(channels), alignment(x)
    launch(
        statistics_kernel, n * instruments * statistics.shape[2] * -(-channels // block), x,
        p_x=x, p_slope=slope, p_statistics=statistics, T=frames, C=channels, INSTRUMENTS=instruments,
        **strides(align, x=x), ALIGN=align, BLOCK_T=TILE, BLOCK_C=block, ROWS=ROWS, num_warps=1,
    )  # fmt: skip
    return statistics


def group_affine(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int, affine: Tensor | None = None) -> Tensor:
    """Merge the partials of ``frames`` frames. Return the affine: scale, shift, mean and rstd, (n, I, 4, C) float32.

    If ``affine`` is given, the result is written into it.
    """
    if affine is None:
        affine = new_affine(statistics)
    launch(
        affine_kernel, len(statistics) * statistics.shape[1] * GROUPS, statistics,
        **merging(statistics, gamma, beta, frames, affine), num_warps=4,
    )  # fmt: skip
    return affine


def new_affine(statistics: Tensor) -> Tensor:
    """Return a new affine (n, I, 4, C), float32, not initialised, for the norm of these statistics."""
    n, instruments, _, _, channels = statistics.shape
    return torch.empty(n, instruments, 4, channels, dtype=torch.float32, device=statistics.device)


def merging(statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int, affine: Tensor) -> dict[str, Any]:
    """Return the arguments of :func:`group_of` that do not depend on the program."""
    channels = statistics.shape[4]
    block = power_of_two(channels // GROUPS)
    return {
        "p_statistics": statistics, "p_gamma": gamma, "p_beta": beta, "p_affine": affine, "T": frames, "C": channels,
        "INSTRUMENTS": statistics.shape[1], "GROUPS": GROUPS, "EPSILON": EPSILON, "TILE": TILE,
        "BLOCK_TILES": min(MERGED_TILES, max(8, MERGED // block)), "BLOCK_C": block,
    }  # fmt: skip
