"""Compute res_out of one block and conv1d of the next in one kernel, while the tile of the residual stream is on chip.

    x'[n, i, t, o] = x[n, i, t, o] + sum_h W'[n, i, o, h] b[n, i, t, h] + b'[n, i, o], rounded and stored
                     or, at the start of the stream, norm(PReLU(x))[n, i, t, o]
    c[n, i, t, h]  = sum_o W1[i, h, o] x'[n, i, t, o], x' as stored
    partials[n, i, tile, :, h] = (mean, M2) of PReLU(c, slope), c as stored

W' and b' are res_out's weights and bias with the norm folded in (see pointwise.py). One program holds all B columns of its
frames, at most 128 + 32. So the kernel is for two-byte dtypes: a tile of four-byte values would not fit the registers.
Bytes: b, x, x' and c once each, n I T (2 B + 2 H) sizeof(dtype); two separate products would read x' once more. FLOPs: 4 n I T
B H; half as many at the start of the stream, where there is no b. At B = H = 160 in bfloat16 these are 80 FLOP a byte: the
kernel is memory-bound.
Not yet run on a GPU. Source: as pointwise.py's.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, alignment, launch, operands_in_shared_memory, power_of_two, strides
from .pointwise import BLOCK_K, bias_of, pointwise_finish, pointwise_start
from .statistics import new_statistics
from .tile import activation, slope_of

__all__ = ["block_pair", "block_pair_kernel", "pairs", "start_pair"]

MAIN, TAIL = 128, 32
"""Columns of the widest tile of the stream, in two parts. It takes 80 registers a thread with 8 warps, 160 with 4 warps."""
COLUMNS = 32
"""Columns of c that are computed at a time. With all 160 at once, the second product would spill registers on sm_80."""
STAGES = 2


@triton.jit
def _stored(b_x, p_new, i_t, m_t, i_o, B: tl.constexpr):
    """Round columns ``i_o`` of the stream to p_new's dtype; store the rounded values, and return them."""
    b_new = b_x.to(p_new.dtype.element_ty)
    tl.store(p_new + i_t.to(tl.int64)[:, None] * B + i_o[None, :], b_new, mask=m_t[:, None] & (i_o < B)[None, :])
    return b_new


@triton.jit
def _weights(p_w, i_o, i_h, H: tl.constexpr, B: tl.constexpr):
    """Load rows ``i_h`` and columns ``i_o`` of a weight matrix (H, B); return the transpose."""
    return tl.load(p_w + i_h[None, :] * B + i_o[:, None], mask=(i_o < B)[:, None] & (i_h < H)[None, :], other=0.0)


@triton.jit
def _normalised(p_x, p_slope, p_affine, p_beta, i_t, m_t, i_o, x_t, B: tl.constexpr):
    """Return the columns ``i_o`` of norm(PReLU(x)), the start of the stream, in float32."""
    m_o = i_o < B
    b_x = tl.load(p_x + i_t[:, None] * x_t + i_o[None, :], mask=m_t[:, None] & m_o[None, :], other=0.0)
    b_scale = tl.load(p_affine + i_o, mask=m_o, other=0.0)
    b_mean = tl.load(p_affine + 2 * B + i_o, mask=m_o, other=0.0)
    b_beta = tl.load(p_beta + i_o, mask=m_o, other=0.0).to(tl.float32)
    return (activation(b_x, slope_of(p_slope)) - b_mean[None, :]) * b_scale[None, :] + b_beta[None, :]


