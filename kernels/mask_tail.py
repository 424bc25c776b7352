"""The end of the masking network: group norm of PReLU(m), masks, product with the mixture's latent.

    z = PReLU(m, slope) as stored;  u = scale (z - mean) + beta
    p[i] = exp(u[i]) / sum_j exp(u[j]) over the first SOFTMAX instruments; 1 / (1 + exp(-u[i])) for each other one
    y[n, i, t, c] = p[n, i, t, c] latent[n, t, c]

A program loads and normalises each value once, and keeps the normalised values of all instruments in registers.
Bytes: m and y once, the latent once: n (2 I + 1) T C sizeof(dtype). FLOPs: about 25 a value. Memory-bound everywhere.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (prelu_4, norm_4, softmax) and
model/tasnet.py (the product).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import alignment, channel_block, launch, strides
from .tile import activation, slope_of

__all__ = [
    "FRAMES", "PER_LN_2", "mask_tail_forward", "mask_tail_fwd_kernel", "masks", "shares", "tail_place",
]  # fmt: skip

PER_LN_2 = tl.constexpr(1.4426950408889634)
FRAMES = 32
"""Frames of a program. With 32 channels and 4 warps, a tile of one instrument takes eight registers of each thread."""


@triton.jit
def tail_place(T, C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the place of this program's work: item, tile, frames and channels."""
    blocks = tl.cdiv(C, BLOCK_C)
    row = tl.program_id(0) // blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_t = (row % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return row // tiles, row % tiles, i_t, i_c


@triton.jit
def _normalised(p_m, p_affine, p_beta, i_i, slope, i_m, i_c, mask, m_i, C: tl.constexpr):
    """Return m, z - mean and u / ln 2 of instrument ``i_i``, float32; ``i_m`` are the elements' offsets in an instrument."""
    b_m = tl.load(p_m + i_i * m_i + i_m, mask=mask, other=0.0)
    p_channel = p_affine + i_i * 4 * C + i_c
    b_scale = tl.load(p_channel, mask=i_c < C, other=0.0) * PER_LN_2
    b_mean = tl.load(p_channel + 2 * C, mask=i_c < C, other=0.0)
    b_beta = tl.load(p_beta + i_i * C + i_c, mask=i_c < C, other=0.0).to(tl.float32) * PER_LN_2
    b_centred = activation(b_m, slope) - b_mean[None, :]
    return b_m.to(tl.float32), b_centred, b_centred * b_scale[None, :] + b_beta[None, :]


@triton.jit
def shares(u, b_value, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr):
    """Return ``b_value`` times the masks (shares of the softmax, or sigmoids), a tuple over the instruments.

    ``u`` is a tuple over the instruments, too: u / ln 2.
    """
    b_top, p = u[0], ()
    for i_i in tl.static_range(1, SOFTMAX):
        b_top = tl.maximum(b_top, u[i_i])
    b_sum = b_top
    for i_i in tl.static_range(SOFTMAX):
        p = p + (tl.exp2(u[i_i] - b_top),)
        if i_i == 0:
            b_sum = p[i_i]
        else:
            b_sum += p[i_i]
    if SOFTMAX > 0:
        b_root = tl.rsqrt(b_sum)  # b_sum is from 1 to SOFTMAX: a division's extra steps are not needed
        b_sum = b_value * (b_root * b_root)
    found = ()
    for i_i in tl.static_range(INSTRUMENTS):
        if i_i < SOFTMAX:
            found = found + (p[i_i] * b_sum,)
        else:
            found = found + (b_value / (1.0 + tl.exp2(-u[i_i])),)
    return found


@triton.jit
def masks(
    p_m, p_affine, p_beta, slope, b_value, i_m, i_c, mask, m_i,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr,
):  # fmt: skip
    """Return three tuples over the instruments: m, z - mean, and ``b_value`` times the mask (see :func:`shares`)."""
    m, z, u = (), (), ()
    for i_i in tl.static_range(INSTRUMENTS):
        b_m, b_z, b_u = _normalised(p_m, p_affine, p_beta, i_i, slope, i_m, i_c, mask, m_i, C)
        m, z, u = m + (b_m,), z + (b_z,), u + (b_u,)
    return m, z, shares(u, b_value, INSTRUMENTS, SOFTMAX)


@triton.jit(do_not_specialize=["T", "m_n", "m_i", "m_t", "latent_n", "latent_i", "latent_t"])
def mask_tail_fwd_kernel(
    p_m, p_latent, p_slope, p_affine, p_beta, p_y, T, m_n, m_i, m_t, latent_n, latent_i, latent_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute y of BLOCK_T frames and BLOCK_C channels of one item, for all instruments."""
    i_n, _, i_t, i_c = tail_place(T, C, BLOCK_T, BLOCK_C)
    i_n = i_n.to(tl.int64)
    mask = (i_t < T)[:, None] & (i_c < C)[None, :]
    slope, m_i = slope_of(p_slope), m_i.to(tl.int64) * ALIGN
    p_m += i_n * (m_n.to(tl.int64) * ALIGN)
    p_affine += i_n * INSTRUMENTS * 4 * C
    i_m = i_t[:, None] * (m_t.to(tl.int64) * ALIGN) + i_c[None, :]
    p_latent += i_n * (latent_n.to(tl.int64) * ALIGN)
    i_latent = i_t[:, None] * (latent_t.to(tl.int64) * ALIGN) + i_c[None, :]
    b_latent = tl.load(p_latent + i_latent, mask=mask, other=0.0).to(tl.float32)
    _, _, y = masks(p_m, p_affine, p_beta, slope, b_latent, i_m, i_c, mask, m_i, C, INSTRUMENTS, SOFTMAX)
    i_y = i_t.to(tl.int64)[:, None] * C + i_c[None, :]
    size = T.to(tl.int64) * C
    p_y += i_n * INSTRUMENTS * size
    for i_i in tl.static_range(INSTRUMENTS):
        tl.store(p_y + i_i * size + i_y, y[i_i].to(p_y.dtype.element_ty), mask=mask)


def mask_tail_forward(m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, beta: Tensor, softmax: int) -> Tensor:
    """Return y (n, I, T, C) in m's dtype; ``m`` (n, I, T, C) and ``latent`` (n, 1, T, C) have unit stride along channels."""
    n, instruments, frames, channels = m.shape
    y = torch.empty(n, instruments, frames, channels, dtype=m.dtype, device=m.device)
    block, align = channel_block(channels), alignment(m, latent)
    launch(
        mask_tail_fwd_kernel, n * -(-frames // FRAMES) * -(-channels // block), m,
        p_m=m, p_latent=latent, p_slope=slope, p_affine=affine, p_beta=beta, p_y=y, T=frames,
        **strides(align, m=m, latent=latent), C=channels, INSTRUMENTS=instruments, SOFTMAX=softmax, ALIGN=align,
        BLOCK_T=FRAMES, BLOCK_C=block, num_warps=4,
    )  # fmt: skip
    return y
