"""Run the end of the masking network in inference: mask_output, whose result m is not stored, masks, product with the latent.

    m[n, i, t, c] = sum_k W'[n, i, c, k] x[n, i, t, k] + b'[n, i, c], W' and b' folded as in pointwise.py
    partials[n, i, tile, :, c] = (mean, M2) of PReLU(m, slope)                    first launch: m is not stored
    y[n, i, t, c] = p[n, i, t, c] latent[n, t, c], p from m as in mask_tail.py    second launch: m is computed again

The first launch computes W' x^T, so its operands are exchanged. A thread then holds many frames of few channels, and a sum over
frames needs few shuffles. Tiles inside the signal need no masks. A program of the second launch holds its frames of x, for all
instruments, in shared memory, and loops over the channels.
Bytes: x twice, the latent and y once: n T (2 I K + (I + 1) C) sizeof(dtype). If m were stored, they would be n T (I K +
(3 I + 1) C) sizeof(dtype). The weights come from L2, once for each tile of either launch. FLOPs: 4 n I T K C, twice those of
mask_output. m is not rounded.
On an H100 the two launches are predicted to take 1.0 and 2.1 ms at the last stage of a song. Products limit the first, the
cache the second (9 and 18 instructions a value; 164 and 254 registers, two tiles and one on a multiprocessor). mask_output and
mask_tail, which store m, are predicted to take 2.4 and 2.5 ms.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (mask_output, prelu_4, norm_4, softmax).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, alignment, launch, little_shared_memory, operands_in_shared_memory, power_of_two, strides
from .mask_tail import PER_LN_2, shares
from .statistics import new_statistics
from .tile import prelu, slope_of

__all__ = [
    "mask_statistics", "mask_statistics_kernel", "masked_latent", "masked_latent_kernel", "serves",
]  # fmt: skip

MAIN, TAIL = 128, 32
"""Largest number of channels of x, in two parts: main and tail of a tile."""
STATISTICS = {"BLOCK_C": 64, "num_warps": 4, "num_stages": 2}
MASKS = {"BLOCK_T": 64, "BLOCK_C": 32, "num_warps": 4, "num_stages": 2}
NARROW = 16
"""Number of channels BLOCK_C that are computed at a time, where tensor cores take the first operand from registers."""
MOST_INSTRUMENTS = 4
"""Largest number of instruments whose frames of x fit into shared memory."""


@triton.jit
def _weights(p_w, i_c, i_k, C: tl.constexpr, K: tl.constexpr):
    """Load the weights W' of channels ``i_c`` and inputs ``i_k``, as (channels, inputs)."""
    return tl.load(p_w + i_c[:, None] * K + i_k[None, :], mask=(i_c < C)[:, None] & (i_k < K)[None, :], other=0.0)