@triton.jit(do_not_specialize=["T", "b_n", "b_i", "b_t", "x_n", "x_i", "x_t"])
def block_pair_kernel(
    p_b, p_folded, p_bias, p_start_slope, p_affine, p_beta, p_x, p_new, p_w, p_slope, p_c, p_statistics, T,
    b_n, b_i, b_t, x_n, x_i, x_t,
    H: tl.constexpr, B: tl.constexpr, SHARES: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    ACTIVATED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_B: tl.constexpr, TAIL_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute x', c and the partials of one tile of one item and instrument. If ``p_b`` is None, x' is norm(PReLU(x))."""
    tiles = tl.cdiv(T, BLOCK_T)
    row = tl.program_id(0)
    i_ni, i_tile = row // tiles, row % tiles
    i_n, i_i = (i_ni // INSTRUMENTS).to(tl.int64), (i_ni % INSTRUMENTS).to(tl.int64)
    i_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = i_t < T
    p_x += i_n * (x_n.to(tl.int64) * ALIGN) + i_i * (x_i.to(tl.int64) * ALIGN)
    x_t = x_t.to(tl.int64) * ALIGN
    p_new += i_ni.to(tl.int64) * T * B
    p_c += i_ni.to(tl.int64) * T * H
    p_w += i_i * H * B
    i_o = tl.arange(0, BLOCK_B)
    i_o_tail = BLOCK_B + tl.arange(0, TAIL_B if TAIL_B > 0 else 16)
    if p_b is None:
        p_affine += i_ni.to(tl.int64) * 4 * B
        p_beta += i_i * B
        b_x = _normalised(p_x, p_start_slope, p_affine, p_beta, i_t, m_t, i_o, x_t, B)
        if TAIL_B > 0:
            b_x_tail = _normalised(p_x, p_start_slope, p_affine, p_beta, i_t, m_t, i_o_tail, x_t, B)
    else:
        p_row = p_b + i_n * (b_n.to(tl.int64) * ALIGN) + i_i * (b_i.to(tl.int64) * ALIGN)
        p_row += i_t[:, None] * (b_t.to(tl.int64) * ALIGN)
        p_folded += i_ni.to(tl.int64) * B * H
        p_bias += i_ni.to(tl.int64) * SHARES * B
        b_x = pointwise_start(p_x, i_t, m_t, i_o, x_t, B, BLOCK_T, BLOCK_B) + bias_of(p_bias, i_o, B, SHARES)[None, :]
        if TAIL_B > 0:
            b_x_tail = pointwise_start(p_x, i_t, m_t, i_o_tail, x_t, B, BLOCK_T, TAIL_B)
            b_x_tail += bias_of(p_bias, i_o_tail, B, SHARES)[None, :]
        for k in range(0, H, BLOCK_K):
            i_k = k + tl.arange(0, BLOCK_K)
            m_k = i_k < H
            b_b = tl.load(p_row + i_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
            b_x = tl.dot(b_b, _weights(p_folded, i_k, i_o, B, H), b_x)
            if TAIL_B > 0:
                b_x_tail = tl.dot(b_b, _weights(p_folded, i_k, i_o_tail, B, H), b_x_tail)
    b_new = _stored(b_x, p_new, i_t, m_t, i_o, B)
    if TAIL_B > 0:
        b_new_tail = _stored(b_x_tail, p_new, i_t, m_t, i_o_tail, B)
    count = tl.minimum(T - i_tile * BLOCK_T, BLOCK_T).to(tl.float32)
    for h in range(0, H, BLOCK_H):
        i_h = h + tl.arange(0, BLOCK_H)
        b_c = tl.dot(b_new, _weights(p_w, i_o, i_h, H, B))
        if TAIL_B > 0:
            b_c = tl.dot(b_new_tail, _weights(p_w, i_o_tail, i_h, H, B), b_c)
        pointwise_finish(b_c, None, p_slope, p_c, p_statistics, row, i_t, m_t, i_h, count, H, 1, ACTIVATED)


def pairs(dtype: torch.dtype, width: int, hidden: int) -> bool:
    """Return whether the kernel serves this dtype and these widths B and H.

    It does not serve a small ``hidden`` (H), with which most of a tile would be idle.
    """
    return dtype.itemsize == 2 and width <= MAIN + TAIL and hidden >= COLUMNS // 2


def block_pair(
    b: Tensor, folded: Tensor, bias: Tensor, x: Tensor, conv1d: Tensor, slope: Tensor,
    new: Tensor | None = None, c: Tensor | None = None, activated: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return x' (n, I, T, B), c (n, I, T, H) and the partials of PReLU(c, slope); if ``activated``, PReLU(c) in place of c.

    ``b`` (n, I, T, H) and ``x`` (n, I, T, B) have unit stride along channels. ``folded`` is W' (n, I, B, H). b' is the sum of
    the P rows of ``bias`` (n, I, P, B). ``conv1d`` is W1 (I, H, B). If ``new`` and ``c`` are given, x' is written into ``new``
    and c into ``c``; both must be contiguous.
    """
    going_on = {
        "p_b": b, "p_folded": folded, "p_bias": bias, "p_start_slope": None, "p_affine": None, "p_beta": None,
        "SHARES": bias.shape[2],
    }  # fmt: skip
    return _launch(b, x, conv1d, slope, new, c, activated, going_on)


def start_pair(
    x: Tensor, start_slope: Tensor, affine: Tensor, beta: Tensor, conv1d: Tensor, slope: Tensor, activated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`block_pair` returns, for x' = norm(PReLU(x, start_slope)).

    ``affine`` (n, I, 4, B) and ``beta`` (I, B) belong to the norm.
    """
    starting = {
        "p_b": None, "p_folded": None, "p_bias": None, "p_start_slope": start_slope, "p_affine": affine, "p_beta": beta,
        "SHARES": 1,
    }  # fmt: skip
    return _launch(None, x, conv1d, slope, None, None, activated, starting)


def _launch(
    b: Tensor | None, x: Tensor, conv1d: Tensor, slope: Tensor, new: Tensor | None, c: Tensor | None, activated: bool,
    before: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, instruments, frames, width = x.shape
    hidden = conv1d.shape[1]
    if new is None:
        new = torch.empty(n, instruments, frames, width, dtype=x.dtype, device=x.device)
    if c is None:
        c = torch.empty(n, instruments, frames, hidden, dtype=x.dtype, device=x.device)
    partials = new_statistics(x, hidden)
    main = min(MAIN, power_of_two(width))
    tail = power_of_two(width - main) if width > main else 0
    align = alignment(b, x)
    # With 4 warps two programs fit on a multiprocessor. Where operands come from registers, 4 warps would spill registers.
    warps = 4 if operands_in_shared_memory(x.device) else 8
    launch(
        block_pair_kernel, n * instruments * partials.shape[2], x, **before,
        p_x=x, p_new=new, p_w=conv1d, p_slope=slope, p_c=c, p_statistics=partials,
        T=frames, **strides(align, b=b, x=x), H=hidden, B=width, INSTRUMENTS=instruments, ALIGN=align, ACTIVATED=activated,
        BLOCK_T=TILE, BLOCK_B=main, TAIL_B=tail, BLOCK_H=COLUMNS, BLOCK_K=BLOCK_K, num_warps=warps, num_stages=STAGES,
    )  # fmt: skip
    return new, c, partials
