"""The end of the masking network: group norm of PReLU(m), masks, product with the mixture's latent.

    z = PReLU(m, slope) as stored;  u = scale (z - mean) + beta
    p[i] = exp(u[i]) / sum_j exp(u[j]) over the first SOFTMAX instruments; 1 / (1 + exp(-u[i])) for each other one
    y[n, i, t, c] = p[n, i, t, c] latent[n, t, c]

A program loads and normalises each value once, and keeps the normalised values of all instruments in registers.
Bytes: m, y and the latent once: n (2 I + 1) T C sizeof(dtype). FLOPs: about 25 a value. Memory-bound at all sizes.

Backward takes two passes over dy, m and the latent. It needs no other activation of the forward.

    p, z, u as in the forward, computed again;  g[i] = dy[i] latent
    dlatent = sum_i dy[i] p[i]
    du[i] = p[i] (g[i] - sum_j g[j] p[j]) for an instrument in the softmax, j over all of these; p[i] (1 - p[i]) g[i] for others
    S[n, i, c] = sum_t du (z - mean);           D[n, i, c] = sum_t du
    dgamma = sum_n rstd S;  dbeta = sum_n D;    q, r from S and D as in group_norm.py
    dm = (scale du + q (z - mean) + r) PReLU'(m);  dslope = sum of dz m where m <= 0

The second pass loads m twice, the second time from the cache: to keep m and z until dm is known would take 60 more registers.
Bytes: m, dy and the latent twice, dm and dlatent once: n (5 I + 3) T C sizeof(dtype). Every sum has one fixed order: steps,
rows, tiles, items. On an H100, at the last stage of a training step, the passes are predicted to take 0.51 and 0.75 ms. The
bytes alone would take 0.46 and 0.60 ms, so instructions limit both passes (241 and 132 registers, four and three programs on a
multiprocessor).
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (prelu_4, norm_4, softmax) and
model/tasnet.py (the product). The algebra of group norm's backward is Wu and He 2018, section 3.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_norm import norm_sums
from .launch import TILE, alignment, channel_block, launch, strides
from .tile import activation, slope_of

__all__ = [
    "FRAMES", "PER_LN_2", "mask_tail_backward", "mask_tail_dx_kernel", "mask_tail_forward", "mask_tail_fwd_kernel",
    "mask_tail_sums_kernel", "masks", "shares", "tail_place",
]  # fmt: skip

PER_LN_2 = tl.constexpr(1.4426950408889634)
FRAMES = 32
"""Number of frames of a program. With 32 channels and 4 warps, a tile of one instrument takes eight registers a thread."""


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
    """Return m, z - mean and u / ln 2 of instrument ``i_i``, float32.

    m, z and u are defined at the top of this module. ``i_m`` are the offsets of the elements from the instrument's start.
    """
    b_m = tl.load(p_m + i_i * m_i + i_m, mask=mask, other=0.0)
    p_channel = p_affine + i_i * 4 * C + i_c
    b_scale = tl.load(p_channel, mask=i_c < C, other=0.0) * PER_LN_2
    b_mean = tl.load(p_channel + 2 * C, mask=i_c < C, other=0.0)
    b_beta = tl.load(p_beta + i_i * C + i_c, mask=i_c < C, other=0.0).to(tl.float32) * PER_LN_2
    b_centred = activation(b_m, slope) - b_mean[None, :]
    return b_m.to(tl.float32), b_centred, b_centred * b_scale[None, :] + b_beta[None, :]


@triton.jit
def shares(u, b_value, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr):
    """Return a tuple over the instruments: ``b_value`` times the mask, which is a share of the softmax, or a sigmoid.

    ``u`` is a tuple over the instruments, too. It holds u / ln 2 (see the top of this module), in float32.
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
        b_root = tl.rsqrt(b_sum)  # b_sum lies between 1 and SOFTMAX, so the extra steps of a division are not needed
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


SUMS_FRAMES = 16
"""Number of frames that a step of the first backward pass takes. With 32 channels and 2 warps, a step of one instrument takes
eight registers of each thread."""


