"""Backward of the 1x1 convolution with a folded group norm. No pass over the activations exists for the norm alone.

    S[n, i, o, c] = sum_t dy[n, i, t, o] (z[n, i, t, c] - mean[n, i, c]);  D[n, i, o] = sum_t dy[n, i, t, o]
    dW    = sum_n (S scale + D beta);  dbias = sum_n D
    dbeta = sum_n sum_o W D;           dgamma = sum_n rstd sum_o W S
    dz    = sum_o W' dy + q (z - mean) + r, with M = T K / 8 values in a group, and sums over the group's channels c
            r = -1/M sum_co W' D;      q = -rstd^2 / M sum_co W' S
    dx    = dz PReLU'(x);              dslope = sum dz x where x <= 0

W' are the rounded folded weights of the forward pass. So dz is orthogonal to 1 and to z, as a gradient through a group norm
must be. z - mean is formed before the product, so that no digits cancel later, at any offset. Without a norm W' = W, and mean,
q and r are 0.

There are three steps: wgrad computes S and D; a program for each group computes q, r, dgamma and dbeta, and others add up dW
over the items; dgrad computes dz and, in its epilogue, dx. Every sum has one fixed order.
Bytes: dy and x twice (wgrad, dgrad), dx once: n I T (3 K + 2 N) sizeof(dtype); S, n I N K float32, three times. FLOPs:
4 n I T N K. A program of wgrad adds up the frames of one item and instrument. For two-byte dtypes its block has 128 outputs and
all 160 inputs (128 + 32 columns, none idle). If this gives few programs, the frames are divided into parts, which norm_gradient
and sum_items add up in order. The number of parts depends only on the widths. At K = N = 160 there are then eight programs for
each item and instrument for res_out and skip_out together, and four for conv1d.
On an H100 four warps hold a tile of 32 frames (242 registers), and two programs share a multiprocessor. Products limit the
kernels. wgrad and dgrad are predicted to take 0.060 and 0.040 ms for a block of a training step.
Not yet run on a GPU. Source: as the forward's; the algebra of group norm's backward is Wu and He 2018, section 3.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import alignment, column_tile, launch, operands_in_shared_memory, power_of_two, products, strides
from .pointwise import STAGES, product_options
from .pointwise_sums import new_sums, norm_gradient, sum_items
from .tile import activation, slope_of
from .tuned import configuration

__all__ = [
    "DGRAD_FRAMES", "data_gradient", "pointwise_backward", "pointwise_dgrad_kernel", "pointwise_wgrad_kernel",
    "weight_gradient",
]  # fmt: skip

DGRAD_FRAMES = 64  # frames of a tile; not TILE, as no statistics are taken; with 128 the registers overflow


@triton.jit
def _mean(p_mean, i_k, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Load the norm's mean of channels ``i_k``; zero without a norm."""
    b_mean = tl.zeros([BLOCK_K], tl.float32)
    if p_mean is not None:
        b_mean = tl.load(p_mean + i_k, mask=i_k < K, other=0.0)
    return b_mean


@triton.jit
def _centred(p_row, m_t, i_k, slope, b_mean, K: tl.constexpr, NORMED: tl.constexpr):
    """Return z - mean of a tile's frames and channels ``i_k``. Frames past the end need no mask, as dy is 0 there."""
    b_z = tl.load(p_row + i_k[None, :], mask=m_t[:, None] & (i_k < K)[None, :], other=0.0)
    if NORMED:
        b_z = (activation(b_z, slope) - b_mean[None, :]).to(b_z.dtype)
    return b_z


