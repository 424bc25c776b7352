"""Product of frames with one weight matrix: the codec's 1x1 convolutions and, for overlapping frames, its filter banks.

    y[n, t, o] = act( sum_k x[n, t, k] W[o, k] + bias[o] + (1 - a) share[n, j, o] + a share[n, j + 1, o] )
    j + a = t (F - 1) / (T - 1), j whole: F rows of the share are interpolated linearly to T frames, with aligned corners
    act is ReLU or the identity. With a framing, x[n, t, k] = signal[n, t stride + k - padding], zero outside the signal.
    With a gate, y is 0 where gate <= 0. This is the backward of a ReLU whose result is the gate.

The encoder's filters have three widths L 2^l, one stride and one centre. So they are one bank, in which shorter filters get
zeros at both ends. Overlapping frames are never written out. The filters that are at most half as long as the longest come
first. Their columns are multiplied by the middle of a frame only, which leaves two thirds of the products.
The encoder's mel branch is linear after its logarithm. So its share of the bottleneck is computed at 31.25 frames a second and
added here, before the ReLU: nothing is concatenated, and there is no (n, 256, T) tensor. j and a are computed from integers, so
they are exact at any length.

Bytes: x once, n T K sizeof(dtype), and from L2 once for every further column tile; y (and gate) once; the share, n F N 4, from
the caches. FLOPs: 2 n T K N. From L2 come n T N K sizeof(dtype) (1 / rows + 1 / width): 90 GB for a song, 16 ms on an H100, as
long as the products alone take. So tiles are as wide as the registers allow, though some columns are idle: 14 % of 336 columns
(330, and zeros for 16-byte loads), 22 % of 392, 9 % of 440, 3.6 % of 1544, 0 % of 1760. If tensor cores take both operands from
shared memory, a tile of 160 columns has 256 rows and fills a multiprocessor. It takes 212 registers, or 255 with a share: then
the code before the loop spills up to 14 registers, and the loop spills none. Else a tile has 128 rows.

Backward, for dy = the gradient before the ReLU:

    dx = dy W                                    the forward's kernel with W transposed; gated if x is the result of a ReLU
    dW[o, k] = sum_nt dy[n, t, o] x[n, t, k];    dbias[o] = sum_nt dy[n, t, o]
    dshare[n, f, o] = sum_t max(0, 1 - |t (F - 1) / (T - 1) - f|) dy[n, t, o]    the transpose of the interpolation

A program of dW adds up all tiles of frames of all items. If dW has too few blocks for a GPU, the tiles are divided among
several programs, each writes its part, and the parts are added in order. The number of parts depends only on the shapes.

Bytes: dW reads dy once for each block of columns and x once for each block of rows, mostly from L2. These reads of n T N K
sizeof(dtype) (1 / BLOCK_N + 1 / BLOCK_K) limit it. Each part, N K 4, is written and read once. FLOPs: 2 n T K N, as many as for
dx. dshare reads dy twice.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.3; original model/encoder.py (bottleneck), model/decoder.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, launch, operands_in_shared_memory, power_of_two, register_limit

__all__ = [
    "BLOCK_K", "Framing", "SPARED", "STAGES", "frame_layout", "interpolation_backward", "interpolation_bwd_kernel",
    "product", "product_kernel", "product_tile", "weight_gradient", "weight_gradient_kernel",
]  # fmt: skip

TILES = ((128, 32), (128, 0), (64, 32), (64, 16), (64, 0), (32, 16), (32, 0), (16, 0))
"""Columns of a product that one program computes, (main, tail), widest first, as in `launch.COLUMN_TILES`."""

BLOCK_K = 32
STAGES = 3
SPARED = 2 * BLOCK_K
"""The short filters of a bank get shorter loops if these leave out at least this number of samples at each end of a frame."""


class Framing(NamedTuple):
    """Overlapping frames of a signal: frame t starts at sample t stride - padding.

    The first ``narrow`` rows of the weights (N, K) are zero outside the middle ``inner`` samples of a frame.
    """

    frames: int
    stride: int
    padding: int
    narrow: int = 0
    inner: int = 0


def product_tile(columns: int, dtype: torch.dtype, lean: bool = False, framed: bool = False) -> tuple[int, int]:
    """Return main and tail width of the tile that reads the fewest operand bytes from the L2 cache, which limits the product.

    If ``lean``, the tile has one accumulator of at most 64 columns: the three products of ``tf32x3`` take more registers. If
    ``framed``, the tile has at most 96 columns: the addresses of overlapping frames take more registers.
    """
    widest = 64 if lean or dtype.itemsize == 4 else 96 if framed else sum(TILES[0])
    tiles = [t for t in TILES if sum(t) <= widest and not (lean and t[1])]
    return min(tiles, key=lambda tile: -(-columns // sum(tile)) * (TILE + sum(tile)))


@triton.jit
def load_frames(p_x, i_t, m_t, i_k, K, samples, x_t, PADDING: tl.constexpr, FRAMED: tl.constexpr):
    """Load the values ``i_k`` of frames ``i_t`` of one item. Both indices have two axes, of which one has length 1."""
    mask = m_t & (i_k < K)
    if FRAMED:
        i_sample = i_t * x_t + i_k - PADDING
        b_x = tl.load(p_x + i_sample, mask=mask & (i_sample >= 0) & (i_sample < samples), other=0.0)
    else:
        b_x = tl.load(p_x + i_t * x_t + i_k, mask=mask, other=0.0)
    return b_x


@triton.jit
def _start(p_bias, p_share, i_n, i_t, m_t, i_o, T, F, N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the accumulator's start value, bias plus interpolated share, for BLOCK_T frames and columns ``i_o``."""
    m_o = i_o < N
    b_y = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    if p_bias is not None:
        b_y += tl.load(p_bias + i_o, mask=m_o, other=0.0).to(tl.float32)[None, :]
    if p_share is not None:
        last = tl.maximum(T - 1, 1).to(tl.int64)
        i_place = i_t.to(tl.int64) * (F - 1)
        i_row = i_place // last
        b_part = (i_place - i_row * last).to(tl.float32) / last.to(tl.float32)
        p_share += i_n.to(tl.int64) * F * N + i_row.to(tl.int32)[:, None] * N + i_o[None, :]
        mask = m_t[:, None] & m_o[None, :]
        b_y = tl.fma(1.0 - b_part[:, None], tl.load(p_share, mask=mask, other=0.0), b_y)
        b_next = tl.load(p_share + N, mask=mask & (i_row + 1 < F)[:, None], other=0.0)
        b_y = tl.fma(b_part[:, None], b_next, b_y)
    return b_y


