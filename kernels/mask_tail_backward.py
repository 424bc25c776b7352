"""Backward of the masking network's end: two passes over m, dy and the latent, nothing else stored by the forward.

    p, z, u as in the forward, computed again;  g[i] = dy[i] latent
    dlatent = sum_i dy[i] p[i];                 du[i] = p[i] (g[i] - sum_j g[j] p[j])
    S[n, i, c] = sum_t du (z - mean);           D[n, i, c] = sum_t du
    dgamma = sum_n rstd S;  dbeta = sum_n D;    q, r from S and D as in group_norm.py
    dm = (scale du + q (z - mean) + r) PReLU'(m);  dslope = sum of dz m where m <= 0

Bytes: m, dy and the latent twice, dm and dlatent once: n (5 4 + 3) T C sizeof(dtype). Memory-bound. Every sum has one fixed
order: frames in a tile, tiles, items.
Not yet run on a GPU. Source: as the forward's; the algebra of group norm's backward is Wu and He 2018, section 3.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_norm import norm_sums_kernel
from .launch import TILE, alignment, channel_block, launch, power_of_two, strides
from .mask_tail import FRAMES, normalised, tail_place
from .statistics import GROUPS
from .tile import slope_of

__all__ = ["mask_tail_backward", "mask_tail_dx_kernel", "mask_tail_sums_kernel"]


@triton.jit
def _softmax(b_u0, b_u1, b_u2, b_u3):
    """Masks of the four instruments."""
    b_top = tl.maximum(tl.maximum(b_u0, b_u1), tl.maximum(b_u2, b_u3))
    b_u0, b_u1, b_u2, b_u3 = tl.exp(b_u0 - b_top), tl.exp(b_u1 - b_top), tl.exp(b_u2 - b_top), tl.exp(b_u3 - b_top)
    b_sum = b_u0 + b_u1 + b_u2 + b_u3
    return b_u0 / b_sum, b_u1 / b_sum, b_u2 / b_sum, b_u3 / b_sum


@triton.jit
def _gradients(p_dy, dy_i, i_dy, mask):
    """dy of the four instruments, float32."""
    b_dy0 = tl.load(p_dy + i_dy, mask=mask, other=0.0).to(tl.float32)
    b_dy1 = tl.load(p_dy + dy_i + i_dy, mask=mask, other=0.0).to(tl.float32)
    b_dy2 = tl.load(p_dy + 2 * dy_i + i_dy, mask=mask, other=0.0).to(tl.float32)
    b_dy3 = tl.load(p_dy + 3 * dy_i + i_dy, mask=mask, other=0.0).to(tl.float32)
    return b_dy0, b_dy1, b_dy2, b_dy3


@triton.jit(do_not_specialize=["T", "m_n", "m_i", "m_t", "latent_n", "latent_i", "latent_t", "dy_n", "dy_i", "dy_t"])
def mask_tail_sums_kernel(
    p_m, p_latent, p_dy, p_slope, p_affine, p_beta, p_sums, p_dlatent, T,
    m_n, m_i, m_t, latent_n, latent_i, latent_t, dy_n, dy_i, dy_t,
    C: tl.constexpr, ALIGN: tl.constexpr, TILE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: dlatent, and S and D as rows of (n, 4, tiles, 2, C), of TILE frames in steps of BLOCK_T."""
    i_n, i_tile, _, i_c = tail_place(T, C, TILE, BLOCK_C)
    i_n, tiles = i_n.to(tl.int64), tl.cdiv(T, TILE)
    m_c, slope = i_c < C, slope_of(p_slope)
    m_i, m_t = m_i.to(tl.int64) * ALIGN, m_t.to(tl.int64) * ALIGN
    dy_i, dy_t = dy_i.to(tl.int64) * ALIGN, dy_t.to(tl.int64) * ALIGN
    latent_t = latent_t.to(tl.int64) * ALIGN
    p_m += i_n * (m_n.to(tl.int64) * ALIGN)
    p_dy += i_n * (dy_n.to(tl.int64) * ALIGN)
    p_latent += i_n * (latent_n.to(tl.int64) * ALIGN)
    p_dlatent += i_n * T * C
    p_affine += i_n * 16 * C
    b_s0, b_d0 = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    b_s1, b_d1 = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    b_s2, b_d2 = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    b_s3, b_d3 = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, TILE, BLOCK_T):
        i_t = i_tile * TILE + first + tl.arange(0, BLOCK_T)
        mask = (i_t < T)[:, None] & m_c[None, :]
        i_m = i_t[:, None] * m_t + i_c[None, :]
        b_m, b_z0, b_p0 = normalised(p_m, p_affine, p_beta, 0, slope, i_m, i_c, mask, m_i, C)
        b_m, b_z1, b_p1 = normalised(p_m, p_affine, p_beta, 1, slope, i_m, i_c, mask, m_i, C)
        b_m, b_z2, b_p2 = normalised(p_m, p_affine, p_beta, 2, slope, i_m, i_c, mask, m_i, C)
        b_m, b_z3, b_p3 = normalised(p_m, p_affine, p_beta, 3, slope, i_m, i_c, mask, m_i, C)
        b_p0, b_p1, b_p2, b_p3 = _softmax(b_p0, b_p1, b_p2, b_p3)
        b_g0, b_g1, b_g2, b_g3 = _gradients(p_dy, dy_i, i_t[:, None] * dy_t + i_c[None, :], mask)
        b_dot = b_g0 * b_p0 + b_g1 * b_p1 + b_g2 * b_p2 + b_g3 * b_p3
        i_latent = i_t.to(tl.int64)[:, None]
        tl.store(p_dlatent + i_latent * C + i_c[None, :], b_dot.to(p_dlatent.dtype.element_ty), mask=mask)
        b_latent = tl.load(p_latent + i_latent * latent_t + i_c[None, :], mask=mask, other=0.0).to(tl.float32)
        b_du = b_p0 * b_latent * (b_g0 - b_dot)  # 0 past the end, where dy is 0
        b_s0 += tl.sum(b_du * b_z0, 0)
        b_d0 += tl.sum(b_du, 0)
        b_du = b_p1 * b_latent * (b_g1 - b_dot)
        b_s1 += tl.sum(b_du * b_z1, 0)
        b_d1 += tl.sum(b_du, 0)
        b_du = b_p2 * b_latent * (b_g2 - b_dot)
        b_s2 += tl.sum(b_du * b_z2, 0)
        b_d2 += tl.sum(b_du, 0)
        b_du = b_p3 * b_latent * (b_g3 - b_dot)
        b_s3 += tl.sum(b_du * b_z3, 0)
        b_d3 += tl.sum(b_du, 0)
    p_sums += (i_n * 4 * tiles + i_tile) * 2 * C + i_c
    instrument = tiles.to(tl.int64) * 2 * C
    tl.store(p_sums, b_s0, mask=m_c)
    tl.store(p_sums + C, b_d0, mask=m_c)
    tl.store(p_sums + instrument, b_s1, mask=m_c)
    tl.store(p_sums + instrument + C, b_d1, mask=m_c)
    tl.store(p_sums + 2 * instrument, b_s2, mask=m_c)
    tl.store(p_sums + 2 * instrument + C, b_d2, mask=m_c)
    tl.store(p_sums + 3 * instrument, b_s3, mask=m_c)
    tl.store(p_sums + 3 * instrument + C, b_d3, mask=m_c)


