"""Cosine similarities of the encoded sources along channels, between instruments and between items; and their gradient.

    x_i: the latent of instrument i at one frame of one item, C channels;  n_i = |x_i|, c_i = max(n_i, 1e-8)
    between instruments i < j of one item, both not silent:  sum_c |x_i| |x_j| / (c_i c_j)
    with p_i of the item before, both not silent:            sum_c x_i p_i / (c_i c(p_i))
    dx_i = sign(x_i) sum_j A_ij |x_j| + A_p p_i + A_y y_i - B_i x_i, y_i of the item after
           A_ij = g / (c_i c_j), A_p and A_y likewise, g the factor of the cosine in the loss
           B_i = (sum of g times the cosines of x_i) / n_i^2, 0 where n_i < 1e-8

The items form a ring. Or the first item is carried: it is the item before the batch, compared only with the item after it.
The I instruments of a frame are rows of one tile. Each has partners 1 to I // 2 places further in a ring of instruments; a
partner I / 2 places further is met from both sides, and counts half each time. Forward saves I // 2 + 2 numbers for each frame
and instrument: n, the products with the partners, and the product with the item before. It takes one pass, in which it reads
the norms of the partners from the saved numbers. Backward takes one pass, too.

Bytes: forward reads x once, as partners and the item before come from the caches (items of one tile of frames are neighbours);
backward reads x once and writes dx: 3 n I T C sizeof(dtype). FLOPs: (6.5 I + 10) n I T C. Memory-bound up to about 8
instruments.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.4; original utility/loss.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import alignment, launch, power_of_two, strides

__all__ = ["cosine_backward", "cosine_bwd_kernel", "cosine_forward", "cosine_fwd_kernel"]

ROWS = 16
"""Number of rows of a program, instruments times frames. A program has more rows if one frame of all instruments needs more."""
BLOCK_C = 64
EPSILON = tl.constexpr(1e-8)


@triton.jit
def _place(T, ITEMS, INSTRUMENTS: tl.constexpr, BLOCK_I: tl.constexpr, FRAMES: tl.constexpr):
    """Return the place of this program's work: item, the items before and after, and each row's instrument, frame and mask."""
    i_n, i_tile = tl.program_id(0) % ITEMS, tl.program_id(0) // ITEMS
    i_row = tl.arange(0, BLOCK_I * FRAMES)
    i_i, i_t = i_row // FRAMES, i_tile * FRAMES + i_row % FRAMES
    m_row = (i_t < T) & (i_i < INSTRUMENTS)
    return i_n, (i_n + ITEMS - 1) % ITEMS, (i_n + 1) % ITEMS, i_i, i_t, m_row


@triton.jit
def _load(p_x, i_n, i_i, i_t, x_n, x_i, x_t, i_c, mask):
    """Load channels ``i_c`` of the rows of one item, as float32."""
    p_row = p_x + i_n.to(tl.int64) * x_n + i_i.to(tl.int64) * x_i + i_t.to(tl.int64) * x_t
    return tl.load(p_row[:, None] + i_c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _sounds(p_mask, i_n, i_i, m_row, INSTRUMENTS: tl.constexpr):
    return m_row & (tl.load(p_mask + i_n * INSTRUMENTS + i_i, mask=m_row, other=0.0) != 0)


@triton.jit
def _cosine(b_product, b_norm, b_other):
    """Return the cosines: the products of two rows, divided by both norms. A norm below 1e-8 is replaced by 1e-8."""
    return b_product / (tl.maximum(b_norm, EPSILON) * tl.maximum(b_other, EPSILON))


@triton.jit
def _kept(p_saved, i_n, i_i, i_t, T, WHICH: tl.constexpr, m_row, INSTRUMENTS: tl.constexpr):
    """Load one of the numbers that the forward saved for item ``i_n`` and instrument ``i_i``.

    WHICH = 0 is the norm, 1 to I // 2 are the products with the partners, I // 2 + 1 is the product with the item before.
    """
    DISTANCES: tl.constexpr = INSTRUMENTS // 2
    p_row = p_saved + ((i_n.to(tl.int64) * T + i_t) * INSTRUMENTS + i_i) * (DISTANCES + 2)
    return tl.load(p_row + WHICH, mask=m_row, other=0.0)


@triton.jit(do_not_specialize=["T", "ITEMS", "x_n", "x_i", "x_t"])
def cosine_fwd_kernel(
    p_x, p_mask, p_saved, p_parts, T, ITEMS, x_n, x_i, x_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, CARRIED: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_I: tl.constexpr, FRAMES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute FRAMES frames of the saved numbers (items, T, I, I // 2 + 2), and a row of partial sums (programs, 2).

    The two sums are those of the cosines between instruments and between items.
    """
    DISTANCES: tl.constexpr = INSTRUMENTS // 2
    i_n, i_before, _, i_i, i_t, m_row = _place(T, ITEMS, INSTRUMENTS, BLOCK_I, FRAMES)
    x_n, x_i, x_t = x_n.to(tl.int64) * ALIGN, x_i.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    p_first = p_saved
    p_saved += ((i_n.to(tl.int64) * T + i_t) * INSTRUMENTS + i_i) * (DISTANCES + 2)
    b_sounds = _sounds(p_mask, i_n, i_i, m_row, INSTRUMENTS)
    b_own = b_sounds & (i_n >= CARRIED)  # the carried item has no terms of its own
    b_square = tl.zeros([BLOCK_I * FRAMES, BLOCK_C], tl.float32)
    b_before, b_product, pairs = b_square, b_square, ()
    for _ in tl.static_range(DISTANCES):
        pairs = pairs + (b_square,)
    for c in range(0, C, BLOCK_C):
        i_c = c + tl.arange(0, BLOCK_C)[None, :]
        mask = m_row[:, None] & (i_c < C)
        b_x = _load(p_x, i_n, i_i, i_t, x_n, x_i, x_t, i_c, mask)
        b_y = _load(p_x, i_before, i_i, i_t, x_n, x_i, x_t, i_c, mask)
        b_square += b_x * b_x
        b_before += b_y * b_y
        b_product += b_x * b_y
        more = ()
        for k in tl.static_range(DISTANCES):
            b_y = _load(p_x, i_n, (i_i + k + 1) % INSTRUMENTS, i_t, x_n, x_i, x_t, i_c, mask)
            more = more + (pairs[k] + tl.abs(b_x * b_y),)
        pairs = more
    b_norm, b_with = tl.sqrt_rn(tl.sum(b_square, 1)), tl.sum(b_product, 1)
    tl.store(p_saved, b_norm, mask=m_row)
    tl.store(p_saved + DISTANCES + 1, b_with, mask=m_row)
    b_items = _cosine(b_with, b_norm, tl.sqrt_rn(tl.sum(b_before, 1)))
    b_items = tl.where(b_own & _sounds(p_mask, i_before, i_i, m_row, INSTRUMENTS), b_items, 0.0)
    b_pairs = tl.zeros_like(b_items)
    tl.debug_barrier()  # wait until other rows have written the norms of the partners
    for k in tl.static_range(1, DISTANCES + 1):
        i_k = (i_i + k) % INSTRUMENTS
        b_with = tl.sum(pairs[k - 1], 1)
        tl.store(p_saved + k, b_with, mask=m_row)
        weight = 0.5 if 2 * k == INSTRUMENTS else 1.0
        b_cosine = weight * _cosine(b_with, b_norm, _kept(p_first, i_n, i_k, i_t, T, 0, m_row, INSTRUMENTS))
        b_pairs += tl.where(b_own & _sounds(p_mask, i_n, i_k, m_row, INSTRUMENTS), b_cosine, 0.0)
    p_parts += tl.program_id(0).to(tl.int64) * 2
    tl.store(p_parts, tl.sum(b_pairs, 0))
    tl.store(p_parts + 1, tl.sum(b_items, 0))


