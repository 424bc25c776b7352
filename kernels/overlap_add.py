"""Transposed filter bank: frames of samples are added where they overlap. The frames themselves are never written.

    signal[n, s] = sum over t, k with t stride + k - padding = s of sum_c x[n, t, c] bank[c, k]
    as a gather, for s + padding = q stride + r with 0 <= r < stride:
        signal[n, s] = sum_{j < J} sum_c x[n, q - j, c] bank[c, r + j stride],  J = ceil(K / stride)

So this is a product with J stride columns, in which part j of row q - j is added to row q. Each sample has one writer, so there
are no atomics, and the order of every sum is fixed. A program keeps all J parts of its samples in accumulators, so that a frame
is read once for all parts. At the end it shifts the rows of the parts. The first J - 1 frames of a program only complete the
rows of its other frames. The overlap-add is the decoder's last step, and also the gradient of the signal of any filter bank.

Bytes: x once from memory, n T C sizeof(dtype); the signal, n T stride 4; the bank from L2 once for each program. At stage 3 in
bfloat16 the bank takes 11 KB a frame if tensor cores take both operands from shared memory, else 23 KB. FLOPs: 2 n T C K. In
bfloat16 these are 80 FLOP a byte at stage 1, which is memory-bound, and 320 at stage 3. On an H100 stage 3 of a song is
predicted to take 1.7 ms, limited by the cache. There one program fills a multiprocessor's registers (203 a thread); at the
other stages two or three do.
Idle columns: a stride of 20 takes 24 columns, so 17 % are idle; at 40 and 80 none is. Idle rows: J - 1 of 128 or 64. Idle
channels: of C = 392, 776, 1544 in blocks of 32, 6, 3, 2 %. The channels of the decoder's shorter filters come first. At stage 3
these channels are multiplied only by the parts that the shorter filters reach: 57 % of the products of all parts.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.3; original model/decoder.py (filters).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bottleneck import BLOCK_K, SPARED, STAGES, frame_layout
from .launch import launch, operands_in_shared_memory

__all__ = ["overlap_add", "overlap_add_kernel", "sample_tile"]


WIDE, NARROW = (128, 320), (64, 160)
"""Number of frames that one program multiplies, and its largest number of taps of the bank. They are as large as the registers
allow, so that frames and bank are read seldom. WIDE is used if tensor cores take both operands from shared memory."""

TILES = ((64, 16), (64, 0), (32, 16), (32, 8), (32, 0), (16, 8), (16, 0))
NARROWEST = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 5) else 16
"""Smallest number of columns of a product. Triton 3.4, which comes with GPU builds of torch 2.8, refuses 8 on NVIDIA GPUs."""


def sample_tile(stride: int, widest: int = sum(TILES[0]), narrowest: int = NARROWEST) -> tuple[int, int]:
    """Return main and tail width of the tile with the fewest idle columns, for ``stride`` columns.

    Of several such tiles, this is the widest. It is at most ``widest`` columns wide, if such a tile exists. The tail is 0 or at
    least ``narrowest``.
    """
    tiles = [tile for tile in TILES if tile[1] == 0 or tile[1] >= narrowest]
    tiles = [tile for tile in tiles if sum(tile) <= widest] or TILES[-1:]
    return min(tiles, key=lambda tile: (-(-stride // sum(tile)) * sum(tile), -sum(tile)))


@triton.jit
def _store(b_y, p_y, i_q, m_q, i_r, SAMPLES, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    i_sample = i_q.to(tl.int64)[:, None] * STRIDE + i_r[None, :] - PADDING
    mask = m_q[:, None] & (i_r < STRIDE)[None, :] & (i_sample >= 0) & (i_sample < SAMPLES)
    tl.store(p_y + i_sample, b_y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit
def _zeros(PARTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return a tuple of accumulators, all zero, one for each part of the bank."""
    found = ()
    for _ in tl.static_range(PARTS):
        found = found + (tl.zeros([BLOCK_T, BLOCK_N], tl.float32),)
    return found