@triton.jit
def _all_moments(
    b_x, b_x_tail, p_w, p_bias, p_statistics, slope, m_t, count, i_k, i_tail,
    C: tl.constexpr, K: tl.constexpr, TAIL_K: tl.constexpr, BLOCK_C: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Write the partials of all channels over the ``count`` frames of a tile.

    INSIDE says that all frames of the tile are in the signal.
    """
    # In the last tile do not load ahead: the two versions of this loop do not use the same shared memory.
    for c in tl.range(0, C, BLOCK_C, num_stages=None if INSIDE else 1):
        i_c = c + tl.arange(0, BLOCK_C)
        m_c = i_c < C
        b_bias = tl.load(p_bias + i_c, mask=m_c, other=0.0)
        b_m = tl.dot(_weights(p_w, i_c, i_k, C, K), b_x)
        if TAIL_K > 0:
            b_m = tl.dot(_weights(p_w, i_c, i_tail, C, K), b_x_tail, b_m)
        b_z = prelu(b_m + b_bias[:, None], slope)
        if not INSIDE:
            b_z = tl.where(m_t, b_z, 0.0)
        b_mean = tl.sum(b_z, 1) / count
        b_deviation = b_z - b_mean[:, None]
        if not INSIDE:
            b_deviation = tl.where(m_t, b_deviation, 0.0)
        tl.store(p_statistics + i_c, b_mean, mask=m_c)
        tl.store(p_statistics + C + i_c, tl.sum(b_deviation * b_deviation, 1), mask=m_c)


@triton.jit(do_not_specialize=["T", "x_n", "x_i", "x_t"])
def mask_statistics_kernel(
    p_x, p_w, p_bias, p_slope, p_statistics, T, x_n, x_i, x_t,
    K: tl.constexpr, C: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, TAIL_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the partials of one tile of one item and instrument, for all channels."""
    row = tl.program_id(0)
    tiles = tl.cdiv(T, BLOCK_T)
    i_ni, i_tile = row // tiles, row % tiles
    p_x += (i_ni // INSTRUMENTS) * (x_n.to(tl.int64) * ALIGN) + (i_ni % INSTRUMENTS) * (x_i.to(tl.int64) * ALIGN)
    p_w += i_ni.to(tl.int64) * C * K
    p_bias += i_ni.to(tl.int64) * C
    p_statistics += row.to(tl.int64) * 2 * C
    i_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = (i_t < T)[None, :]
    p_frame = p_x + i_t[None, :] * (x_t.to(tl.int64) * ALIGN)
    i_k = tl.arange(0, BLOCK_K)
    b_x = tl.load(p_frame + i_k[:, None], mask=m_t & (i_k < K)[:, None], other=0.0)
    i_tail, b_x_tail = i_k, b_x
    if TAIL_K > 0:
        i_tail = BLOCK_K + tl.arange(0, TAIL_K)
        b_x_tail = tl.load(p_frame + i_tail[:, None], mask=m_t & (i_tail < K)[:, None], other=0.0)
    slope = slope_of(p_slope)
    count = tl.minimum(T - i_tile * BLOCK_T, BLOCK_T).to(tl.float32)
    if count == BLOCK_T:
        _all_moments(
            b_x, b_x_tail, p_w, p_bias, p_statistics, slope, m_t, count, i_k, i_tail, C, K, TAIL_K, BLOCK_C, True
        )
    else:
        _all_moments(
            b_x, b_x_tail, p_w, p_bias, p_statistics, slope, m_t, count, i_k, i_tail, C, K, TAIL_K, BLOCK_C, False
        )


@triton.jit(do_not_specialize=["T", "x_n", "x_i", "x_t", "latent_n", "latent_i", "latent_t"])
def masked_latent_kernel(
    p_x, p_w, p_bias, p_slope, p_affine, p_latent, p_y, T, x_n, x_i, x_t, latent_n, latent_i, latent_t,
    K: tl.constexpr, C: tl.constexpr, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, TAIL_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute y of BLOCK_T frames of one item, for all instruments and channels."""
    tiles = tl.cdiv(T, BLOCK_T)
    i_n = (tl.program_id(0) // tiles).to(tl.int64)
    i_t = (tl.program_id(0) % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = (i_t < T)[:, None]
    p_x += i_n * (x_n.to(tl.int64) * ALIGN) + i_t[:, None] * (x_t.to(tl.int64) * ALIGN)
    p_latent += i_n * (latent_n.to(tl.int64) * ALIGN) + i_t[:, None] * (latent_t.to(tl.int64) * ALIGN)
    p_w += i_n * INSTRUMENTS * C * K
    p_bias += i_n * INSTRUMENTS * C
    p_affine += i_n * INSTRUMENTS * 4 * C
    size = T.to(tl.int64) * C
    p_y += i_n * INSTRUMENTS * size + i_t.to(tl.int64)[:, None] * C
    i_k = tl.arange(0, BLOCK_K)
    i_tail = i_k
    if TAIL_K > 0:
        i_tail = BLOCK_K + tl.arange(0, TAIL_K)
    x, tails = (), ()
    for i_i in tl.static_range(INSTRUMENTS):
        p_own = p_x + i_i * (x_i.to(tl.int64) * ALIGN)
        x = x + (tl.load(p_own + i_k[None, :], mask=m_t & (i_k < K)[None, :], other=0.0),)
        if TAIL_K > 0:
            tails = tails + (tl.load(p_own + i_tail[None, :], mask=m_t & (i_tail < K)[None, :], other=0.0),)
    # PReLU(m) = ((1 + slope) m + (1 - slope) |m|) / 2, so PReLU and norm together take two instructions for each value.
    slope = slope_of(p_slope)
    straight, bent = (0.5 + 0.5 * slope) * PER_LN_2, (0.5 - 0.5 * slope) * PER_LN_2
    for c in range(0, C, BLOCK_C):
        i_c = c + tl.arange(0, BLOCK_C)
        m_c = i_c < C
        mask = m_t & m_c[None, :]
        b_latent = tl.load(p_latent + i_c[None, :], mask=mask, other=0.0)
        # Load each instrument's bias, scale and shift before the first product waits for weights.
        sums, scales, bends, shifts = (), (), (), ()
        for i_i in tl.static_range(INSTRUMENTS):
            b_bias = tl.load(p_bias + i_i * C + i_c, mask=m_c, other=0.0)
            sums = sums + (tl.zeros([BLOCK_T, BLOCK_C], tl.float32) + b_bias[None, :],)
            b_scale = tl.load(p_affine + i_i * 4 * C + i_c, mask=m_c, other=0.0)
            scales, bends = scales + (b_scale * straight,), bends + (b_scale * bent,)
            shifts = shifts + (tl.load(p_affine + (i_i * 4 + 1) * C + i_c, mask=m_c, other=0.0) * PER_LN_2,)
        u = ()
        for i_i in tl.static_range(INSTRUMENTS):
            p_weights = p_w + i_i * C * K
            b_m = tl.dot(x[i_i], tl.trans(_weights(p_weights, i_c, i_k, C, K)), sums[i_i])
            if TAIL_K > 0:
                b_m = tl.dot(tails[i_i], tl.trans(_weights(p_weights, i_c, i_tail, C, K)), b_m)
            u = u + (b_m * scales[i_i][None, :] + (tl.abs(b_m) * bends[i_i][None, :] + shifts[i_i][None, :]),)
        y = shares(u, b_latent.to(tl.float32), INSTRUMENTS, SOFTMAX)
        for i_i in tl.static_range(INSTRUMENTS):
            tl.store(p_y + i_i * size + i_c[None, :], y[i_i].to(p_y.dtype.element_ty), mask=mask)


def serves(x: Tensor) -> bool:
    """Return whether both kernels serve activations (n, I, T, K) like ``x``: its dtype, sizes and device.

    A program keeps its frames of x and the weights of the next steps in shared memory, for which 99 KiB are too few. They would
    suffice for half of the frames, but then storing m is faster (predicted for a song on an RTX 4090: 28 ms instead of 33).
    """
    fits = x.shape[3] <= MAIN + TAIL and x.shape[1] <= MOST_INSTRUMENTS and not little_shared_memory(x.device)
    return fits and x.dtype.itemsize == 2


def _columns(inputs: int) -> dict[str, int]:
    main = min(MAIN, power_of_two(inputs))
    return {"BLOCK_K": main, "TAIL_K": power_of_two(inputs - main) if inputs > main else 0}


def mask_statistics(x: Tensor, folded: Tensor, bias: Tensor, slope: Tensor) -> Tensor:
    """Return the partials (n, I, tiles, 2, C) of PReLU(m, slope), float32.

    ``x`` (n, I, T, K) has unit stride along channels. ``folded``, W' (n, I, C, K), is in x's dtype; ``bias``, b' (n, I, C), is
    float32. Both come from ``pointwise.fold_weights``, whose rows of the bias must be added up.
    """
    n, instruments, frames, inputs = x.shape
    channels, align = folded.shape[2], alignment(x)
    partials = new_statistics(x, channels)
    launch(
        mask_statistics_kernel, n * instruments * partials.shape[2], x,
        p_x=x, p_w=folded, p_bias=bias, p_slope=slope, p_statistics=partials, T=frames, **strides(align, x=x),
        K=inputs, C=channels, INSTRUMENTS=instruments, ALIGN=align, BLOCK_T=TILE, **_columns(inputs), **STATISTICS,
    )  # fmt: skip
    return partials


def masked_latent(
    x: Tensor, folded: Tensor, bias: Tensor, slope: Tensor, affine: Tensor, latent: Tensor, softmax: int
) -> Tensor:
    """Return y (n, I, T, C) in x's dtype.

    ``affine`` (n, I, 4, C) belongs to the norm of PReLU(m). ``latent`` is (n, 1, T, C). The other arguments are as for
    :func:`mask_statistics`.
    """
    n, instruments, frames, inputs = x.shape
    channels, align = folded.shape[2], alignment(x, latent)
    y = torch.empty(n, instruments, frames, channels, dtype=x.dtype, device=x.device)
    chosen = MASKS if operands_in_shared_memory(x.device) else {**MASKS, "BLOCK_C": NARROW}
    launch(
        masked_latent_kernel, n * -(-frames // MASKS["BLOCK_T"]), x,
        p_x=x, p_w=folded, p_bias=bias, p_slope=slope, p_affine=affine, p_latent=latent, p_y=y, T=frames,
        **strides(align, x=x, latent=latent), K=inputs, C=channels, INSTRUMENTS=instruments, SOFTMAX=softmax,
        ALIGN=align, **_columns(inputs), **chosen,
    )  # fmt: skip
    return y
