"""Gradients of a folded group norm, and dW, from the weight gradient of its 1x1 convolution.

    S[n, i, o, c], D[n, i, o] and the W' of the forward pass as in pointwise_backward.py
    r      = -1/M sum_co W' D;          q     = -rstd^2 / M sum_co W' S, over a group's channels c, M = T K / 8
    dgamma = sum_n rstd sum_o W S;      dbeta = sum_n sum_o W D
    dW     = sum_n (S scale + D beta);  dbias = sum_n D

W' is computed here again, which saves a separate pass over the weights.
Bytes: S twice, W and W' once: 4 n I N K (2 + 1 + 1/2) at most. This is little beside the bytes of the activations, at any
length that is worth speeding up.
Not yet run on a GPU. Source: as the forward's; the algebra of group norm's backward is Wu and He 2018, section 3.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, power_of_two
from .statistics import GROUPS

__all__ = ["new_sums", "norm_gradient", "pointwise_norm_kernel", "sum_blocks", "sum_items", "sum_kernel"]

PROGRAMS, PARTS = 8, 2
"""Wanted number of programs for the weight gradient of an item and instrument, and largest number of parts. If the gradient has
fewer blocks, the frames are divided into parts: at most two, as each part is written and read as float32."""


@triton.jit
def sum_parts(p_x, i_x, mask, SIZE: tl.constexpr, PARTS: tl.constexpr):
    """Return the values ``i_x`` of S or D: the sums of PARTS partial sums, added up in order.

    Each partial sum covers one part of the frames. The partial sums are SIZE elements apart.
    """
    b_x = tl.load(p_x + i_x, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        b_x += tl.load(p_x + part * SIZE + i_x, mask=mask, other=0.0)
    return b_x


@triton.jit(do_not_specialize=["T"])
def pointwise_norm_kernel(
    p_s, p_d, p_w, p_folded, p_affine, p_out, T, K: tl.constexpr, N: tl.constexpr,
    INSTRUMENTS: tl.constexpr, GROUPS: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute one group of one item and instrument: W' into ``p_folded``; q, r and the item's dgamma and dbeta, in this order,
    into the four rows of ``p_out`` (n, I, 4, K)."""
    i_ni, i_group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    width = K // GROUPS
    i_c = i_group * width + tl.arange(0, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < width
    p_s += i_ni.to(tl.int64) * PARTS * N * K
    p_d += i_ni.to(tl.int64) * PARTS * N
    p_folded += i_ni.to(tl.int64) * N * K
    p_w += (i_ni % INSTRUMENTS).to(tl.int64) * N * K
    p_affine += i_ni.to(tl.int64) * 4 * K + i_c
    b_scale = tl.load(p_affine, mask=m_c, other=0.0)
    b_ws = tl.zeros([BLOCK_C], tl.float32)
    b_wd = tl.zeros([BLOCK_C], tl.float32)
    b_folded_s = tl.zeros([BLOCK_C], tl.float32)
    b_folded_d = tl.zeros([BLOCK_C], tl.float32)
    for o in tl.range(0, N, BLOCK_N, loop_unroll_factor=4):
        i_o = o + tl.arange(0, BLOCK_N)
        i_w = i_o[:, None] * K + i_c[None, :]
        mask = (i_o < N)[:, None] & m_c[None, :]
        b_s = sum_parts(p_s, i_w, mask, N * K, PARTS)
        b_d = sum_parts(p_d, i_o, i_o < N, N, PARTS)[:, None]
        b_w = tl.load(p_w + i_w, mask=mask, other=0.0).to(tl.float32)
        b_folded = (b_w * b_scale[None, :]).to(p_folded.dtype.element_ty)
        tl.store(p_folded + i_w, b_folded, mask=mask)
        b_folded = b_folded.to(tl.float32)
        b_ws += tl.sum(b_w * b_s, 0)
        b_wd += tl.sum(b_w * b_d, 0)
        b_folded_s += tl.sum(b_folded * b_s, 0)
        b_folded_d += tl.sum(b_folded * b_d, 0)
    b_rstd = tl.load(p_affine + 3 * K, mask=m_c, other=0.0)
    count = width * T.to(tl.float32)
    zeros = tl.zeros([BLOCK_C], tl.float32)
    p_out += i_ni.to(tl.int64) * 4 * K + i_c
    tl.store(p_out, -b_rstd * b_rstd * (tl.sum(b_folded_s, 0) / count), mask=m_c)
    tl.store(p_out + K, zeros - tl.sum(b_folded_d, 0) / count, mask=m_c)
    tl.store(p_out + 2 * K, b_rstd * b_ws, mask=m_c)
    tl.store(p_out + 3 * K, b_wd, mask=m_c)


@triton.jit(do_not_specialize=["ITEMS"])
def sum_kernel(
    i_program, p_s, p_d, p_affine, p_beta, p_norm, p_dw, p_dbias, p_dgamma, p_dbeta, ITEMS,
    K: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, INSTRUMENTS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute a block of dW, BLOCK_N rows by BLOCK_K columns, of one instrument. The items are added up in order.

    In dW and dbias, the instruments are ROWS rows apart. Programs of the first column block also write dbias, if ``p_d`` is
    given. Programs of the first row block also write dgamma and dbeta, if ``p_norm`` is given.
    """
    if i_program is None:  # a kernel that calls this one passes it
        i_program = tl.program_id(0)
    blocks_k = tl.cdiv(K, BLOCK_K)
    blocks = tl.cdiv(N, BLOCK_N) * blocks_k
    i_i, i_block = i_program // blocks, i_program % blocks
    i_o = (i_block // blocks_k) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_k = (i_block % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_o, m_k = i_o < N, i_k < K
    mask = m_o[:, None] & m_k[None, :]
    i_w = i_o[:, None] * K + i_k[None, :]
    b_dw = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    b_dbias = tl.zeros([BLOCK_N], tl.float32)
    for n in tl.range(ITEMS, loop_unroll_factor=4):
        i_ni = (n * INSTRUMENTS + i_i).to(tl.int64)
        b_s = sum_parts(p_s + i_ni * PARTS * N * K, i_w, mask, N * K, PARTS)
        if p_affine is not None:
            b_s *= tl.load(p_affine + i_ni * 4 * K + i_k, mask=m_k, other=0.0)[None, :]
        b_dw += b_s
        if p_d is not None:
            b_dbias += sum_parts(p_d + i_ni * PARTS * N, i_o, m_o, N, PARTS)
    if p_affine is not None:
        b_dw += b_dbias[:, None] * tl.load(p_beta + i_i * K + i_k, mask=m_k, other=0.0).to(tl.float32)[None, :]
    tl.store(p_dw + i_i.to(tl.int64) * ROWS * K + i_w, b_dw, mask=mask)
    if p_norm is not None:
        if i_block < blocks_k:
            b_dgamma, b_dbeta = tl.zeros([BLOCK_K], tl.float32), tl.zeros([BLOCK_K], tl.float32)
            for n in tl.range(ITEMS, loop_unroll_factor=4):
                p_row = p_norm + ((n * INSTRUMENTS + i_i).to(tl.int64) * 4 + 2) * K + i_k
                b_dgamma += tl.load(p_row, mask=m_k, other=0.0)
                b_dbeta += tl.load(p_row + K, mask=m_k, other=0.0)
            tl.store(p_dgamma + i_i * K + i_k, b_dgamma, mask=m_k)
            tl.store(p_dbeta + i_i * K + i_k, b_dbeta, mask=m_k)
    if p_d is not None and i_block % blocks_k == 0:
        tl.store(p_dbias + i_i * ROWS + i_o, b_dbias, mask=m_o)


def new_sums(x: Tensor, columns: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Return new tensors, not initialised: S (n, I, P, N, K) and D (n, I, P, N), float32, for N ``columns`` and K ``inputs``.

    P, the number of parts, depends only on the widths. So the order in which an item's frames are added up depends neither on
    the other items nor on the length.
    """
    n, instruments = x.shape[:2]
    parts = min(PARTS, max(1, PROGRAMS // (-(-columns // 128) * -(-inputs // 160))))
    s = torch.empty(n, instruments, parts, columns, inputs, dtype=torch.float32, device=x.device)
    return s, torch.empty(n, instruments, parts, columns, dtype=torch.float32, device=x.device)


def norm_gradient(
    s: Tensor, d: Tensor, weight: Tensor, affine: Tensor, frames: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return W' (n, I, N, K) in ``dtype``, and a tensor (n, I, 4, K), float32.

    The rows of the second tensor are q, r, and the items' terms of dgamma and dbeta. S, D, W', q and r are defined at the top
    of this module. ``weight`` is W (I, N, K).
    """
    n, instruments, parts, columns, inputs = s.shape
    folded = torch.empty(n, instruments, columns, inputs, dtype=dtype, device=s.device)
    norm = torch.empty(n, instruments, 4, inputs, dtype=torch.float32, device=s.device)
    block = power_of_two(inputs // GROUPS)
    launch(
        pointwise_norm_kernel, n * instruments * GROUPS, s,
        p_s=s, p_d=d, p_w=weight, p_folded=folded, p_affine=affine, p_out=norm, T=frames, K=inputs, N=columns,
        INSTRUMENTS=instruments, GROUPS=GROUPS, PARTS=parts, BLOCK_N=max(16, 2048 // block), BLOCK_C=block,
        num_warps=4 if block < 512 else 8,
    )  # fmt: skip
    return folded, norm


def sum_items(
    s: Tensor, d: Tensor, affine: Tensor | None, beta: Tensor | None, norm: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return dW (I, N, K), dbias (I, N), dgamma and dbeta (I, K), float32, summed over all items.

    ``norm`` is the second result of :func:`norm_gradient`. If it is None, dgamma and dbeta are None.
    """
    n, instruments, parts, columns, inputs = s.shape

    def new(*shape: int) -> Tensor:
        return torch.empty(instruments, *shape, dtype=torch.float32, device=s.device)

    dw, dbias = new(columns, inputs), new(columns)
    dgamma, dbeta = (None, None) if norm is None else (new(inputs), new(inputs))
    block_n, block_k, programs = sum_blocks(s)
    launch(
        sum_kernel, programs, s,
        i_program=None, p_s=s, p_d=d, p_affine=affine, p_beta=beta, p_norm=norm, p_dw=dw, p_dbias=dbias,
        p_dgamma=dgamma, p_dbeta=dbeta, ITEMS=n, K=inputs, N=columns, ROWS=columns,
        INSTRUMENTS=instruments, PARTS=parts, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4,
    )  # fmt: skip
    return dw, dbias, dgamma, dbeta


def sum_blocks(s: Tensor) -> tuple[int, int, int]:
    """Return how many rows and columns of dW a program of `sum_kernel` adds up, and the number of programs."""
    _, instruments, _, columns, inputs = s.shape
    block_n, block_k = 8, min(64, power_of_two(inputs))  # few values a thread: it loads many items and parts at once
    return block_n, block_k, instruments * -(-columns // block_n) * -(-inputs // block_k)