@triton.jit
def _gradients(
    p_m, p_affine, p_beta, p_dy, p_latent, slope, i_m, i_c, i_dy, i_latent, mask, m_i, dy_i,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr,
):  # fmt: skip
    """Return dlatent and, as tuples over the instruments, m, z - mean and du, all float32. Past the end dy and du are 0."""
    m, z, p = masks(p_m, p_affine, p_beta, slope, 1.0, i_m, i_c, mask, m_i, C, INSTRUMENTS, SOFTMAX)
    b_latent = tl.load(p_latent + i_latent, mask=mask, other=0.0).to(tl.float32)
    dy = ()
    b_all, b_dot = tl.zeros(i_m.shape, tl.float32), tl.zeros(i_m.shape, tl.float32)
    for i_i in tl.static_range(INSTRUMENTS):
        dy = dy + (tl.load(p_dy + i_i * dy_i + i_dy, mask=mask, other=0.0).to(tl.float32),)
        b_all += dy[i_i] * p[i_i]
        if i_i == SOFTMAX - 1:
            b_dot = b_all
    du = ()
    for i_i in tl.static_range(INSTRUMENTS):
        if i_i < SOFTMAX:
            du = du + (p[i_i] * b_latent * (dy[i_i] - b_dot),)
        else:
            du = du + (p[i_i] * (1.0 - p[i_i]) * b_latent * dy[i_i],)
    return b_all, m, z, du