@triton.jit
def _multiply(
    b_x, p_bank, i_c, i_r, m_c, sums,
    K: tl.constexpr, STRIDE: tl.constexpr, PARTS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ``sums`` after the products of channels ``i_c`` and samples ``i_r`` were added to the parts FIRST to LAST."""
    found = ()
    for j in tl.static_range(PARTS):
        if j >= FIRST and j <= LAST:
            i_tap = j * STRIDE + i_r
            mask = m_c[:, None] & ((i_r < STRIDE) & (i_tap < K))[None, :]
            b_bank = tl.load(p_bank + i_c[:, None] * K + i_tap[None, :], mask=mask, other=0.0)
            found = found + (tl.dot(b_x, b_bank, sums[j], input_precision=PRECISION),)
        else:
            found = found + (sums[j],)
    return found


@triton.jit
def _overlap(sums, PARTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the rows of samples: row i is row i of part 0 plus row i - j of each other part j.

    The first PARTS - 1 rows are not complete.
    """
    b_y = sums[0]
    i_row = tl.arange(0, BLOCK_T)[:, None] + tl.zeros([1, BLOCK_N], tl.int32)
    for j in tl.static_range(1, PARTS):
        b_y += tl.gather(sums[j], tl.maximum(i_row - j, 0), 0)
    return b_y


@triton.jit(do_not_specialize=["T", "SAMPLES", "ROWS", "x_n", "x_t"])
def overlap_add_kernel(
    p_x, p_bank, p_y, T, SAMPLES, ROWS, x_n, x_t,
    C: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr,
    NARROW: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_N + TAIL_N samples of each row of one item that is complete after BLOCK_T frames.

    The first NARROW channels, a multiple of BLOCK_C, reach only the parts FIRST to LAST of the bank.
    """
    WIDTH: tl.constexpr = BLOCK_N + TAIL_N
    PARTS: tl.constexpr = (K + STRIDE - 1) // STRIDE
    COMPLETE: tl.constexpr = BLOCK_T - PARTS + 1
    blocks = tl.cdiv(STRIDE, WIDTH)
    row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tiles = tl.cdiv(ROWS, COMPLETE)
    i_n = (row // tiles).to(tl.int64)
    i_row = tl.arange(0, BLOCK_T)
    i_t = (row % tiles) * COMPLETE - (PARTS - 1) + i_row
    m_t = (i_t >= 0) & (i_t < T)
    i_r = i_block * WIDTH + tl.arange(0, BLOCK_N)
    p_row = p_x + i_n * (x_n.to(tl.int64) * ALIGN) + i_t[:, None] * (x_t.to(tl.int64) * ALIGN)
    sums = _zeros(PARTS, BLOCK_T, BLOCK_N)
    i_tail, tails = i_r, sums
    if TAIL_N > 0:
        i_tail = i_block * WIDTH + BLOCK_N + tl.arange(0, TAIL_N)
        tails = _zeros(PARTS, BLOCK_T, TAIL_N)
    for c in range(0, NARROW, BLOCK_C):
        i_c = c + tl.arange(0, BLOCK_C)
        m_c = i_c < NARROW
        b_x = tl.load(p_row + i_c[None, :], mask=m_t[:, None], other=0.0)
        sums = _multiply(b_x, p_bank, i_c, i_r, m_c, sums, K, STRIDE, PARTS, FIRST, LAST, PRECISION)
        if TAIL_N > 0:
            tails = _multiply(b_x, p_bank, i_c, i_tail, m_c, tails, K, STRIDE, PARTS, FIRST, LAST, PRECISION)
    for c in range(NARROW, C, BLOCK_C):
        i_c = c + tl.arange(0, BLOCK_C)
        m_c = i_c < C
        b_x = tl.load(p_row + i_c[None, :], mask=m_t[:, None] & m_c[None, :], other=0.0)
        sums = _multiply(b_x, p_bank, i_c, i_r, m_c, sums, K, STRIDE, PARTS, 0, PARTS - 1, PRECISION)
        if TAIL_N > 0:
            tails = _multiply(b_x, p_bank, i_c, i_tail, m_c, tails, K, STRIDE, PARTS, 0, PARTS - 1, PRECISION)
    p_y += i_n * SAMPLES
    m_row = (i_row >= PARTS - 1) & (i_t < ROWS)
    _store(_overlap(sums, PARTS, BLOCK_T, BLOCK_N), p_y, i_t, m_row, i_r, SAMPLES, STRIDE, PADDING)
    if TAIL_N > 0:
        _store(_overlap(tails, PARTS, BLOCK_T, TAIL_N), p_y, i_t, m_row, i_tail, SAMPLES, STRIDE, PADDING)


def overlap_add(
    x: Tensor, bank: Tensor, stride: int, padding: int, samples: int, precision: str, *, narrow: int = 0, inner: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Return the signal (n, samples) in ``dtype``.

    ``x`` (n, T, C) has unit stride along C; ``bank`` (C, K) is contiguous and of x's dtype. The first ``narrow`` rows of the
    bank are zero outside their middle ``inner`` taps.
    """
    n, frames, channels = x.shape
    layout = frame_layout(x, None)
    y = torch.empty(n, samples, dtype=dtype, device=x.device)
    rows = -(-(samples + padding) // stride)
    block, taps = WIDE if x.dtype.itemsize == 2 and operands_in_shared_memory(x.device) else NARROW
    parts = -(-bank.shape[1] // stride)
    main, tail = sample_tile(stride, taps // parts)
    end = (bank.shape[1] - inner) // 2
    first, last = end // stride, (bank.shape[1] - end - 1) // stride
    # In float32 without tensor cores, four warps have too few registers for the operands.
    exact = x.dtype == torch.float32 and precision == "ieee"
    launch(
        overlap_add_kernel, n * -(-rows // (block - parts + 1)) * -(-stride // (main + tail)), x,
        p_x=x, p_bank=bank, p_y=y, T=frames, SAMPLES=samples, ROWS=rows, x_n=layout["x_n"],
        x_t=layout["x_t"], C=channels, K=bank.shape[1], STRIDE=stride, PADDING=padding, ALIGN=layout["ALIGN"],
        NARROW=narrow // BLOCK_K * BLOCK_K if end >= SPARED and last - first + 1 < parts else 0, FIRST=first, LAST=last,
        BLOCK_T=block, BLOCK_N=main, TAIL_N=tail, BLOCK_C=BLOCK_K, PRECISION=precision,
        num_warps=8 if main + tail > 64 or exact else 4, num_stages=STAGES,
    )  # fmt: skip
    return y
