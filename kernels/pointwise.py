"""1x1 convolution per instrument, with the group norm in front of it folded into its weights.

    z = PReLU(x) as stored; without a slope z = x
    fold:     scale and mean come from the statistics of z, as in statistics.py, and are stored for backward
              W'[n, i, o, c] = round(W[i, o, c] scale[n, i, c])
              b'[n, i, o]    = bias[i, o] + sum_c (W[i, o, c] beta[i, c] - W'[n, i, o, c] mean[n, i, c])
    product:  y[n, i, t, o]  = sum_c W'[n, i, o, c] z[n, i, t, c] + b'[n, i, o] + residual[n, i, t, o]
    partials[n, i, tile, :, o] = (mean, M2) of PReLU(y, next_slope), y as stored

b' contains the mean times the ROUNDED weights: the rounding error of W' is then multiplied by z - mean, not by z, and bfloat16
keeps its accuracy at any offset. A program of the fold merges the statistics of one group, and folds the columns of this group.
So b' is stored as one row for each group, and the product adds up these rows. The instruments may share x (stride 0).

Bytes: x, residual and y once each, n I T (K + 2 N) sizeof(dtype); x again for every further column tile, from L2, as the
programs of a tile are neighbours; W', n I N K sizeof(dtype). FLOPs: 2 n I T N K. At K = N = 160 in bfloat16 these are 80 FLOP a
byte without a residual, 53 with one: memory-bound on all GPUs from the A100 on. `launch.column_tile` tells which columns are
idle. K is processed in blocks of 32: of 160 inputs none is idle, of 440 inputs 8 of 448 are.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (in_conv, conv1d, res_out, skip_out,
mask_output).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import COLUMN_TILES, TILE, alignment, column_tile, launch, power_of_two, products, register_limit, strides
from .statistics import GROUPS, group_of, merging, new_affine, new_statistics
from .tile import activation, slope_of, store_moments
from .tuned import configuration

__all__ = [
    "BLOCK_K", "STAGES", "Folding", "bias_of", "fold", "fold_kernel", "fold_weights", "new_folded", "pointwise_finish",
    "pointwise_forward", "pointwise_fwd_kernel", "pointwise_start", "product", "product_options",
]  # fmt: skip

BLOCK_K = 32
STAGES = 3
WEIGHTS = 2048
"""Largest number of weights that a program of `fold_kernel` folds at a time."""


def product_warps(width: int) -> int:
    """Return the number of warps for an accumulator of TILE by ``width`` values.

    The accumulator then takes at most 80 registers a thread, so that the epilogue fits.
    """
    return 8 if width >= 64 else 4


def product_options(main: int, tail: int) -> dict[str, int]:
    """Return the default configuration of a product whose programs compute ``main`` + ``tail`` columns."""
    return {
        "BLOCK_N": main, "TAIL_N": tail, "BLOCK_K": BLOCK_K, "num_warps": product_warps(main + tail), "num_stages": STAGES,
    }  # fmt: skip


@triton.jit
def _fold_rows(
    p_w, p_bias, p_folded, p_folded_bias, i_c, m_c, b_scale, b_beta, mean, i_group,
    N: tl.constexpr, K: tl.constexpr, LD: tl.constexpr, ADDED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write columns ``i_c`` of N rows of W', and these columns' row of b'. Rows of W' are LD elements apart.

    If ADDED, add the row to the row of b' that is already there. That row belongs to the channels of another activation.
    """
    for o in tl.range(0, N, BLOCK_N, loop_unroll_factor=2):
        i_o = o + tl.arange(0, BLOCK_N)
        m_o = i_o < N
        mask = m_o[:, None] & m_c[None, :]
        b_w = tl.load(p_w + i_o[:, None] * K + i_c[None, :], mask=mask, other=0.0).to(tl.float32)
        b_folded = (b_w * b_scale[None, :]).to(p_folded.dtype.element_ty)
        tl.store(p_folded + i_o[:, None] * LD + i_c[None, :], b_folded, mask=mask)
        b_bias = tl.sum(b_w * b_beta[None, :] - b_folded.to(tl.float32) * mean, 1)
        if p_bias is not None:
            b_bias += tl.load(p_bias + i_o, mask=m_o & (i_group == 0), other=0.0).to(tl.float32)
        if ADDED:
            b_bias += tl.load(p_folded_bias + i_o, mask=m_o, other=0.0)
        tl.store(p_folded_bias + i_o, b_bias, mask=m_o)


