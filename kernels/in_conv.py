"""The masking network's first 1x1 convolution, on two operands side by side that are never concatenated.

    u[n, i, t] = (x[n, i, t, :K1], v[n, i, t, :K2]); the instruments may share x, and v may be absent
    y = W norm(PReLU(u)), with the norm folded into W as in pointwise.py; both operands add to one tile of accumulators
    partials[n, i, tile, :, o] = (mean, M2) of PReLU(y, next_slope), y as stored

The 8 groups of the norm divide K1 + K2 channels, so one group may have channels of both operands. For this reason statistics
are taken per channel, concatenated (they are small), and then merged by group. For a shared x this is one product of I N
columns: neighbouring programs read x for all I instruments, once from memory and then from a cache. The statistics of a shared
x are taken once.

Bytes: x twice (statistics, product), v twice, y once: n T (2 K1 + 2 I K2 + I N) sizeof(dtype). FLOPs: 2 n I T N (K1 + K2).
At the third stage (K1, K2, N = 1760, 880, 160) in bfloat16 these are 120 FLOP a byte. An H200 can do 184, so the product is
memory-bound.

Backward: S, D, q, r, dW, dgamma and dbeta are computed as in pointwise_backward.py, with S over the columns of both operands;
dv is computed as dx is in that file. For an x that the instruments share


    dx = PReLU'(x) sum_i (sum_o W'[i] dy[i] + q[i] (z - mean[i]) + r[i])
       = PReLU'(x) (sum_io W' dy + sum_i q[i] (z - mean[0]) + sum_i (q[i] (mean[0] - mean[i]) + r[i]))

This is one product of I N rows that reads dy once and writes dx once, instead of I products and a sum. The means of the
instruments differ only in a group that has channels of both operands.

Bytes: dy three times (for dW, dx and dv), x and v twice, dx and dv once. FLOPs: twice the forward's. Every sum has one order.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (in_conv) and model/tasnet.py (the
concatenation).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, alignment, column_tile, launch, products, register_limit, strides
from .pointwise import pointwise_finish, product_options
from .pointwise_backward import DGRAD_FRAMES, data_gradient, weight_gradient
from .pointwise_sums import new_sums, norm_gradient, sum_items
from .statistics import group_statistics, new_statistics
from .tile import activation, slope_of
from .tuned import configuration

__all__ = ["in_conv_backward", "in_conv_forward", "in_conv_fwd_kernel", "input_statistics", "shared_dgrad_kernel"]


@triton.jit
def _accumulate(
    p_row, p_w, slope, b_y, b_tail, m_t, i_o, i_tail, K: tl.constexpr, LD: tl.constexpr, N: tl.constexpr,
    TAIL_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add PReLU(x) W'^T, a product over the K channels of one operand x, to both accumulators; return the accumulators.

    Rows of the weights are LD elements apart.
    """
    for k in range(0, K, BLOCK_K):
        i_k = k + tl.arange(0, BLOCK_K)
        m_k = i_k < K
        b_z = tl.load(p_row + i_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
        b_z = activation(b_z, slope).to(b_z.dtype)
        b_w = tl.load(p_w + i_o[None, :] * LD + i_k[:, None], mask=m_k[:, None] & (i_o < N)[None, :], other=0.0)
        b_y = tl.dot(b_z, b_w, b_y, input_precision=PRECISION)
        if TAIL_N > 0:
            b_w = tl.load(
                p_w + i_tail[None, :] * LD + i_k[:, None], mask=m_k[:, None] & (i_tail < N)[None, :], other=0.0
            )
            b_tail = tl.dot(b_z, b_w, b_tail, input_precision=PRECISION)
    return b_y, b_tail


@triton.jit(do_not_specialize=["T", "x_n", "x_i", "x_t", "v_n", "v_i", "v_t"])
def in_conv_fwd_kernel(
    p_x, p_v, p_w, p_bias, p_slope, p_next_slope, p_y, p_statistics, T, x_n, x_i, x_t, v_n, v_i, v_t,
    K: tl.constexpr, MORE: tl.constexpr, N: tl.constexpr, SHARES: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N + TAIL_N columns of y and their partials, for one tile of one item and instrument.

    The programs of a tile are neighbours, so that they find the tile of x in the cache.
    """
    WIDTH: tl.constexpr = BLOCK_N + TAIL_N
    blocks = tl.cdiv(N, WIDTH)
    tiles = tl.cdiv(T, BLOCK_T)
    i_block, place = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    i_i, i_tile = (place % INSTRUMENTS).to(tl.int64), place // INSTRUMENTS % tiles
    i_n = (place // INSTRUMENTS // tiles).to(tl.int64)
    i_ni = i_n * INSTRUMENTS + i_i
    i_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = i_t < T
    slope = slope_of(p_slope)
    p_w += i_ni * N * (K + MORE)
    p_x += i_n * (x_n.to(tl.int64) * ALIGN) + i_i * (x_i.to(tl.int64) * ALIGN)
    p_row = p_x + i_t[:, None] * (x_t.to(tl.int64) * ALIGN)
    i_o = i_block * WIDTH + tl.arange(0, BLOCK_N)
    b_y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    i_tail, b_tail = i_o, b_y
    if TAIL_N > 0:
        i_tail = i_block * WIDTH + BLOCK_N + tl.arange(0, TAIL_N)
        b_tail = tl.zeros([BLOCK_T, TAIL_N], tl.float32)
    b_y, b_tail = _accumulate(
        p_row, p_w, slope, b_y, b_tail, m_t, i_o, i_tail, K, K + MORE, N, TAIL_N, BLOCK_K, PRECISION
    )
    if MORE > 0:
        p_v += i_n * (v_n.to(tl.int64) * ALIGN) + i_i * (v_i.to(tl.int64) * ALIGN)
        p_row = p_v + i_t[:, None] * (v_t.to(tl.int64) * ALIGN)
        b_y, b_tail = _accumulate(
            p_row, p_w + K, slope, b_y, b_tail, m_t, i_o, i_tail, MORE, K + MORE, N, TAIL_N, BLOCK_K, PRECISION
        )
    count = tl.minimum(T - i_tile * BLOCK_T, BLOCK_T).to(tl.float32)
    row = i_ni * tiles + i_tile
    p_bias += i_ni * SHARES * N
    p_y += i_ni * T * N
    pointwise_finish(b_y, p_bias, p_next_slope, p_y, p_statistics, row, i_t, m_t, i_o, count, N, SHARES, False, True)
    if TAIL_N > 0:
        pointwise_finish(
            b_tail, p_bias, p_next_slope, p_y, p_statistics, row, i_t, m_t, i_tail, count, N, SHARES, False, True
        )


def input_statistics(x: Tensor, v: Tensor | None, slope: Tensor, instruments: int) -> Tensor:
    """Return the partials of PReLU(x) and PReLU(v), side by side: (n, I, tiles, 2, K1 + K2), float32."""
    found = group_statistics(x, slope).expand(-1, instruments, -1, -1, -1)
    return found.contiguous() if v is None else torch.cat([found, group_statistics(v, slope)], dim=4)


def in_conv_forward(
    x: Tensor, v: Tensor | None, folded: Tensor, bias: Tensor, slope: Tensor, next_slope: Tensor, tf32: bool
) -> tuple[Tensor, Tensor]:
    """Return y (n, I, T, N) in x's dtype, and the partials of PReLU(y, next_slope).

    ``x`` (n, 1 or I, T, K1) and ``v`` (n, I, T, K2) have unit stride along channels. ``folded`` (n, I, N, K1 + K2), in x's
    dtype, and ``bias`` (n, I, P, N) come from ``pointwise.fold_weights``.
    """
    n, shared, frames, inputs = x.shape
    _, instruments, columns, _ = folded.shape
    y = torch.empty(n, instruments, frames, columns, dtype=x.dtype, device=x.device)
    partials = new_statistics(y, columns)
    defaults = product_options(*column_tile(columns, x.dtype))
    chosen = configuration("in_conv_fwd", x, tf32, defaults, K=folded.shape[3], N=columns)
    width = chosen["BLOCK_N"] + chosen["TAIL_N"]
    align = alignment(x, v)
    layout = strides(align, x=x, v=v)
    if shared == 1:
        layout["x_i"] = 0
    launch(
        in_conv_fwd_kernel, n * instruments * -(-frames // TILE) * -(-columns // width), x,
        p_x=x, p_v=v, p_w=folded, p_bias=bias, p_slope=slope, p_next_slope=next_slope, p_y=y, p_statistics=partials,
        T=frames, **layout, K=inputs, MORE=0 if v is None else v.shape[3], N=columns, SHARES=bias.shape[2],
        INSTRUMENTS=instruments, ALIGN=align,
        BLOCK_T=TILE, PRECISION=products(tf32, x.device), **chosen,
        **register_limit(128, x),
    )  # fmt: skip
    return y, partials


@triton.jit(do_not_specialize=["T", "dy_n", "dy_i", "dy_t", "x_n", "x_i", "x_t"])
def shared_dgrad_kernel(
    p_dy, p_w, p_x, p_slope, p_affine, p_norm, p_dx, p_dslope, T, dy_n, dy_i, dy_t, x_n, x_i, x_t,
    K: tl.constexpr, N: tl.constexpr, INSTRUMENTS: tl.constexpr, LD: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dx of a shared x for one item, one tile of frames and BLOCK_C of the K channels.

    The sum goes over the N outputs of all instruments. Also write this program's partial sum of dslope. Rows of the weights, of
    the affine and of ``p_norm`` are LD elements apart.
    """
    blocks = tl.cdiv(K, BLOCK_C)
    tiles = tl.cdiv(T, BLOCK_T)
    place = tl.program_id(0) // blocks
    i_tile, i_n = place % tiles, (place // tiles).to(tl.int64)
    i_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    i_c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_t, m_c = i_t < T, i_c < K
    dy_i, dy_t, x_t = dy_i.to(tl.int64) * ALIGN, dy_t.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    p_dy += i_n * (dy_n.to(tl.int64) * ALIGN) + i_t[:, None] * dy_t
    p_w += i_n * INSTRUMENTS * N * LD
    p_affine += i_n * INSTRUMENTS * 4 * LD + i_c
    p_norm += i_n * INSTRUMENTS * 4 * LD + i_c
    b_dz = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    b_mean = tl.load(p_affine + 2 * LD, mask=m_c, other=0.0)
    b_q = tl.zeros([BLOCK_C], tl.float32)
    b_r = tl.zeros([BLOCK_C], tl.float32)
    for _ in range(INSTRUMENTS):
        for o in range(0, N, BLOCK_K):
            i_o = o + tl.arange(0, BLOCK_K)
            m_o = i_o < N
            b_dy = tl.load(p_dy + i_o[None, :], mask=m_t[:, None] & m_o[None, :], other=0.0)
            b_w = tl.load(p_w + i_o[:, None] * LD + i_c[None, :], mask=m_o[:, None] & m_c[None, :], other=0.0)
            b_dz = tl.dot(b_dy, b_w, b_dz, input_precision=PRECISION)
        b_own = tl.load(p_norm, mask=m_c, other=0.0)
        b_q += b_own
        b_r += b_own * (b_mean - tl.load(p_affine + 2 * LD, mask=m_c, other=0.0))
        b_r += tl.load(p_norm + LD, mask=m_c, other=0.0)
        p_dy += dy_i
        p_w += N * LD
        p_affine += 4 * LD
        p_norm += 4 * LD
    slope = slope_of(p_slope)
    mask = m_t[:, None] & m_c[None, :]
    i_frame = i_t.to(tl.int64)[:, None]
    b_x = tl.load(p_x + i_n * (x_n.to(tl.int64) * ALIGN) + i_frame * x_t + i_c[None, :], mask=mask, other=0.0)
    b_dz += b_q[None, :] * (activation(b_x, slope) - b_mean[None, :]) + b_r[None, :]
    b_x = b_x.to(tl.float32)
    p_dx += i_n * T * K
    b_dx = tl.where(b_x > 0, b_dz, slope * b_dz).to(p_dx.dtype.element_ty)
    tl.store(p_dx + i_frame * K + i_c[None, :], b_dx, mask=mask)
    tl.store(p_dslope + tl.program_id(0), tl.sum(tl.where((b_x > 0) | ~mask, 0.0, b_dz * b_x)))


def _shared_gradient(
    dy: Tensor, folded: Tensor, x: Tensor, slope: Tensor, affine: Tensor, norm: Tensor, tf32: bool
) -> tuple[Tensor, Tensor]:
    """Return dx of a shared ``x`` (n, 1, T, K1) in x's dtype, and partial sums of dslope (programs,), float32.

    ``folded``, ``affine`` and ``norm`` have the columns of both operands.
    """
    n, _, frames, inputs = x.shape
    align = alignment(dy, x)
    dx = torch.empty(n, 1, frames, inputs, dtype=x.dtype, device=x.device)
    defaults = product_options(*column_tile(inputs, x.dtype, tail=False))
    width = defaults["BLOCK_N"]
    programs = n * -(-frames // DGRAD_FRAMES) * -(-inputs // width)
    dslope = torch.empty(programs, dtype=torch.float32, device=x.device)
    launch(
        shared_dgrad_kernel, programs, x,
        p_dy=dy, p_w=folded, p_x=x, p_slope=slope, p_affine=affine, p_norm=norm, p_dx=dx, p_dslope=dslope, T=frames,
        **strides(align, dy=dy, x=x), K=inputs, N=folded.shape[2], INSTRUMENTS=folded.shape[1], LD=folded.shape[3], ALIGN=align,
        BLOCK_T=DGRAD_FRAMES, BLOCK_C=width, PRECISION=products(tf32, x.device),
        **{name: defaults[name] for name in ("BLOCK_K", "num_warps", "num_stages")},
    )  # fmt: skip
    return dx, dslope


def in_conv_backward(
    dy: Tensor, x: Tensor, v: Tensor | None, weight: Tensor, slope: Tensor, affine: Tensor, beta: Tensor, tf32: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Return dx and dv in x's dtype and, in float32, dW (I, N, K1 + K2), dslope (1,), dgamma and dbeta (I, K1 + K2).

    ``dy``, ``x`` and ``v`` have unit stride along channels.
    """
    n, shared, frames, first = x.shape
    instruments, columns, inputs = weight.shape
    s, d = new_sums(dy, columns, inputs)
    weight_gradient(dy, None, x.expand(-1, instruments, -1, -1), slope, affine, s, d, tf32)
    if v is not None:
        weight_gradient(dy, None, v, slope, affine[..., first:], s[..., first:], d, tf32)
    folded, norm = norm_gradient(s, d, weight, affine, frames, x.dtype)
    dw, _, dgamma, dbeta = sum_items(s, d, affine, beta, norm)
    assert dgamma is not None and dbeta is not None
    if shared == 1:
        dx, dslope = _shared_gradient(dy, folded, x, slope, affine, norm, tf32)
        dslopes = [dslope]
    else:
        dx, own = data_gradient(dy, None, folded, x, slope, affine, norm, tf32)
        dslopes = [] if own is None else [own]
    dv = None
    if v is not None:
        part = slice(first, None)
        dv, own = data_gradient(dy, None, folded[..., part], v, slope, affine[..., part], norm[..., part], tf32)
        dslopes += [] if own is None else [own]
    return dx, dv, dw, torch.cat(dslopes).sum(0, keepdim=True), dgamma, dbeta