@triton.jit(do_not_specialize=["T", "m_n", "m_i", "m_t", "latent_n", "latent_i", "latent_t", "dy_n", "dy_i", "dy_t"])
def mask_tail_sums_kernel(
    p_m, p_latent, p_dy, p_slope, p_affine, p_beta, p_sums, p_dlatent, T,
    m_n, m_i, m_t, latent_n, latent_i, latent_t, dy_n, dy_i, dy_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr, ALIGN: tl.constexpr, TILE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute dlatent, S and D of TILE frames, in steps of BLOCK_T; S and D are the two rows of ``p_sums`` (n, I, tiles, 2, C).

    The rows of a step are added up once, after the last step: adding up the rows in every step took a third of the
    instructions.
    """
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
    p_affine += i_n * INSTRUMENTS * 4 * C
    s, d = (), ()
    for _ in tl.static_range(INSTRUMENTS):
        s = s + (tl.zeros([BLOCK_T, BLOCK_C], tl.float32),)
        d = d + (tl.zeros([BLOCK_T, BLOCK_C], tl.float32),)
    for first in range(0, TILE, BLOCK_T):
        i_t = i_tile * TILE + first + tl.arange(0, BLOCK_T)
        mask = (i_t < T)[:, None] & m_c[None, :]
        i_m, i_dy = i_t[:, None] * m_t + i_c[None, :], i_t[:, None] * dy_t + i_c[None, :]
        i_latent = i_t[:, None] * latent_t + i_c[None, :]
        b_all, m, z, du = _gradients(
            p_m, p_affine, p_beta, p_dy, p_latent, slope, i_m, i_c, i_dy, i_latent, mask, m_i, dy_i, C, INSTRUMENTS, SOFTMAX
        )  # fmt: skip
        i_dlatent = i_t.to(tl.int64)[:, None] * C + i_c[None, :]
        tl.store(p_dlatent + i_dlatent, b_all.to(p_dlatent.dtype.element_ty), mask=mask)
        more_s, more_d = (), ()
        for i_i in tl.static_range(INSTRUMENTS):
            more_s = more_s + (s[i_i] + du[i_i] * z[i_i],)
            more_d = more_d + (d[i_i] + du[i_i],)
        s, d = more_s, more_d
    for i_i in tl.static_range(INSTRUMENTS):
        p_own = p_sums + ((i_n * INSTRUMENTS + i_i) * tiles + i_tile) * 2 * C + i_c
        tl.store(p_own, tl.sum(s[i_i], 0), mask=m_c)
        tl.store(p_own + C, tl.sum(d[i_i], 0), mask=m_c)


@triton.jit(do_not_specialize=["T", "m_n", "m_i", "m_t", "latent_n", "latent_i", "latent_t", "dy_n", "dy_i", "dy_t"])
def mask_tail_dx_kernel(
    p_m, p_latent, p_dy, p_slope, p_affine, p_beta, p_norm, p_dm, p_dslope, T,
    m_n, m_i, m_t, latent_n, latent_i, latent_t, dy_n, dy_i, dy_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, SOFTMAX: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute dm of BLOCK_T frames and BLOCK_C channels of one item, for all instruments, and a partial sum of dslope."""
    i_n, _, i_t, i_c = tail_place(T, C, BLOCK_T, BLOCK_C)
    i_n, slope = i_n.to(tl.int64), slope_of(p_slope)
    mask = (i_t < T)[:, None] & (i_c < C)[None, :]
    m_i, dy_i = m_i.to(tl.int64) * ALIGN, dy_i.to(tl.int64) * ALIGN
    p_m += i_n * (m_n.to(tl.int64) * ALIGN)
    p_dy += i_n * (dy_n.to(tl.int64) * ALIGN)
    p_latent += i_n * (latent_n.to(tl.int64) * ALIGN)
    p_affine += i_n * INSTRUMENTS * 4 * C
    p_norm += i_n * INSTRUMENTS * 4 * C
    i_m = i_t[:, None] * (m_t.to(tl.int64) * ALIGN) + i_c[None, :]
    i_dy = i_t[:, None] * (dy_t.to(tl.int64) * ALIGN) + i_c[None, :]
    i_latent = i_t[:, None] * (latent_t.to(tl.int64) * ALIGN) + i_c[None, :]
    _, _, _, du = _gradients(
        p_m, p_affine, p_beta, p_dy, p_latent, slope, i_m, i_c, i_dy, i_latent, mask, m_i, dy_i, C, INSTRUMENTS, SOFTMAX
    )
    i_dm = i_t.to(tl.int64)[:, None] * C + i_c[None, :]
    size = T.to(tl.int64) * C
    p_dm += i_n * INSTRUMENTS * size
    # Take the sum over the tile once, after all instruments: then no sum delays the loads of the next instrument.
    b_dslope = tl.zeros(i_dm.shape, tl.float32)
    for i_i in tl.static_range(INSTRUMENTS):
        p_channel = p_norm + i_i * 4 * C + i_c
        b_scale = tl.load(p_affine + i_i * 4 * C + i_c, mask=i_c < C, other=0.0)
        b_q = tl.load(p_channel, mask=i_c < C, other=0.0)
        b_r = tl.load(p_channel + C, mask=i_c < C, other=0.0)
        # Load m again, with another cache hint: the compiler then does not keep the first m in registers.
        b_m = tl.load(p_m + i_i * m_i + i_m, mask=mask, other=0.0, eviction_policy="evict_first")
        b_mean = tl.load(p_affine + (i_i * 4 + 2) * C + i_c, mask=i_c < C, other=0.0)
        b_z = activation(b_m, slope) - b_mean[None, :]
        b_m = b_m.to(tl.float32)
        b_dz = b_scale[None, :] * du[i_i] + b_q[None, :] * b_z + b_r[None, :]
        b_dm = tl.where(b_m > 0, b_dz, slope * b_dz)
        tl.store(p_dm + i_i * size + i_dm, b_dm.to(p_dm.dtype.element_ty), mask=mask)
        b_dslope += b_dz * tl.minimum(b_m, 0.0)  # m is 0 past the end
    tl.store(p_dslope + tl.program_id(0), tl.sum(b_dslope))


def mask_tail_backward(
    dy: Tensor, m: Tensor, latent: Tensor, slope: Tensor, affine: Tensor, beta: Tensor, softmax: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return dm (n, I, T, C) and dlatent (n, 1, T, C) in m's dtype and, in float32, dslope (1,), dgamma and dbeta (I, C).

    ``dy``, ``m`` and ``latent`` have unit stride along channels.
    """
    n, instruments, frames, channels = m.shape
    tiles, block, align = -(-frames // TILE), channel_block(channels), alignment(dy, m, latent)
    blocks = -(-channels // block)
    programs = n * -(-frames // FRAMES) * blocks
    sums = torch.empty(n, instruments, tiles, 2, channels, dtype=torch.float32, device=m.device)
    dslope = torch.empty(programs, dtype=torch.float32, device=m.device)
    dm = torch.empty(n, instruments, frames, channels, dtype=m.dtype, device=m.device)
    dlatent = torch.empty(n, 1, frames, channels, dtype=m.dtype, device=m.device)
    shared = {
        "p_m": m, "p_latent": latent, "p_dy": dy, "p_slope": slope, "p_affine": affine, "p_beta": beta, "T": frames,
        **strides(align, m=m, latent=latent, dy=dy), "C": channels, "INSTRUMENTS": instruments, "SOFTMAX": softmax,
        "ALIGN": align, "BLOCK_C": block,
    }  # fmt: skip
    launch(
        mask_tail_sums_kernel, n * tiles * blocks, m, p_sums=sums, p_dlatent=dlatent, TILE=TILE,
        BLOCK_T=SUMS_FRAMES, num_warps=2, **shared,
    )  # fmt: skip
    norm = norm_sums(sums, affine, frames)
    launch(
        mask_tail_dx_kernel, programs, m, p_norm=norm, p_dm=dm, p_dslope=dslope, BLOCK_T=FRAMES, num_warps=4, **shared
    )
    return dm, dlatent, dslope.sum(0, keepdim=True), norm[:, :, 2].sum(0), norm[:, :, 3].sum(0)