@triton.jit
def _weight(p_saved, p_mask, i_n, i_i, i_t, T, scale, m_row, INSTRUMENTS: tl.constexpr):
    """Return ``scale`` / c of the latent (i_n, i_i) with which each row is compared; 0 if that latent is silent."""
    DISTANCES: tl.constexpr = INSTRUMENTS // 2
    p_norm = p_saved + ((i_n.to(tl.int64) * T + i_t) * INSTRUMENTS + i_i) * (DISTANCES + 2)
    b_norm = tl.load(p_norm, mask=m_row, other=1.0)
    b_sounds = _sounds(p_mask, i_n, i_i, m_row, INSTRUMENTS)
    return tl.where(b_sounds, scale, 0.0) / tl.maximum(b_norm, EPSILON)


@triton.jit(do_not_specialize=["T", "ITEMS", "x_n", "x_i", "x_t"])
def cosine_bwd_kernel(
    p_dloss, p_scales, p_x, p_mask, p_saved, p_dx, T, ITEMS, x_n, x_i, x_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, CARRIED: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_I: tl.constexpr, FRAMES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute dx of FRAMES frames of one item."""
    DISTANCES: tl.constexpr = INSTRUMENTS // 2
    i_n, i_before, i_after, i_i, i_t, m_row = _place(T, ITEMS, INSTRUMENTS, BLOCK_I, FRAMES)
    x_n, x_i, x_t = x_n.to(tl.int64) * ALIGN, x_i.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    dloss = tl.load(p_dloss).to(tl.float32)
    pairs, items = dloss * tl.load(p_scales + INSTRUMENTS + 1), dloss * tl.load(p_scales + INSTRUMENTS + 2)
    pairs = tl.where(i_n >= CARRIED, pairs, 0.0)
    m_sounds = _sounds(p_mask, i_n, i_i, m_row, INSTRUMENTS)
    b_norm = _kept(p_saved, i_n, i_i, i_t, T, 0, m_row, INSTRUMENTS)
    b_floor = tl.maximum(b_norm, EPSILON)
    before = tl.where(i_n >= CARRIED, items, 0.0)
    after = tl.where(i_after >= CARRIED, items, 0.0)
    b_before = _weight(p_saved, p_mask, i_before, i_i, i_t, T, before, m_sounds, INSTRUMENTS)
    b_after = _weight(p_saved, p_mask, i_after, i_i, i_t, T, after, m_sounds, INSTRUMENTS)
    b_radial = b_before * _kept(p_saved, i_n, i_i, i_t, T, DISTANCES + 1, m_row, INSTRUMENTS)
    b_radial += b_after * _kept(p_saved, i_after, i_i, i_t, T, DISTANCES + 1, m_row, INSTRUMENTS)
    weights = ()  # alternately for the instrument k places further and for the one k places before
    for k in tl.static_range(1, DISTANCES + 1):
        i_k = (i_i + k) % INSTRUMENTS
        b_weight = _weight(p_saved, p_mask, i_n, i_k, i_t, T, pairs, m_sounds, INSTRUMENTS)
        b_radial += b_weight * _kept(p_saved, i_n, i_i, i_t, T, k, m_row, INSTRUMENTS)
        weights = weights + (b_weight / b_floor,)
        if 2 * k != INSTRUMENTS:
            i_k = (i_i + INSTRUMENTS - k) % INSTRUMENTS
            b_weight = _weight(p_saved, p_mask, i_n, i_k, i_t, T, pairs, m_sounds, INSTRUMENTS)
            b_radial += b_weight * _kept(p_saved, i_n, i_k, i_t, T, k, m_row, INSTRUMENTS)
            weights = weights + (b_weight / b_floor,)
    b_radial = tl.where(b_norm >= EPSILON, b_radial / (b_floor * b_floor * b_floor), 0.0)
    b_before, b_after = b_before / b_floor, b_after / b_floor
    p_dx += ((i_n.to(tl.int64) * INSTRUMENTS + i_i) * T + i_t) * C
    for c in range(0, C, BLOCK_C):
        i_c = c + tl.arange(0, BLOCK_C)[None, :]
        mask = m_row[:, None] & (i_c < C)
        b_x = _load(p_x, i_n, i_i, i_t, x_n, x_i, x_t, i_c, mask)
        b_dx = tl.zeros_like(b_x)
        for k in tl.static_range(1, DISTANCES + 1):
            i_k = (i_i + k) % INSTRUMENTS
            b_dx += weights[2 * k - 2][:, None] * tl.abs(_load(p_x, i_n, i_k, i_t, x_n, x_i, x_t, i_c, mask))
            if 2 * k != INSTRUMENTS:
                i_k = (i_i + INSTRUMENTS - k) % INSTRUMENTS
                b_dx += weights[2 * k - 1][:, None] * tl.abs(_load(p_x, i_n, i_k, i_t, x_n, x_i, x_t, i_c, mask))
        b_dx = tl.where(b_x > 0, b_dx, tl.where(b_x < 0, -b_dx, 0.0))
        b_dx += b_before[:, None] * _load(p_x, i_before, i_i, i_t, x_n, x_i, x_t, i_c, mask)
        b_dx += b_after[:, None] * _load(p_x, i_after, i_i, i_t, x_n, x_i, x_t, i_c, mask)
        b_dx -= b_radial[:, None] * b_x
        tl.store(p_dx[:, None] + i_c, b_dx.to(p_dx.dtype.element_ty), mask=mask)


def _layout(x: Tensor, carried: int) -> tuple[int, dict[str, int]]:
    """Return the number of programs, and the arguments that both kernels share."""
    items, instruments, frames, channels = x.shape
    align, block = alignment(x), power_of_two(instruments, 1)
    each = max(1, ROWS // block)
    arguments = {
        "T": frames, "ITEMS": items, **strides(align, x=x), "C": channels, "INSTRUMENTS": instruments, "CARRIED": carried,
        "ALIGN": align, "BLOCK_I": block, "FRAMES": each, "BLOCK_C": BLOCK_C, "num_warps": 4,
    }  # fmt: skip
    return items * -(-frames // each), arguments


def cosine_forward(x: Tensor, mask: Tensor, carried: int) -> tuple[Tensor, Tensor]:
    """Return the saved numbers (items, T, I, I // 2 + 2) and the partial sums (programs, 2), both float32.

    The two sums are those of the cosines between instruments and between items. ``x`` is (items, I, T, C). ``mask`` (items, I)
    is float32, 0 for a silent source. ``carried`` is 1 if the first item is the one before the batch, else 0.
    """
    items, instruments, frames, _ = x.shape
    programs, arguments = _layout(x, carried)
    saved = torch.empty(items, frames, instruments, instruments // 2 + 2, dtype=torch.float32, device=x.device)
    parts = torch.empty(programs, 2, dtype=torch.float32, device=x.device)
    launch(cosine_fwd_kernel, programs, x, p_x=x, p_mask=mask, p_saved=saved, p_parts=parts, **arguments)
    return saved, parts


def cosine_backward(dloss: Tensor, scales: Tensor, x: Tensor, mask: Tensor, saved: Tensor, carried: int) -> Tensor:
    """Return dx (items, I, T, C) in x's dtype. ``scales`` (I + 3,) holds the two factors of the cosines in its last places."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs, arguments = _layout(x, carried)
    launch(
        cosine_bwd_kernel, programs, x,
        p_dloss=dloss, p_scales=scales, p_x=x, p_mask=mask, p_saved=saved, p_dx=dx, **arguments,
    )  # fmt: skip
    return dx