@triton.jit
def _finish(b_m, b_z, b_du, p_affine, p_norm, p_dm, i_i, slope, i_dm, i_c, mask, C: tl.constexpr):
    """Store dm of one instrument; returns its share of dslope."""
    p_channel = p_norm + i_i * 4 * C + i_c
    b_scale = tl.load(p_affine + i_i * 4 * C + i_c, mask=i_c < C, other=0.0)
    b_q = tl.load(p_channel, mask=i_c < C, other=0.0)
    b_r = tl.load(p_channel + C, mask=i_c < C, other=0.0)
    b_dz = b_scale[None, :] * b_du + b_q[None, :] * b_z + b_r[None, :]
    tl.store(p_dm + i_dm, tl.where(b_m > 0, b_dz, slope * b_dz).to(p_dm.dtype.element_ty), mask=mask)
    return tl.sum(tl.where((b_m > 0) | ~mask, 0.0, b_dz * b_m))


@triton.jit(do_not_specialize=["T", "m_n", "m_i", "m_t", "latent_n", "latent_i", "latent_t", "dy_n", "dy_i", "dy_t"])
def mask_tail_dx_kernel(
    p_m, p_latent, p_dy, p_slope, p_affine, p_beta, p_norm, p_dm, p_dslope, T,
    m_n, m_i, m_t, latent_n, latent_i, latent_t, dy_n, dy_i, dy_t,
    C: tl.constexpr, ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: dm of BLOCK_T frames of one item, BLOCK_C channels, all instruments, and its share of dslope."""
    i_n, _, i_t, i_c = tail_place(T, C, BLOCK_T, BLOCK_C)
    i_n, slope = i_n.to(tl.int64), slope_of(p_slope)
    mask = (i_t < T)[:, None] & (i_c < C)[None, :]
    m_i, dy_i = m_i.to(tl.int64) * ALIGN, dy_i.to(tl.int64) * ALIGN
    p_m += i_n * (m_n.to(tl.int64) * ALIGN)
    p_dy += i_n * (dy_n.to(tl.int64) * ALIGN)
    p_latent += i_n * (latent_n.to(tl.int64) * ALIGN)
    p_affine += i_n * 16 * C
    p_norm += i_n * 16 * C
    i_m = i_t[:, None] * (m_t.to(tl.int64) * ALIGN) + i_c[None, :]
    b_m0, b_z0, b_p0 = normalised(p_m, p_affine, p_beta, 0, slope, i_m, i_c, mask, m_i, C)
    b_m1, b_z1, b_p1 = normalised(p_m, p_affine, p_beta, 1, slope, i_m, i_c, mask, m_i, C)
    b_m2, b_z2, b_p2 = normalised(p_m, p_affine, p_beta, 2, slope, i_m, i_c, mask, m_i, C)
    b_m3, b_z3, b_p3 = normalised(p_m, p_affine, p_beta, 3, slope, i_m, i_c, mask, m_i, C)
    b_p0, b_p1, b_p2, b_p3 = _softmax(b_p0, b_p1, b_p2, b_p3)
    i_dy = i_t[:, None] * (dy_t.to(tl.int64) * ALIGN) + i_c[None, :]
    b_g0, b_g1, b_g2, b_g3 = _gradients(p_dy, dy_i, i_dy, mask)
    b_dot = b_g0 * b_p0 + b_g1 * b_p1 + b_g2 * b_p2 + b_g3 * b_p3
    i_latent = i_t[:, None] * (latent_t.to(tl.int64) * ALIGN) + i_c[None, :]
    b_latent = tl.load(p_latent + i_latent, mask=mask, other=0.0).to(tl.float32)
    i_dm = i_t.to(tl.int64)[:, None] * C + i_c[None, :]
    size = T.to(tl.int64) * C
    p_dm += i_n * 4 * size
    b_du = b_p0 * b_latent * (b_g0 - b_dot)
    dslope = _finish(b_m0, b_z0, b_du, p_affine, p_norm, p_dm, 0, slope, i_dm, i_c, mask, C)
    b_du = b_p1 * b_latent * (b_g1 - b_dot)
    dslope += _finish(b_m1, b_z1, b_du, p_affine, p_norm, p_dm + size, 1, slope, i_dm, i_c, mask, C)
    b_du = b_p2 * b_latent * (b_g2 - b_dot)
    dslope += _finish(b_m2, b_z2, b_du, p_affine, p_norm, p_dm + 2 * size, 2, slope, i_dm, i_c, mask, C)
    b_du = b_p3 * b_latent * (b_g3 - b_dot)
    dslope += _finish(b_m3, b_z3, b_du, p_affine, p_norm, p_dm + 3 * size, 3, slope, i_dm, i_c, mask, C)
    tl.store(p_dslope + tl.program_id(0), dslope)


def mask_tail_backward(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dm and dlatent (n, 1, T, C) in m's dtype and, in float32, dslope (1,), dgamma, dbeta; unit strides along channels."""
    n, _, frames, channels = m.shape
    tiles, block, align = -(-frames // TILE), channel_block(channels), alignment(dy, m, latent)
    blocks = -(-channels // block)
    programs = n * -(-frames // FRAMES) * blocks
    sums = torch.empty(n, 4, tiles, 2, channels, dtype=torch.float32, device=m.device)
    norm = torch.empty(n, 4, 4, channels, dtype=torch.float32, device=m.device)
    dslope = torch.empty(programs, dtype=torch.float32, device=m.device)
    dm = torch.empty(n, 4, frames, channels, dtype=m.dtype, device=m.device)
    dlatent = torch.empty(n, 1, frames, channels, dtype=m.dtype, device=m.device)
    shared = {
        "p_m": m, "p_latent": latent, "p_dy": dy, "p_slope": slope, "p_affine": affine, "p_beta": beta, "T": frames,
        **strides(align, m=m, latent=latent, dy=dy), "C": channels, "ALIGN": align, "BLOCK_T": FRAMES, "BLOCK_C": block,
        "num_warps": 8,  # with 4 the sums take 246 registers a thread
    }  # fmt: skip
    launch(mask_tail_sums_kernel, n * tiles * blocks, m, p_sums=sums, p_dlatent=dlatent, TILE=TILE, **shared)
    launch(
        norm_sums_kernel, n * 4 * GROUPS, m, p_sums=sums, p_affine=affine, p_out=norm, T=frames, C=channels,
        GROUPS=GROUPS, TILE=TILE, BLOCK_C=power_of_two(channels // GROUPS), num_warps=1,
    )  # fmt: skip
    launch(mask_tail_dx_kernel, programs, m, p_norm=norm, p_dm=dm, p_dslope=dslope, **shared)
    return dm, dlatent, dslope.sum(0, keepdim=True), norm[:, :, 2].sum(0), norm[:, :, 3].sum(0)