@triton.jit(do_not_specialize=["T", "dy_n", "dy_i", "dy_t", "x_n", "x_i", "x_t"])
def pointwise_wgrad_kernel(
    p_dy, p_more, p_x, p_slope, p_affine, p_s, p_d, T, dy_n, dy_i, dy_t, x_n, x_i, x_t,
    K: tl.constexpr, N: tl.constexpr, MORE: tl.constexpr, INSTRUMENTS: tl.constexpr, LD: tl.constexpr, ALIGN: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TAIL_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N rows and BLOCK_K + TAIL_K columns of S, for one of PARTS parts of the frames of one item and instrument.

    Programs of the first column block also write D, if ``p_d`` is given. S has N rows for dy, then MORE rows for ``p_more``,
    a second gradient with dy's strides. Rows of S and of the affine are LD elements apart.
    """
    WIDTH: tl.constexpr = BLOCK_K + TAIL_K
    blocks_k = tl.cdiv(K, WIDTH)
    blocks_n = tl.cdiv(N, BLOCK_N)
    blocks = (blocks_n + tl.cdiv(MORE, BLOCK_N)) * blocks_k
    i_part, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_ni = i_part // PARTS
    i_n, i_i = (i_ni // INSTRUMENTS).to(tl.int64), (i_ni % INSTRUMENTS).to(tl.int64)
    i_row = i_block // blocks_k
    i_more = (i_row >= blocks_n).to(tl.int32)  # 1 if the rows belong to the second gradient
    if MORE > 0:
        if i_more == 1:
            p_dy = p_more
    rows = N + i_more * (MORE - N)
    i_o = (i_row - i_more * blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_k = (i_block % blocks_k) * WIDTH + tl.arange(0, BLOCK_K)
    m_o = i_o < rows
    dy_t, x_t = dy_t.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    p_dy += i_n * (dy_n.to(tl.int64) * ALIGN) + i_i * (dy_i.to(tl.int64) * ALIGN)
    p_x += i_n * (x_n.to(tl.int64) * ALIGN) + i_i * (x_i.to(tl.int64) * ALIGN)
    slope = slope_of(p_slope)
    if p_affine is not None:
        p_affine += (i_ni.to(tl.int64) * 4 + 2) * LD
    b_mean = _mean(p_affine, i_k, K, BLOCK_K)
    b_s = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    i_tail, b_tail_mean, b_tail = i_k, b_mean, b_s
    if TAIL_K > 0:
        i_tail = (i_block % blocks_k) * WIDTH + BLOCK_K + tl.arange(0, TAIL_K)
        b_tail_mean = _mean(p_affine, i_tail, K, TAIL_K)
        b_tail = tl.zeros([BLOCK_N, TAIL_K], tl.float32)
    NORMED: tl.constexpr = p_slope is not None or p_affine is not None
    # For two-byte dtypes the tensor cores add up dy, as a product with ones, which is exact.
    ADDED: tl.constexpr = 16 if p_dy.dtype.element_ty.primitive_bitwidth == 16 else 1
    b_d = tl.zeros([BLOCK_N, ADDED], tl.float32)
    if PARTS > 1:
        length = tl.cdiv(tl.cdiv(T, BLOCK_T), PARTS) * BLOCK_T
        first = (i_part % PARTS) * length
        p_dy += first * dy_t
        p_x += first * x_t
        T = tl.minimum(T - first, length)
    for t in range(0, T, BLOCK_T):
        i_t = t + tl.arange(0, BLOCK_T)
        m_t = i_t < T
        b_dy = tl.load(p_dy + i_t[None, :] * dy_t + i_o[:, None], mask=m_o[:, None] & m_t[None, :], other=0.0)
        b_z = _centred(p_x + i_t[:, None] * x_t, m_t, i_k, slope, b_mean, K, NORMED)
        b_s = tl.dot(b_dy, b_z, b_s, input_precision=PRECISION)
        if TAIL_K > 0:
            b_z = _centred(p_x + i_t[:, None] * x_t, m_t, i_tail, slope, b_tail_mean, K, NORMED)
            b_tail = tl.dot(b_dy, b_z, b_tail, input_precision=PRECISION)
        if p_d is not None:
            if ADDED > 1:
                b_d = tl.dot(b_dy, tl.full([BLOCK_T, ADDED], 1.0, tl.float32).to(b_dy.dtype), b_d)
            else:
                b_d += tl.sum(b_dy, 1)[:, None]
    i_o += i_more * N
    p_row = p_s + i_part.to(tl.int64) * (N + MORE) * LD + i_o.to(tl.int64)[:, None] * LD
    tl.store(p_row + i_k[None, :], b_s, mask=m_o[:, None] & (i_k < K)[None, :])
    if TAIL_K > 0:
        tl.store(p_row + i_tail[None, :], b_tail, mask=m_o[:, None] & (i_tail < K)[None, :])
    if p_d is not None:
        if i_block % blocks_k == 0:
            tl.store(p_d + i_part.to(tl.int64) * (N + MORE) + i_o, tl.sum(b_d, 1) / ADDED, mask=m_o)


@triton.jit
def _finish(b_dz, p_x, p_added, slope, p_affine, p_norm, p_dx, i_t, m_t, i_c, x_t, K: tl.constexpr, LD: tl.constexpr):
    """Finish and store dx of a tile and channels ``i_c``; return the tile's sum of dslope.

    Add ``p_added`` and the norm's terms with q and r to ``b_dz``, then multiply by PReLU'.
    """
    m_c = i_c < K
    mask = m_t[:, None] & m_c[None, :]
    i_frame = i_t.to(tl.int64)[:, None]
    i_dx = i_frame * K + i_c[None, :]
    if p_added is not None:
        b_dz += tl.load(p_added + i_dx, mask=mask, other=0.0).to(tl.float32)
    dslope = 0.0
    if slope is not None or p_affine is not None:
        b_x = tl.load(p_x + i_frame * x_t + i_c[None, :], mask=mask, other=0.0)
        if p_affine is not None:
            b_mean = tl.load(p_affine + 2 * LD + i_c, mask=m_c, other=0.0)
            b_q = tl.load(p_norm + i_c, mask=m_c, other=0.0)
            b_r = tl.load(p_norm + LD + i_c, mask=m_c, other=0.0)
            b_z = b_x.to(tl.float32)
            if slope is not None:
                b_z = activation(b_x, slope)
            b_dz += b_q[None, :] * (b_z - b_mean[None, :]) + b_r[None, :]
        if slope is not None:
            b_x = b_x.to(tl.float32)
            dslope = tl.sum(tl.where((b_x > 0) | ~mask, 0.0, b_dz * b_x))
            b_dz = tl.where(b_x > 0, b_dz, slope * b_dz)
    tl.store(p_dx + i_dx, b_dz.to(p_dx.dtype.element_ty), mask=mask)
    return dslope


@triton.jit(do_not_specialize=["T", "dy_n", "dy_i", "dy_t", "x_n", "x_i", "x_t"])
def pointwise_dgrad_kernel(
    p_dy, p_more, p_w, p_x, p_slope, p_affine, p_norm, p_added, p_dx, p_dslope, T,
    dy_n, dy_i, dy_t, x_n, x_i, x_t,
    K: tl.constexpr, N: tl.constexpr, MORE: tl.constexpr, INSTRUMENTS: tl.constexpr, LD: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dx of one tile and BLOCK_N + TAIL_N of the K channels of one item and instrument.

    The product goes over N outputs with the gradient dy, and over MORE outputs with the gradient ``p_more``. Also write a
    partial sum of dslope. Rows of the weights, of the affine and of ``p_norm`` are LD elements apart.
    """
    WIDTH: tl.constexpr = BLOCK_N + TAIL_N
    blocks = tl.cdiv(K, WIDTH)
    row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_ni, i_tile = row // tiles, row % tiles
    i_n, i_i = (i_ni // INSTRUMENTS).to(tl.int64), (i_ni % INSTRUMENTS).to(tl.int64)
    i_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = i_t < T
    dy_t, x_t = dy_t.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    i_dy = i_n * (dy_n.to(tl.int64) * ALIGN) + i_i * (dy_i.to(tl.int64) * ALIGN)
    p_row = p_dy + i_dy + i_t[:, None] * dy_t
    i_w = i_i
    if p_affine is not None:
        i_w += i_n * INSTRUMENTS
    p_w += i_w * (N + MORE) * LD
    i_c = i_block * WIDTH + tl.arange(0, BLOCK_N)
    b_dz = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    if TAIL_N > 0:
        i_tail = i_block * WIDTH + BLOCK_N + tl.arange(0, TAIL_N)
        b_tail = tl.zeros([BLOCK_T, TAIL_N], tl.float32)
    for o in range(0, N, BLOCK_K):
        i_o = o + tl.arange(0, BLOCK_K)
        m_o = i_o < N
        b_dy = tl.load(p_row + i_o[None, :], mask=m_t[:, None] & m_o[None, :], other=0.0)
        b_w = tl.load(p_w + i_o[:, None] * LD + i_c[None, :], mask=m_o[:, None] & (i_c < K)[None, :], other=0.0)
        b_dz = tl.dot(b_dy, b_w, b_dz, input_precision=PRECISION)
        if TAIL_N > 0:
            b_w = tl.load(
                p_w + i_o[:, None] * LD + i_tail[None, :], mask=m_o[:, None] & (i_tail < K)[None, :], other=0.0
            )
            b_tail = tl.dot(b_dy, b_w, b_tail, input_precision=PRECISION)
    if MORE > 0:
        p_row = p_more + i_dy + i_t[:, None] * dy_t
        p_w += N * LD
        for o in range(0, MORE, BLOCK_K):
            i_o = o + tl.arange(0, BLOCK_K)
            m_o = i_o < MORE
            b_dy = tl.load(p_row + i_o[None, :], mask=m_t[:, None] & m_o[None, :], other=0.0)
            b_w = tl.load(p_w + i_o[:, None] * LD + i_c[None, :], mask=m_o[:, None] & (i_c < K)[None, :], other=0.0)
            b_dz = tl.dot(b_dy, b_w, b_dz, input_precision=PRECISION)
            if TAIL_N > 0:
                b_w = tl.load(
                    p_w + i_o[:, None] * LD + i_tail[None, :], mask=m_o[:, None] & (i_tail < K)[None, :], other=0.0
                )
                b_tail = tl.dot(b_dy, b_w, b_tail, input_precision=PRECISION)
    slope = None
    if p_slope is not None:
        slope = slope_of(p_slope)
    p_x += i_n * (x_n.to(tl.int64) * ALIGN) + i_i * (x_i.to(tl.int64) * ALIGN)
    p_dx += i_ni.to(tl.int64) * T * K
    if p_affine is not None:
        p_affine += i_ni.to(tl.int64) * 4 * LD
        p_norm += i_ni.to(tl.int64) * 4 * LD
    if p_added is not None:
        p_added += i_ni.to(tl.int64) * T * K
    dslope = _finish(b_dz, p_x, p_added, slope, p_affine, p_norm, p_dx, i_t, m_t, i_c, x_t, K, LD)
    if TAIL_N > 0:
        dslope += _finish(b_tail, p_x, p_added, slope, p_affine, p_norm, p_dx, i_t, m_t, i_tail, x_t, K, LD)
    if p_dslope is not None:
        tl.store(p_dslope + tl.program_id(0), dslope)


def weight_gradient(
    dy: Tensor, more: Tensor | None, x: Tensor, slope: Tensor | None, affine: Tensor | None, s: Tensor,
    d: Tensor | None, tf32: bool,
) -> None:  # fmt: skip
    """Write S and D, the partial sums of each of P parts of the frames; :func:`sum_items` and others add up the parts.

    S is written into ``s`` (n, I, P, N, K), which may be some columns of a contiguous tensor; D into ``d`` (n, I, P, N), if
    given. ``more`` is a second gradient with the layout of ``dy``; its rows of S and D follow those of dy. Rows of ``affine``
    are as far apart as rows of ``s``.
    """
    n, instruments, frames, inputs = x.shape
    columns = dy.shape[3]
    align = alignment(dy, x)
    further = 0 if more is None else more.shape[3]

    precision = products(tf32, x.device)
    # Without tensor cores, a block of 64 by 64 would spill registers to local memory.
    steps = 32 if x.dtype == torch.float32 and precision == "ieee" else 64
    wide = 128 if x.dtype.itemsize == 2 else steps
    block_n, (block_k, tail_k) = min(wide, power_of_two(columns)), (min(wide, power_of_two(inputs)), 0)
    if x.dtype.itemsize == 2:
        block_k, tail_k = column_tile(inputs, x.dtype)
    warps = 8 if block_n + block_k > 192 else 4
    # If tensor cores take operands from shared memory, four warps hold the tile, and two tiles share a multiprocessor.
    if x.dtype == torch.bfloat16 and operands_in_shared_memory(x.device):
        steps, warps = 32, 4
    defaults = {
        "BLOCK_T": steps, "BLOCK_N": block_n, "BLOCK_K": block_k, "TAIL_K": tail_k, "num_warps": warps, "num_stages": STAGES,
    }  # fmt: skip
    chosen = configuration("pointwise_wgrad", x, tf32, defaults, K=inputs, N=columns)
    rows = -(-columns // chosen["BLOCK_N"]) + -(-further // chosen["BLOCK_N"])
    launch(
        pointwise_wgrad_kernel, n * instruments * s.shape[2] * rows * -(-inputs // (chosen["BLOCK_K"] + chosen["TAIL_K"])), x,
        p_dy=dy, p_more=more, p_x=x, p_slope=slope, p_affine=affine, p_s=s, p_d=d, T=frames,
        **strides(align, dy=dy, x=x), K=inputs, N=columns, MORE=further, LD=s.stride(3), PARTS=s.shape[2],
        INSTRUMENTS=instruments, ALIGN=align, PRECISION=precision, **chosen,
    )  # fmt: skip


def data_gradient(
    dy: Tensor, more: Tensor | None, weight: Tensor, x: Tensor, slope: Tensor | None, affine: Tensor | None,
    norm: Tensor | None, tf32: bool, added: Tensor | None = None, dx: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return dx (n, I, T, K) in x's dtype, and partial sums of dslope; None in their place without a ``slope``.

    If ``added`` is given, it is added to dz, before the factor PReLU'(x). If ``dx`` is given, the result is written into it.
    ``dx`` and ``added`` are contiguous, and may be the same tensor. ``weight``, in x's dtype, is W' (n, I, N, K) if there is an
    ``affine``, else W (I, N, K). ``weight``, ``affine`` and ``norm`` may be some columns of contiguous tensors of equal width.
    ``more`` is as in :func:`weight_gradient`.
    """
    n, instruments, frames, inputs = x.shape
    align = alignment(dy, x)
    if dx is None:
        dx = torch.empty(n, instruments, frames, inputs, dtype=x.dtype, device=x.device)
    # With a PReLU, the epilogues of main and tail overflow the registers where tensor cores take an operand from registers.
    tail = slope is None or (x.dtype == torch.bfloat16 and operands_in_shared_memory(x.device))
    defaults = product_options(*column_tile(inputs, x.dtype, tail=tail))
    chosen = configuration("pointwise_dgrad", x, tf32, defaults, K=inputs, N=dy.shape[3])
    width = chosen["BLOCK_N"] + chosen["TAIL_N"]
    programs = n * instruments * -(-frames // DGRAD_FRAMES) * -(-inputs // width)
    dslope = None if slope is None else torch.empty(programs, dtype=torch.float32, device=x.device)
    launch(
        pointwise_dgrad_kernel, programs, x,
        p_dy=dy, p_more=more, p_w=weight, p_x=x, p_slope=slope, p_affine=affine, p_norm=norm, p_added=added, p_dx=dx,
        p_dslope=dslope, T=frames, **strides(align, dy=dy, x=x), K=inputs, N=dy.shape[3],
        MORE=0 if more is None else more.shape[3], INSTRUMENTS=instruments, LD=weight.stride(-2), ALIGN=align,
        BLOCK_T=DGRAD_FRAMES, PRECISION=products(tf32, x.device), **chosen,
    )  # fmt: skip
    return dx, dslope


def pointwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, slope: Tensor | None,
    affine: Tensor | None, beta: Tensor | None, tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Return dx in x's dtype and, in float32, dW (I, N, K), dbias (I, N), dslope (1,), dgamma and dbeta (I, K).

    dslope is None without a slope, dgamma and dbeta without a norm. ``dy`` and ``x`` have unit stride along channels.
    """
    n, instruments, frames, inputs = x.shape
    columns = weight.shape[1]
    s, d = new_sums(x, columns, inputs)
    weight_gradient(dy, None, x, slope, affine, s, d, tf32)
    folded, norm = weight, None
    if affine is None:
        folded = weight.to(x.dtype)
    else:
        folded, norm = norm_gradient(s, d, weight, affine, frames, x.dtype)
    dw, dbias, dgamma, dbeta = sum_items(s, d, affine, beta, norm)
    dx, dslope = data_gradient(dy, None, folded, x, slope, affine, norm, tf32)
    return dx, dw, dbias, None if dslope is None else dslope.sum(0, keepdim=True), dgamma, dbeta
