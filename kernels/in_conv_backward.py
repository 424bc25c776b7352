"""Backward of the masking network's first 1x1 convolution on two operands.

S, D, q, r, dW, dgamma and dbeta are those of pointwise_backward.py, with S over the columns of both operands; dv is computed as
dx is there. For an x that the instruments share

    dx = PReLU'(x) sum_i (sum_o W'[i] dy[i] + q[i] (z - mean[i]) + r[i])
       = PReLU'(x) (sum_io W' dy + sum_i q[i] (z - mean[0]) + sum_i (q[i] (mean[0] - mean[i]) + r[i]))

This is one product of I N rows that reads dy once and writes dx once, instead of I products and a sum. The means of the
instruments differ only in a group that straddles the operands.

Bytes: dy three times (wgrad, both dgrad), x and v twice, dx and dv once. FLOPs: twice the forward's. Every sum has one order.
Not yet run on a GPU. Source: as the forward's.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import alignment, column_tile, launch, products, strides
from .pointwise import product_options
from .pointwise_backward import DGRAD_FRAMES, data_gradient, weight_gradient
from .pointwise_sums import new_sums, norm_gradient, sum_items
from .tile import activation, slope_of

__all__ = ["in_conv_backward", "shared_dgrad_kernel"]


@triton.jit(do_not_specialize=["T", "dy_n", "dy_i", "dy_t", "x_n", "x_i", "x_t"])
def shared_dgrad_kernel(
    p_dy, p_w, p_x, p_slope, p_affine, p_norm, p_dx, p_dslope, T, dy_n, dy_i, dy_t, x_n, x_i, x_t,
    K: tl.constexpr, N: tl.constexpr, INSTRUMENTS: tl.constexpr, LD: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dx of one tile of frames and BLOCK_C of the K channels of one item, summed over the N outputs of all instruments.

    Also write this program's partial sum of dslope. Rows of the weights, of the affine and of ``p_norm`` are LD elements apart.
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
    """Return dx of a shared ``x`` (n, 1, T, K1), and partial sums of dslope.

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