@triton.jit
def _finish(b_y, p_gate, p_y, i_first, m_t, i_o, N: tl.constexpr, RELU: tl.constexpr, BLOCK_T: tl.constexpr):
    """Apply ReLU and gate to BLOCK_T frames and columns ``i_o`` of y, and store the result."""
    mask = m_t[:, None] & (i_o < N)[None, :]
    p_y += i_first * N
    i_y = tl.arange(0, BLOCK_T)[:, None] * N + i_o[None, :]
    if RELU:
        b_y = tl.where(b_y <= 0, 0.0, b_y)  # NaN stays NaN
    b_y = b_y.to(p_y.dtype.element_ty)
    if p_gate is not None:
        p_gate += i_first * N
        b_y = tl.where(tl.load(p_gate + i_y, mask=mask, other=0.0) > 0, b_y, 0.0)
    tl.store(p_y + i_y, b_y, mask=mask)


@triton.jit(do_not_specialize=["T", "F", "SAMPLES", "x_n", "x_t"])
def product_kernel(
    p_x, p_gate, p_w, p_bias, p_share, p_y, T, F, SAMPLES, x_n, x_t,
    K: tl.constexpr, N: tl.constexpr, W_O: tl.constexpr, W_K: tl.constexpr, PADDING: tl.constexpr,
    FRAMED: tl.constexpr, RELU: tl.constexpr, ALIGN: tl.constexpr, NARROW: tl.constexpr, FIRST: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N + TAIL_N columns of y, in two accumulators, for one tile of frames of one item.

    The weights of the first NARROW columns are zero before k = FIRST, a multiple of 8, and from k = K - FIRST on.
    """
    WIDTH: tl.constexpr = BLOCK_N + TAIL_N
    blocks = tl.cdiv(N, WIDTH)
    row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_n = row // tiles
    i_t = (row % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = i_t < T
    p_x += i_n.to(tl.int64) * (x_n.to(tl.int64) * ALIGN)
    x_t = x_t.to(tl.int64) * ALIGN
    i_o = i_block * WIDTH + tl.arange(0, BLOCK_N)
    b_y = _start(p_bias, p_share, i_n, i_t, m_t, i_o, T, F, N, BLOCK_T, BLOCK_N)
    if TAIL_N > 0:
        i_tail = i_block * WIDTH + BLOCK_N + tl.arange(0, TAIL_N)
        b_tail = _start(p_bias, p_share, i_n, i_t, m_t, i_tail, T, F, N, BLOCK_T, TAIL_N)
    k_first = 0
    k_end = K
    if NARROW > 0:
        k_first = FIRST * ((i_block + 1) * WIDTH <= NARROW).to(tl.int32)
        k_end = K - k_first
    for k in range(k_first, k_end, BLOCK_K):
        i_k = k + tl.arange(0, BLOCK_K)
        b_x = load_frames(
            p_x, i_t[:, None], m_t[:, None], i_k[None, :], K, SAMPLES * ALIGN, x_t, PADDING, FRAMED
        )  # fmt: skip
        m_k = (i_k < K)[:, None]
        b_w = tl.load(p_w + i_o[None, :] * W_O + i_k[:, None] * W_K, mask=m_k & (i_o < N)[None, :], other=0.0)
        b_y = tl.dot(b_x, b_w, b_y, input_precision=PRECISION)
        if TAIL_N > 0:
            b_w = tl.load(p_w + i_tail[None, :] * W_O + i_k[:, None] * W_K, mask=m_k & (i_tail < N)[None, :], other=0.0)
            b_tail = tl.dot(b_x, b_w, b_tail, input_precision=PRECISION)
    i_first = i_n.to(tl.int64) * T + (row % tiles) * BLOCK_T
    _finish(b_y, p_gate, p_y, i_first, m_t, i_o, N, RELU, BLOCK_T)
    if TAIL_N > 0:
        _finish(b_tail, p_gate, p_y, i_first, m_t, i_tail, N, RELU, BLOCK_T)


def frame_layout(x: Tensor, framing: Framing | None) -> dict[str, int]:
    """Return the sizes and strides of ``x``, which are arguments of the kernels.

    ``x`` is frames (n, T, K), or, with a ``framing``, a signal (n, samples). Its last axis has unit stride.
    """
    n_t = (x.stride(0), framing.stride if framing else x.stride(1))
    divisible = (*n_t, framing.padding, x.shape[1]) if framing else n_t
    align = math.gcd(8, *divisible)
    return {
        "T": framing.frames if framing else x.shape[1],
        "SAMPLES": x.shape[1] // align if framing else 0,
        "x_n": n_t[0] // align,
        "x_t": n_t[1] // align,
        "PADDING": framing.padding if framing else 0,
        "FRAMED": framing is not None,
        "ALIGN": align,
    }


def product(
    x: Tensor, weight: Tensor, precision: str, *, bias: Tensor | None = None, share: Tensor | None = None,
    gate: Tensor | None = None, relu: bool = False, framing: Framing | None = None, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Return y (n, T, N) in ``dtype``, by default in x's.

    ``x`` is (n, T, K), or, with a ``framing``, a signal (n, samples). Its last axis has unit stride. ``weight`` (N, K) has x's
    dtype and any strides. ``gate`` (n, T, N) and ``share`` (n, F, N), float32, are contiguous.
    """
    columns, inputs = weight.shape
    layout = frame_layout(x, framing)
    n, frames = len(x), layout["T"]
    y = torch.empty(n, frames, columns, dtype=dtype or x.dtype, device=x.device)
    main, tail = product_tile(columns, x.dtype, precision == "tf32x3", framing is not None)
    wide = main + tail == sum(TILES[0]) and operands_in_shared_memory(x.device)
    rows = 2 * TILE if wide else TILE
    first = (inputs - framing.inner) // 16 * 8 if framing else 0
    # In float32 without tensor cores, four warps have too few registers for the operands of 48 columns.
    exact = x.dtype == torch.float32 and precision == "ieee"
    launch(
        product_kernel, n * -(-frames // rows) * -(-columns // (main + tail)), x,
        p_x=x, p_gate=gate, p_w=weight, p_bias=bias, p_share=share, p_y=y, F=1 if share is None else share.shape[1],
        K=inputs, N=columns, W_O=weight.stride(0), W_K=weight.stride(1), RELU=relu, **layout,
        NARROW=framing.narrow if framing and first >= SPARED else 0, FIRST=first,
        BLOCK_T=rows, BLOCK_N=main, TAIL_N=tail, BLOCK_K=BLOCK_K, PRECISION=precision,
        num_warps=8 if main + tail >= 64 or exact else 4, num_stages=STAGES,
        **({} if wide or (gate is None and share is None) else register_limit(128, x)),
    )  # fmt: skip
    return y


PROGRAMS = 512  # about four rounds; if dW has fewer blocks, the frames are divided into parts, each of 4 N K bytes
ROUND = 132  # programs that run at a time: the multiprocessors of an H100; on other GPUs the last round is less full
WIDE = 1024  # with at least this number of inputs K, a block of dW has 256 columns, if the registers suffice
ROWS = 32  # frames that the transpose of the interpolation adds up at a time


@triton.jit(do_not_specialize=["T", "SAMPLES", "x_n", "x_t", "dy_n", "dy_t", "TILES", "PER_PART"])
def weight_gradient_kernel(
    p_dy, p_x, p_dw, p_dbias, T, SAMPLES, x_n, x_t, dy_n, dy_t, TILES, PER_PART,
    K: tl.constexpr, N: tl.constexpr, PADDING: tl.constexpr, FRAMED: tl.constexpr,
    ALIGN: tl.constexpr, DY_ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a block of dW, BLOCK_N rows by BLOCK_K columns, over PER_PART tiles of frames.

    Programs of the first column block also write dbias, if ``p_dbias`` is given.
    """
    blocks_k = tl.cdiv(K, BLOCK_K)
    blocks = tl.cdiv(N, BLOCK_N) * blocks_k
    i_part, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    i_o = (i_block // blocks_k) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_k = (i_block % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_o = i_o < N
    x_n, x_t = x_n.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    dy_n, dy_t = dy_n.to(tl.int64) * DY_ALIGN, dy_t.to(tl.int64) * DY_ALIGN
    tiles = tl.cdiv(T, BLOCK_T)
    b_dw = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    b_dbias = tl.zeros([BLOCK_N], tl.float32)
    for tile in range(i_part * PER_PART, tl.minimum((i_part + 1) * PER_PART, TILES)):
        i_n = (tile // tiles).to(tl.int64)
        i_t = (tile % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
        m_t = i_t < T
        mask = m_o[:, None] & m_t[None, :]
        b_dy = tl.load(p_dy + i_n * dy_n + i_t[None, :] * dy_t + i_o[:, None], mask=mask, other=0.0)
        b_x = load_frames(
            p_x + i_n * x_n, i_t[:, None], m_t[:, None], i_k[None, :], K, SAMPLES * ALIGN, x_t, PADDING, FRAMED
        )  # fmt: skip
        b_dw = tl.dot(b_dy, b_x, b_dw, input_precision=PRECISION)
        if p_dbias is not None:
            b_dbias += tl.sum(b_dy.to(tl.float32), 1)
    i_w = i_o.to(tl.int64)[:, None] * K + i_k[None, :]
    PART: tl.constexpr = N * K if p_dbias is None else N * K + N
    tl.store(p_dw + i_part.to(tl.int64) * PART + i_w, b_dw, mask=m_o[:, None] & (i_k < K)[None, :])
    if p_dbias is not None:
        if i_block % blocks_k == 0:
            tl.store(p_dbias + i_part.to(tl.int64) * PART + i_o, b_dbias, mask=m_o)


@triton.jit(do_not_specialize=["T", "F", "dy_n", "dy_t"])
def interpolation_bwd_kernel(
    p_dy, p_dshare, T, F, dy_n, dy_t,
    N: tl.constexpr, ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N columns of one row of dshare."""
    blocks = tl.cdiv(N, BLOCK_N)
    row = tl.program_id(0) // blocks
    i_o = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_o = i_o < N
    i_n, i_f = (row // F).to(tl.int64), (row % F).to(tl.int64)
    frames, steps = tl.maximum(T - 1, 1).to(tl.int64), tl.maximum(F - 1, 1).to(tl.int64)
    first = tl.maximum((i_f - 1) * frames, 0) // steps
    end = tl.minimum(((i_f + 1) * frames + steps - 1) // steps + 1, T)
    p_dy += i_n * (dy_n.to(tl.int64) * ALIGN)
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    i_row, reciprocal = tl.arange(0, BLOCK_T), 1.0 / frames.to(tl.float32)
    for t in range(first, end, BLOCK_T):
        mask = (i_row < end - t)[:, None] & m_o[None, :]
        # Distances from row f in units of 1 / (T - 1) rows: near the row they are whole numbers below 2^31.
        b_distance = tl.abs((t * (F - 1) - i_f * frames).to(tl.int32) + i_row * (F - 1)).to(tl.float32) * reciprocal
        p_row = p_dy + t * (dy_t.to(tl.int64) * ALIGN) + i_row[:, None] * (dy_t.to(tl.int64) * ALIGN)
        b_dy = tl.load(p_row + i_o[None, :], mask=mask, other=0.0)
        b_sum += tl.sum(tl.maximum(1.0 - b_distance, 0.0)[:, None] * b_dy.to(tl.float32), 0)
    tl.store(p_dshare + row.to(tl.int64) * N + i_o, b_sum, mask=m_o)


def weight_gradient(
    dy: Tensor, x: Tensor, inputs: int, precision: str, *, bias: bool = False, framing: Framing | None = None
) -> tuple[Tensor, Tensor]:
    """Return dW (N, K) and dbias, both float32; dbias is (N,) if ``bias``, else empty.

    ``dy`` (n, T, N) has x's dtype. ``x`` is as for :func:`product`, with K = ``inputs``.
    """
    n, frames, columns = dy.shape
    # For two-byte dtypes a block of 128 by 128 reads half as much from L2 as one of 64 by 64. Without tensor cores, a block of
    # 64 by 64 would spill registers.
    steps = 32 if x.dtype == torch.float32 and precision == "ieee" else 64
    widest = 128 if x.dtype.itemsize == 2 else steps
    block_n, block_k = min(widest, power_of_two(columns)), min(widest, power_of_two(inputs))
    if widest == 128 and inputs >= WIDE and framing is None and operands_in_shared_memory(x.device):
        block_k = 256
    blocks, tiles = -(-columns // block_n) * -(-inputs // block_k), n * -(-frames // steps)
    parts = max(range(1, max(1, PROGRAMS // blocks) + 1), key=lambda p: p * blocks / (-(-p * blocks // ROUND)))
    per_part = max(1, -(-tiles // parts))
    parts = -(-tiles // per_part)
    size = columns * inputs
    both = torch.empty(parts, size + (columns if bias else 0), dtype=torch.float32, device=x.device)
    layout, of_dy = frame_layout(x, framing), frame_layout(dy, None)
    launch(
        weight_gradient_kernel, parts * blocks, x,
        p_dy=dy, p_x=x, p_dw=both, p_dbias=both[:, size:] if bias else None, **layout, K=inputs, N=columns,
        dy_n=of_dy["x_n"], dy_t=of_dy["x_t"], DY_ALIGN=of_dy["ALIGN"], TILES=tiles, PER_PART=per_part,
        BLOCK_T=steps, BLOCK_N=block_n, BLOCK_K=block_k, PRECISION=precision,
        num_warps=8 if framing or block_n + block_k > 192 else 4, num_stages=STAGES,
    )  # fmt: skip
    total = both[0] if parts == 1 else both.sum(0)
    return total[:size].view(columns, inputs), total[size:].clone() if bias else total[size:]


def interpolation_backward(dy: Tensor, rows: int) -> Tensor:
    """Return dshare (n, rows, N), float32; ``dy`` (n, T, N) has unit stride along its last axis."""
    n, frames, columns = dy.shape
    layout = frame_layout(dy, None)
    dshare = torch.empty(n, rows, columns, dtype=torch.float32, device=dy.device)
    block = min(128, power_of_two(columns))
    launch(
        interpolation_bwd_kernel, n * rows * -(-columns // block), dy,
        p_dy=dy, p_dshare=dshare, T=frames, F=rows, dy_n=layout["x_n"], dy_t=layout["x_t"],
        N=columns, ALIGN=layout["ALIGN"], BLOCK_T=ROWS, BLOCK_N=block, num_warps=1,
    )  # fmt: skip
    return dshare
