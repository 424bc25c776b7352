"""Backward of the product of frames with one weight matrix (see `bottleneck`), given dy in front of the ReLU.

    dx = dy W                                    the forward's kernel with W transposed; gated if x is the result of a ReLU
    dW[o, k] = sum_nt dy[n, t, o] x[n, t, k];    dbias[o] = sum_nt dy[n, t, o]
    dshare[n, f, o] = sum_t max(0, 1 - |t (F - 1) / (T - 1) - f|) dy[n, t, o]    the transpose of the interpolation

A program of dW adds up all tiles of frames of all items. If dW has too few blocks for a GPU, the tiles are divided among
several programs, each writes its part, and the parts are added in order. The number of parts depends only on the shapes.

Bytes: dW reads dy once for each block of columns, x once for each block of rows, mostly from L2: n T N K sizeof(dtype)
(1 / BLOCK_N + 1 / BLOCK_K), which limits it; parts N K 4 written and read once. FLOPs: 2 n T K N, as dx. dshare reads dy twice.
Not yet run on a GPU. Source: as the forward's.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bottleneck import STAGES, Framing, frame_layout, load_frames
from .launch import launch, operands_in_shared_memory, power_of_two

__all__ = ["interpolation_backward", "interpolation_bwd_kernel", "weight_gradient", "weight_gradient_kernel"]

PROGRAMS = 512  # about four rounds; with fewer blocks the frames are divided into parts, of 4 N K bytes each
ROUND = 132  # programs of a round, the multiprocessors of an H100; on other GPUs the last round is less full
WIDE = 1024  # from so many inputs on a block takes 256 inputs, if the registers suffice
ROWS = 32  # frames that the interpolation's transpose adds at a time


@triton.jit(do_not_specialize=["T", "SAMPLES", "x_n", "x_t", "dy_n", "dy_t", "TILES", "PER_PART"])
def weight_gradient_kernel(
    p_dy, p_x, p_dw, p_dbias, T, SAMPLES, x_n, x_t, dy_n, dy_t, TILES, PER_PART,
    K: tl.constexpr, N: tl.constexpr, PADDING: tl.constexpr, FRAMED: tl.constexpr,
    ALIGN: tl.constexpr, DY_ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a block of dW, BLOCK_N by BLOCK_K, over PER_PART tiles; programs of the first column block also write dbias."""
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
        # Near row f, in units of 1 / (T - 1) rows, whole numbers below 2^31.
        b_distance = tl.abs((t * (F - 1) - i_f * frames).to(tl.int32) + i_row * (F - 1)).to(tl.float32) * reciprocal
        p_row = p_dy + t * (dy_t.to(tl.int64) * ALIGN) + i_row[:, None] * (dy_t.to(tl.int64) * ALIGN)
        b_dy = tl.load(p_row + i_o[None, :], mask=mask, other=0.0)
        b_sum += tl.sum(tl.maximum(1.0 - b_distance, 0.0)[:, None] * b_dy.to(tl.float32), 0)
    tl.store(p_dshare + row.to(tl.int64) * N + i_o, b_sum, mask=m_o)


def weight_gradient(
    dy: Tensor, x: Tensor, inputs: int, precision: str, *, bias: bool = False, framing: Framing | None = None
) -> tuple[Tensor, Tensor]:
    """Return dW (N, K) and dbias, (N,) with ``bias``, else empty, both float32.

    ``dy`` (n, T, N) is of x's dtype; ``x`` is that of `bottleneck.product`, with K = ``inputs``.
    """
    n, frames, columns = dy.shape
    # Two-byte dtypes: a block of 128 by 128 reads half as much from L2 as one of 64 by 64. Without tensor cores 64 would spill.
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