@triton.jit(do_not_specialize=["T"])
def fold_kernel(
    p_statistics, p_gamma, p_beta, p_affine, p_w, p_bias, p_folded, p_folded_bias,
    p_more, p_more_bias, p_more_folded, p_more_folded_bias, T, ROWS: tl.constexpr, N: tl.constexpr, LD: tl.constexpr,
    ADDED: tl.constexpr, MORE: tl.constexpr, MORE_LD: tl.constexpr, C: tl.constexpr, INSTRUMENTS: tl.constexpr,
    GROUPS: tl.constexpr, EPSILON: tl.constexpr, TILE: tl.constexpr, BLOCK_TILES: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the affine of one group of one item and instrument, this group's columns of N rows of W', and its row of b'.

    Also fold MORE rows of ``p_more``, weights of a second product with the same input, into ``p_more_folded``. In weights and
    bias, the instruments are ROWS rows apart.
    """
    i_ni, i_group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    i_c, m_c, b_scale, b_beta, mean = group_of(
        p_statistics, p_gamma, p_beta, p_affine, i_ni, i_group, T,
        C, INSTRUMENTS, GROUPS, EPSILON, TILE, BLOCK_TILES, BLOCK_C,
    )  # fmt: skip
    i_i, i_ni = (i_ni % INSTRUMENTS).to(tl.int64), i_ni.to(tl.int64)
    if p_bias is not None:
        p_bias += i_i * ROWS
    _fold_rows(
        p_w + i_i * ROWS * C, p_bias, p_folded + i_ni * N * LD, p_folded_bias + (i_ni * GROUPS + i_group) * N,
        i_c, m_c, b_scale, b_beta, mean, i_group, N, C, LD, ADDED, BLOCK_N,
    )  # fmt: skip
    if MORE > 0:
        if p_more_bias is not None:
            p_more_bias += i_i * ROWS
        _fold_rows(
            p_more + i_i * ROWS * C, p_more_bias, p_more_folded + i_ni * MORE * MORE_LD,
            p_more_folded_bias + (i_ni * GROUPS + i_group) * MORE,
            i_c, m_c, b_scale, b_beta, mean, i_group, MORE, C, MORE_LD, False, BLOCK_N,
        )  # fmt: skip


@triton.jit
def bias_of(p_bias, i_o, N: tl.constexpr, SHARES: tl.constexpr):
    """Return the bias of columns ``i_o``, float32: the sum of the SHARES rows of b'. SHARES is a power of two."""
    p_bias += tl.arange(0, SHARES)[:, None] * N + i_o[None, :]
    return tl.sum(tl.load(p_bias, mask=(i_o < N)[None, :], other=0.0).to(tl.float32), 0)


@triton.jit
def pointwise_start(
    p_residual, i_t, m_t, i_o, residual_t, N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Return the residual of BLOCK_T frames and columns ``i_o``, or zeros without a residual.

    The accumulator starts with these values, which saves registers.
    """
    if p_residual is not None:
        mask = m_t[:, None] & (i_o < N)[None, :]
        b_y = tl.load(p_residual + i_t[:, None] * residual_t + i_o[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        b_y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    return b_y


@triton.jit
def pointwise_finish(
    b_y, p_bias, p_next_slope, p_y, p_statistics, row, i_t, m_t, i_o, count, N: tl.constexpr, SHARES: tl.constexpr,
    ACTIVATED: tl.constexpr = False, AGAIN: tl.constexpr = False,
):  # fmt: skip
    """Add the bias, store y and write the partials, for BLOCK_T frames and columns ``i_o``.

    If ACTIVATED, store PReLU(y) in place of y.

    If AGAIN, load the stored values again, and take the statistics from these. The product leaves the values of a column in
    eight lanes of all warps. After loading, a thread holds neighbouring columns of many rows, and sums over rows take a third
    of the instructions.
    """
    m_o = i_o < N
    mask = m_t[:, None] & m_o[None, :]
    if p_bias is not None:
        b_y += bias_of(p_bias, i_o, N, SHARES)[None, :]
    b_y = b_y.to(p_y.dtype.element_ty)
    if ACTIVATED:
        b_y = activation(b_y, slope_of(p_next_slope)).to(b_y.dtype)
    tl.store(p_y + i_t.to(tl.int64)[:, None] * N + i_o[None, :], b_y, mask=mask)
    if p_statistics is not None:
        if AGAIN:
            tl.debug_barrier()
            b_y = tl.load(p_y + i_t.to(tl.int64)[:, None] * N + i_o[None, :], mask=mask, other=0.0)
        if ACTIVATED:
            b_z = b_y.to(tl.float32)
        else:
            b_z = activation(b_y, slope_of(p_next_slope))
        if AGAIN:  # if this were a branch with an else, 32 bytes a thread would spill to local memory on sm_100
            store_moments(b_z, m_t, count, p_statistics, row, i_o, m_o, N)
        elif count == m_t.shape[0]:
            store_moments(b_z, m_t, count, p_statistics, row, i_o, m_o, N, True)
        else:
            store_moments(b_z, m_t, count, p_statistics, row, i_o, m_o, N)


@triton.jit(do_not_specialize=["T", "x_n", "x_i", "x_t", "residual_n", "residual_i", "residual_t"])
def pointwise_fwd_kernel(
    p_x, p_w, p_bias, p_residual, p_slope, p_next_slope, p_y, p_statistics, T,
    x_n, x_i, x_t, residual_n, residual_i, residual_t,
    K: tl.constexpr, N: tl.constexpr, INSTRUMENTS: tl.constexpr, FOLDED: tl.constexpr, ALIGN: tl.constexpr,
    SHARES: tl.constexpr, ACTIVATED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N + TAIL_N columns of y, in two accumulators, for one tile of one item and instrument."""
    WIDTH: tl.constexpr = BLOCK_N + TAIL_N
    blocks = tl.cdiv(N, WIDTH)
    row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_ni, i_tile = row // tiles, row % tiles
    i_n, i_i = (i_ni // INSTRUMENTS).to(tl.int64), (i_ni % INSTRUMENTS).to(tl.int64)
    i_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = i_t < T
    x_n, x_i, x_t = x_n.to(tl.int64) * ALIGN, x_i.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    p_row = p_x + i_n * x_n + i_i * x_i + i_t[:, None] * x_t
    i_w = i_n * INSTRUMENTS + i_i if FOLDED else i_i
    p_w += i_w * N * K
    residual_t = residual_t.to(tl.int64) * ALIGN
    if p_residual is not None:
        p_residual += i_n * (residual_n.to(tl.int64) * ALIGN) + i_i * (residual_i.to(tl.int64) * ALIGN)
    i_o = i_block * WIDTH + tl.arange(0, BLOCK_N)
    b_y = pointwise_start(p_residual, i_t, m_t, i_o, residual_t, N, BLOCK_T, BLOCK_N)
    if TAIL_N > 0:
        i_tail = i_block * WIDTH + BLOCK_N + tl.arange(0, TAIL_N)
        b_tail = pointwise_start(p_residual, i_t, m_t, i_tail, residual_t, N, BLOCK_T, TAIL_N)
    slope = slope_of(p_slope)
    for k in range(0, K, BLOCK_K):
        i_k = k + tl.arange(0, BLOCK_K)
        m_k = i_k < K
        b_z = tl.load(p_row + i_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
        if p_slope is not None:
            b_z = activation(b_z, slope).to(b_z.dtype)
        b_w = tl.load(p_w + i_o[None, :] * K + i_k[:, None], mask=m_k[:, None] & (i_o < N)[None, :], other=0.0)
        b_y = tl.dot(b_z, b_w, b_y, input_precision=PRECISION)
        if TAIL_N > 0:
            b_w = tl.load(
                p_w + i_tail[None, :] * K + i_k[:, None], mask=m_k[:, None] & (i_tail < N)[None, :], other=0.0
            )
            b_tail = tl.dot(b_z, b_w, b_tail, input_precision=PRECISION)
    count = tl.minimum(T - i_tile * BLOCK_T, BLOCK_T).to(tl.float32)
    p_y += i_ni.to(tl.int64) * T * N
    if p_bias is not None:
        p_bias += i_w * SHARES * N
    pointwise_finish(
        b_y, p_bias, p_next_slope, p_y, p_statistics, row, i_t, m_t, i_o, count, N, SHARES, ACTIVATED, True
    )
    if TAIL_N > 0:
        pointwise_finish(
            b_tail, p_bias, p_next_slope, p_y, p_statistics, row, i_t, m_t, i_tail, count, N, SHARES, ACTIVATED, True
        )


class Folding(NamedTuple):
    """Weights into which a norm is to be folded, and the tensors for the result.

    ``weight`` (I, N, K) may be some rows of a contiguous tensor with more rows. ``bias`` is (I, N) or None. W' is written into
    ``folded`` (n, I, N, K), which may be some columns of a contiguous tensor; b' into ``folded_bias`` (n, I, GROUPS, N),
    float32.
    """

    weight: Tensor
    bias: Tensor | None
    folded: Tensor
    folded_bias: Tensor


def fold(
    statistics: Tensor, gamma: Tensor, beta: Tensor, frames: int, affine: Tensor, one: Folding, other: Folding | None = None,
    added: bool = False,
) -> None:  # fmt: skip
    """Write the affine of the norm with these ``statistics``, and fold the norm into the weights of one or two products.

    If ``added``, ``one.folded_bias`` already holds b' of other columns of W': add b' of ``one`` to it. ``affine`` is
    (n, I, 4, K), float32.
    """
    weight = one.weight
    names = (
        "p_w", "p_bias", "p_folded", "p_folded_bias", "p_more", "p_more_bias", "p_more_folded", "p_more_folded_bias",
    )  # fmt: skip
    tensors = dict(zip(names, (*one, *(other or (None,) * 4)), strict=True))
    launch(
        fold_kernel, len(statistics) * statistics.shape[1] * GROUPS, statistics,
        **merging(statistics, gamma, beta, frames, affine), **tensors, ROWS=weight.stride(0) // weight.shape[2],
        N=weight.shape[1], LD=one.folded.stride(2), ADDED=added,
        MORE=0 if other is None else other.weight.shape[1], MORE_LD=0 if other is None else other.folded.stride(2),
        BLOCK_N=max(4, WEIGHTS // power_of_two(weight.shape[2] // GROUPS)), num_warps=4,
    )  # fmt: skip


def new_folded(weight: Tensor, items: int, dtype: torch.dtype, sections: int = 1) -> tuple[Tensor, Tensor]:
    """Return new tensors, not initialised: W' (n, I, N, sections K) in ``dtype``, and b' (n, I, GROUPS, N) in float32.

    The bias of the product is the sum of the GROUPS rows of b'.
    """
    instruments, columns, inputs = weight.shape
    folded = torch.empty(items, instruments, columns, sections * inputs, dtype=dtype, device=weight.device)
    return folded, torch.empty(items, instruments, GROUPS, columns, dtype=torch.float32, device=weight.device)


def fold_weights(
    weight: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    gamma: Tensor,
    beta: Tensor,
    frames: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the norm in front of ``weight`` (I, N, K), which has these ``statistics``, into the weight.

    Return W' and b', shaped as in :func:`new_folded`, and the affine of the norm, (n, I, 4, K) float32.
    """
    folded, affine = Folding(weight, bias, *new_folded(weight, len(statistics), dtype)), new_affine(statistics)
    fold(statistics, gamma, beta, frames, affine, folded)
    return folded.folded, folded.folded_bias, affine


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    next_slope: Tensor | None, tf32: bool, y: Tensor | None = None, partials: Tensor | None = None,
    activated: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return y (n, I, T, N) in x's dtype and, with a ``next_slope``, the partials of PReLU(y, next_slope).

    If ``activated``, return PReLU(y, next_slope) in place of y. ``weight``, in x's dtype, is (I, N, K), or, folded,
    (n, I, N, K). ``bias`` is (I, N), or, folded, (n, I, P, N), whose P rows are added up. If ``y`` and ``partials`` are given,
    which must be contiguous, the results are written into them; ``y`` may be the same tensor as ``residual``.
    """
    n, instruments, frames, inputs = x.shape
    columns = weight.shape[-2]
    if y is None:
        y = torch.empty(n, instruments, frames, columns, dtype=x.dtype, device=x.device)
    if partials is None and next_slope is not None:
        partials = new_statistics(x, columns)
    # If partials are written and there are several blocks of columns, use no tail: two tiles then share a multiprocessor.
    tile = column_tile(columns, x.dtype, tail=next_slope is None or columns <= sum(COLUMN_TILES[0]))
    chosen = configuration("pointwise_fwd", x, tf32, product_options(*tile), K=inputs, N=columns)
    width = chosen["BLOCK_N"] + chosen["TAIL_N"]
    align = alignment(x, residual)
    launch(
        pointwise_fwd_kernel, n * instruments * -(-frames // TILE) * -(-columns // width), x,
        p_x=x, p_w=weight, p_bias=bias, p_residual=residual, p_slope=slope, p_next_slope=next_slope,
        p_y=y, p_statistics=partials, T=frames, K=inputs, N=columns,
        INSTRUMENTS=instruments, **strides(align, x=x, residual=residual), ALIGN=align, FOLDED=weight.dim() == 4,
        SHARES=bias.shape[2] if bias is not None and bias.dim() == 4 else 1,
        ACTIVATED=activated, BLOCK_T=TILE, PRECISION=products(tf32, x.device), **chosen,
        **register_limit(128, x),
    )  # fmt: skip
    return y, partials


def pointwise_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, slope: Tensor | None,
    norm: tuple[Tensor, Tensor, Tensor] | None, next_slope: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return what :func:`product` returns, and the affine of the norm, or None without a norm.

    ``norm`` is (statistics, gamma, beta), or None. ``x`` and ``residual`` have unit stride along channels.
    """
    affine = None
    if norm is None:
        weight = weight.to(x.dtype)
    else:
        weight, bias, affine = fold_weights(weight, bias, *norm, x.shape[2], x.dtype)
    return *product(x, weight, bias, residual, slope, next_slope, tf32), affine
