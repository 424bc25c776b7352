"""Transposed filter bank: frames of samples, added where they overlap, without the frames ever being written.

    signal[n, s] = sum over t, k with t stride + k - padding = s of sum_c x[n, t, c] bank[c, k]
    gathered:  s + padding = q stride + r, 0 <= r < stride:
               signal[n, s] = sum_{j < J} sum_c x[n, q - j, c] bank[c, r + j stride],  J = ceil(K / stride)

So it is a product with J C long rows, `stride` columns and one writer for each sample: no atomics, a fixed order.
It is the decoder's last step, and the signal's gradient of any filter bank.

Bytes: x once from memory (J times from L1 and L2: neighbouring rows), n T C sizeof(dtype); signal n T stride 4. FLOPs:
2 n T C K, K = J stride: 2 C K / (C sizeof) = 80 FLOP a byte at stage 1 in bfloat16, memory-bound; 320 at stage 3.
Idle columns: stride 20: 24, 17 % of the tensor cores; 40 and 80: none. C = 385, 770, 1540 in blocks of 32: 8, 4, 2 %.
In the decoder the shorter filters' zeros are multiplied too (57 % of 15 % of the decoder's products).
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.3; original model/decoder.py (filters).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bottleneck import BLOCK_K, STAGES, frame_layout
from .launch import launch

__all__ = ["overlap_add", "overlap_add_kernel", "sample_tile"]


def sample_rows(dtype: torch.dtype) -> int:
    """Rows of ``stride`` samples that one program handles: as many as the registers hold, so that the bank is read seldom."""
    return 128 if dtype.itemsize == 2 else 64


TILES = ((64, 16), (64, 0), (32, 16), (32, 8), (32, 0), (16, 8), (16, 0))


def sample_tile(stride: int) -> tuple[int, int]:
    """Main and tail width for so many columns: what idles least, the widest of equals."""
    return min(TILES, key=lambda tile: (-(-stride // sum(tile)) * sum(tile), -sum(tile)))


@triton.jit
def _store(b_y, p_y, i_q, m_q, i_r, SAMPLES, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    i_sample = i_q.to(tl.int64)[:, None] * STRIDE + i_r[None, :] - PADDING
    mask = m_q[:, None] & (i_r < STRIDE)[None, :] & (i_sample >= 0) & (i_sample < SAMPLES)
    tl.store(p_y + i_sample, b_y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "SAMPLES", "ROWS", "x_n", "x_t"])
def overlap_add_kernel(
    p_x, p_bank, p_y, T, SAMPLES, ROWS, x_n, x_t,
    C: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_Q rows of one item, BLOCK_N + TAIL_N of the row's samples."""
    WIDTH: tl.constexpr = BLOCK_N + TAIL_N
    blocks = tl.cdiv(STRIDE, WIDTH)
    row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tiles = tl.cdiv(ROWS, BLOCK_Q)
    i_n = (row // tiles).to(tl.int64)
    i_q = (row % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    i_r = i_block * WIDTH + tl.arange(0, BLOCK_N)
    p_x += i_n * (x_n.to(tl.int64) * ALIGN)
    b_y = tl.zeros([BLOCK_Q, BLOCK_N], tl.float32)
    if TAIL_N > 0:
        i_tail = i_block * WIDTH + BLOCK_N + tl.arange(0, TAIL_N)
        b_tail = tl.zeros([BLOCK_Q, TAIL_N], tl.float32)
    for j in range(0, tl.cdiv(K, STRIDE)):
        i_t = i_q - j
        m_t = (i_t >= 0) & (i_t < T)
        for c in range(0, C, BLOCK_C):
            i_c = c + tl.arange(0, BLOCK_C)
            m_c = i_c < C
            mask = m_t[:, None] & m_c[None, :]
            b_x = tl.load(p_x + i_t[:, None] * (x_t.to(tl.int64) * ALIGN) + i_c[None, :], mask=mask, other=0.0)
            i_tap = j * STRIDE + i_r
            mask = m_c[:, None] & ((i_r < STRIDE) & (i_tap < K))[None, :]
            b_bank = tl.load(p_bank + i_c[:, None] * K + i_tap[None, :], mask=mask, other=0.0)
            b_y = tl.dot(b_x, b_bank, b_y, input_precision=PRECISION)
            if TAIL_N > 0:
                i_tap = j * STRIDE + i_tail
                mask = m_c[:, None] & ((i_tail < STRIDE) & (i_tap < K))[None, :]
                b_bank = tl.load(p_bank + i_c[:, None] * K + i_tap[None, :], mask=mask, other=0.0)
                b_tail = tl.dot(b_x, b_bank, b_tail, input_precision=PRECISION)
    p_y += i_n * SAMPLES
    m_q = i_q < ROWS
    _store(b_y, p_y, i_q, m_q, i_r, SAMPLES, STRIDE, PADDING)
    if TAIL_N > 0:
        _store(b_tail, p_y, i_q, m_q, i_tail, SAMPLES, STRIDE, PADDING)


def overlap_add(
    x: Tensor, bank: Tensor, stride: int, padding: int, samples: int, precision: str, *, dtype: torch.dtype = torch.float32
) -> Tensor:  # fmt: skip
    """signal (n, samples) in ``dtype``; ``x`` (n, T, C) with unit stride along C, ``bank`` (C, K) of its dtype, contiguous."""
    n, frames, channels = x.shape
    layout = frame_layout(x, None)
    y = torch.empty(n, samples, dtype=dtype, device=x.device)
    rows = -(-(samples + padding) // stride)
    (main, tail), block = sample_tile(stride), sample_rows(x.dtype)
    launch(
        overlap_add_kernel, n * -(-rows // block) * -(-stride // (main + tail)), x,
        p_x=x, p_bank=bank, p_y=y, T=frames, SAMPLES=samples, ROWS=rows, x_n=layout["x_n"],
        x_t=layout["x_t"], C=channels, K=bank.shape[1], STRIDE=stride, PADDING=padding, ALIGN=layout["ALIGN"],
        BLOCK_Q=block, BLOCK_N=main, TAIL_N=tail, BLOCK_C=BLOCK_K, PRECISION=precision,
        num_warps=8 if main + tail > 64 else 4, num_stages=STAGES,
    )  # fmt: skip
    return y
