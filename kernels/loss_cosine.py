"""Cosine similarities along channels of the encoded sources: between instruments, and from item to item; and the gradient.

    n_i = |x_i|, c_i = max(n_i, 1e-8)
    between instruments i < j that both sound:      sum_c |x_i| |x_j| / (c_i c_j)
    with the item before, p, where both sound:      sum_c x_i p_i / (c_i c(p_i)); the batch is a ring
    dx_i = sign(x_i) sum_j A_ij |x_j| + A_p p_i + A_n y_i - B_i x_i, y the item after, g the scales of the two terms
           A_ij = g / (c_i c_j), A_p, A_n alike;  B_i = (sum of g cos_i.) / (c_i n_i), nothing where n_i = 0

Instruments are rows beside each other: the neighbours at distance 1, 2, 3 (modulo 4) are loads from the caches, so one
page serves all pairs; that at distance 2 is counted half from either side. Forward keeps four numbers a frame and
instrument (n, the products with the neighbours 1 and 2 apart and with the item before): backward is one pass.

Bytes: x once forward (the item before is in L2: items of one tile of frames run side by side), once backward, dx written:
3 n 4 T C sizeof(dtype). FLOPs: 25 n 4 T C. Memory-bound.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.4; original utility/loss.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import alignment, launch, strides

__all__ = ["cosine_backward", "cosine_bwd_kernel", "cosine_forward", "cosine_fwd_kernel"]

FRAMES = 4
"""Frames of a program: 16 rows with the instruments."""
BLOCK_C = 64
EPSILON = tl.constexpr(1e-8)


@triton.jit
def _place(T, ITEMS, FRAMES: tl.constexpr):
    """Item, the ones before and after, instrument and frame of each row; items of one tile are neighbours."""
    i_n, i_tile = tl.program_id(0) % ITEMS, tl.program_id(0) // ITEMS
    i_row = tl.arange(0, 4 * FRAMES)
    i_i, i_t = i_row // FRAMES, i_tile * FRAMES + i_row % FRAMES
    return i_n, (i_n + ITEMS - 1) % ITEMS, (i_n + 1) % ITEMS, i_i, i_t


@triton.jit
def _rows(p_x, i_n, i_i, i_t, x_n, x_i, x_t):
    """Where the rows of one item begin."""
    return p_x + i_n.to(tl.int64) * x_n + i_i.to(tl.int64) * x_i + i_t.to(tl.int64) * x_t


@triton.jit
def _sounds(p_mask, i_n, i_i):
    return tl.load(p_mask + i_n * 4 + i_i) != 0


@triton.jit
def _cosine(b_product, b_power, b_other):
    """Products of two rows over their norms, which are at least 1e-8."""
    return b_product / (tl.maximum(tl.sqrt_rn(b_power), EPSILON) * tl.maximum(tl.sqrt_rn(b_other), EPSILON))


@triton.jit(do_not_specialize=["T", "ITEMS", "x_n", "x_i", "x_t"])
def cosine_fwd_kernel(
    p_x, p_mask, p_saved, p_parts, T, ITEMS, x_n, x_i, x_t,
    C: tl.constexpr, ALIGN: tl.constexpr, FRAMES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: FRAMES frames of one item; saved rows (items, T, 4, 4), sums of both terms (programs, 2)."""
    i_n, i_before, _, i_i, i_t = _place(T, ITEMS, FRAMES)
    x_n, x_i, x_t = x_n.to(tl.int64) * ALIGN, x_i.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    i_1, i_2, m_t = (i_i + 1) % 4, (i_i + 2) % 4, i_t < T
    p_own = _rows(p_x, i_n, i_i, i_t, x_n, x_i, x_t)
    p_1, p_2 = _rows(p_x, i_n, i_1, i_t, x_n, x_i, x_t), _rows(p_x, i_n, i_2, i_t, x_n, x_i, x_t)
    p_before = _rows(p_x, i_before, i_i, i_t, x_n, x_i, x_t)
    b_own = tl.zeros([4 * FRAMES, BLOCK_C], tl.float32)
    b_power_1, b_power_2, b_power_before, b_with_1, b_with_2, b_with_before = b_own, b_own, b_own, b_own, b_own, b_own
    for c in range(0, C, BLOCK_C):
        i_c = c + tl.arange(0, BLOCK_C)[None, :]
        mask = m_t[:, None] & (i_c < C)
        b_x = tl.load(p_own[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)
        b_1 = tl.load(p_1[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)
        b_2 = tl.load(p_2[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)
        b_before = tl.load(p_before[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)
        b_own += b_x * b_x
        b_power_1 += b_1 * b_1
        b_power_2 += b_2 * b_2
        b_power_before += b_before * b_before
        b_with_1 += tl.abs(b_x * b_1)
        b_with_2 += tl.abs(b_x * b_2)
        b_with_before += b_x * b_before
    b_power, b_product_1, b_product_2 = tl.sum(b_own, 1), tl.sum(b_with_1, 1), tl.sum(b_with_2, 1)
    b_product_before = tl.sum(b_with_before, 1)
    p_saved += ((i_n.to(tl.int64) * T + i_t) * 4 + i_i) * 4
    tl.store(p_saved, tl.sqrt_rn(b_power), mask=m_t)
    tl.store(p_saved + 1, b_product_1, mask=m_t)
    tl.store(p_saved + 2, b_product_2, mask=m_t)
    tl.store(p_saved + 3, b_product_before, mask=m_t)
    b_sounds = m_t & _sounds(p_mask, i_n, i_i)
    b_near = _cosine(b_product_1, b_power, tl.sum(b_power_1, 1))
    b_far = 0.5 * _cosine(b_product_2, b_power, tl.sum(b_power_2, 1))
    b_pairs = tl.where(b_sounds & _sounds(p_mask, i_n, i_1), b_near, 0.0)
    b_pairs += tl.where(b_sounds & _sounds(p_mask, i_n, i_2), b_far, 0.0)
    b_items = _cosine(b_product_before, b_power, tl.sum(b_power_before, 1))
    b_items = tl.where(b_sounds & _sounds(p_mask, i_before, i_i), b_items, 0.0)
    p_parts += tl.program_id(0).to(tl.int64) * 2
    tl.store(p_parts, tl.sum(b_pairs, 0))
    tl.store(p_parts + 1, tl.sum(b_items, 0))


@triton.jit
def _neighbour(p_saved, p_mask, i_n, i_i, i_t, T, WHICH: tl.constexpr, i_of, i_of_n, scale, b_floor, m_row):
    """A = scale / (c_i c_j) and its share of c_i^2 B for the neighbour (i_n, i_i), whose product is kept at i_of."""
    b_norm = tl.load(p_saved + ((i_n.to(tl.int64) * T + i_t) * 4 + i_i) * 4, mask=m_row, other=1.0)
    b_product = tl.load(p_saved + ((i_of_n.to(tl.int64) * T + i_t) * 4 + i_of) * 4 + WHICH, mask=m_row, other=0.0)
    b_weight = tl.where(m_row & _sounds(p_mask, i_n, i_i), scale, 0.0) / tl.maximum(b_norm, EPSILON)
    return b_weight / b_floor, b_weight * b_product


@triton.jit(do_not_specialize=["T", "ITEMS", "x_n", "x_i", "x_t"])
def cosine_bwd_kernel(
    p_dloss, p_scales, p_x, p_mask, p_saved, p_dx, T, ITEMS, x_n, x_i, x_t,
    C: tl.constexpr, ALIGN: tl.constexpr, FRAMES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: dx of FRAMES frames of one item."""
    i_n, i_before, i_after, i_i, i_t = _place(T, ITEMS, FRAMES)
    x_n, x_i, x_t = x_n.to(tl.int64) * ALIGN, x_i.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    i_1, i_2, i_3, m_t = (i_i + 1) % 4, (i_i + 2) % 4, (i_i + 3) % 4, i_t < T
    dloss = tl.load(p_dloss).to(tl.float32)
    pairs, items = dloss * tl.load(p_scales + 5), dloss * tl.load(p_scales + 6)
    m_row = m_t & _sounds(p_mask, i_n, i_i)
    b_norm = tl.load(p_saved + ((i_n.to(tl.int64) * T + i_t) * 4 + i_i) * 4, mask=m_t, other=1.0)
    b_floor = tl.maximum(b_norm, EPSILON)
    b_a1, b_b = _neighbour(p_saved, p_mask, i_n, i_1, i_t, T, 1, i_i, i_n, pairs, b_floor, m_row)
    b_a2, b_more = _neighbour(p_saved, p_mask, i_n, i_2, i_t, T, 2, i_i, i_n, pairs, b_floor, m_row)
    b_b += b_more
    b_a3, b_more = _neighbour(p_saved, p_mask, i_n, i_3, i_t, T, 1, i_3, i_n, pairs, b_floor, m_row)
    b_b += b_more
    b_ap, b_more = _neighbour(p_saved, p_mask, i_before, i_i, i_t, T, 3, i_i, i_n, items, b_floor, m_row)
    b_b += b_more
    b_an, b_more = _neighbour(p_saved, p_mask, i_after, i_i, i_t, T, 3, i_i, i_after, items, b_floor, m_row)
    b_b = tl.where(b_norm > 0, (b_b + b_more) / (b_floor * b_floor * tl.maximum(b_norm, 1e-30)), 0.0)
    p_own = _rows(p_x, i_n, i_i, i_t, x_n, x_i, x_t)
    p_1, p_2 = _rows(p_x, i_n, i_1, i_t, x_n, x_i, x_t), _rows(p_x, i_n, i_2, i_t, x_n, x_i, x_t)
    p_3 = _rows(p_x, i_n, i_3, i_t, x_n, x_i, x_t)
    p_before = _rows(p_x, i_before, i_i, i_t, x_n, x_i, x_t)
    p_after = _rows(p_x, i_after, i_i, i_t, x_n, x_i, x_t)
    p_dx += ((i_n.to(tl.int64) * 4 + i_i) * T + i_t) * C
    for c in range(0, C, BLOCK_C):
        i_c = c + tl.arange(0, BLOCK_C)[None, :]
        mask = m_t[:, None] & (i_c < C)
        b_x = tl.load(p_own[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)
        b_dx = b_a1[:, None] * tl.abs(tl.load(p_1[:, None] + i_c, mask=mask, other=0.0).to(tl.float32))
        b_dx += b_a2[:, None] * tl.abs(tl.load(p_2[:, None] + i_c, mask=mask, other=0.0).to(tl.float32))
        b_dx += b_a3[:, None] * tl.abs(tl.load(p_3[:, None] + i_c, mask=mask, other=0.0).to(tl.float32))
        b_dx = tl.where(b_x > 0, b_dx, tl.where(b_x < 0, -b_dx, 0.0))
        b_dx += b_ap[:, None] * tl.load(p_before[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)
        b_dx += b_an[:, None] * tl.load(p_after[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)
        b_dx -= b_b[:, None] * b_x
        tl.store(p_dx[:, None] + i_c, b_dx.to(p_dx.dtype.element_ty), mask=mask)


def _layout(x: Tensor) -> dict[str, int]:
    align = alignment(x)
    sizes = {"T": x.shape[2], "ITEMS": len(x), **strides(align, x=x), "C": x.shape[3], "ALIGN": align}
    return {**sizes, "FRAMES": FRAMES, "BLOCK_C": BLOCK_C, "num_warps": 4}


def cosine_forward(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Saved rows (n, T, 4, 4) and the two terms' sums, (programs, 2), float32; ``x`` (n, 4, T, C), ``mask`` (n, 4) float32."""
    n, _, frames, _ = x.shape
    saved = torch.empty(n, frames, 4, 4, dtype=torch.float32, device=x.device)
    parts = torch.empty(n * -(-frames // FRAMES), 2, dtype=torch.float32, device=x.device)
    launch(cosine_fwd_kernel, len(parts), x, p_x=x, p_mask=mask, p_saved=saved, p_parts=parts, **_layout(x))
    return saved, parts


def cosine_backward(dloss: Tensor, scales: Tensor, x: Tensor, mask: Tensor, saved: Tensor) -> Tensor:
    """dx (n, 4, T, C) in x's dtype."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        cosine_bwd_kernel, len(x) * -(-x.shape[2] // FRAMES), x,
        p_dloss=dloss, p_scales=scales, p_x=x, p_mask=mask, p_saved=saved, p_dx=dx, **_layout(x),
    )  # fmt: skip
    return dx
