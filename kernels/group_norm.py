"""Group norm of PReLU(x) at the start of the residual stream: the only norm whose result is stored.

    z = PReLU(x, slope) as stored;  y = scale (z - mean) + beta
    backward: S[n, i, c] = sum_t dy (z - mean);  D[n, i, c] = sum_t dy
              dgamma = sum_n rstd S;  dbeta = sum_n D
              dz = scale dy + q (z - mean) + r, with M = T C / 8 values in a group, and sums over the group's channels
                   r = -1/M sum_c scale D;  q = -rstd^2 / M sum_c scale S
              dx = dz PReLU'(x);  dslope = sum dz x where x <= 0

Bytes: forward moves x and y once; backward moves x and dy twice, dx once: 7 n I T C sizeof(dtype) in all. All passes are
memory-bound. Every sum has one fixed order: frames in a tile, tiles, items.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (prelu_2 and norm_2 after in_conv).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, alignment, channel_block, launch, power_of_two, strides
from .statistics import GROUPS
from .tile import activation, slope_of

__all__ = [
    "group_norm_backward", "group_norm_dx_kernel", "group_norm_forward", "group_norm_fwd_kernel",
    "group_norm_sums_kernel", "norm_sums", "norm_sums_kernel",
]  # fmt: skip


@triton.jit
def _place(T, C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the place of this program's work: its tile among those of all items and instruments, the index of its item and
    instrument, its frames and its channels."""
    blocks = tl.cdiv(C, BLOCK_C)
    row = tl.program_id(0) // blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_t = (row % tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return row, row // tiles, i_t, i_c


@triton.jit
def _load(p_x, n, i, t, i_ni, i_t, i_c, mask, ALIGN: tl.constexpr, INSTRUMENTS: tl.constexpr):
    """Load frames ``i_t`` and channels ``i_c`` of an activation, whose strides ``n``, ``i``, ``t`` count ALIGN elements."""
    p_x += (i_ni // INSTRUMENTS) * (n.to(tl.int64) * ALIGN) + (i_ni % INSTRUMENTS) * (i.to(tl.int64) * ALIGN)
    return tl.load(p_x + i_t[:, None] * (t.to(tl.int64) * ALIGN) + i_c[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["T", "x_n", "x_i", "x_t"])
def group_norm_fwd_kernel(
    p_x, p_slope, p_affine, p_beta, p_y, T, x_n, x_i, x_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute y of one tile and BLOCK_C channels of one item and instrument."""
    _, i_ni, i_t, i_c = _place(T, C, BLOCK_T, BLOCK_C)
    m_c = i_c < C
    mask = (i_t < T)[:, None] & m_c[None, :]
    b_x = _load(p_x, x_n, x_i, x_t, i_ni, i_t, i_c, mask, ALIGN, INSTRUMENTS)
    p_affine += i_ni.to(tl.int64) * 4 * C + i_c
    b_scale = tl.load(p_affine, mask=m_c, other=0.0)
    b_mean = tl.load(p_affine + 2 * C, mask=m_c, other=0.0)
    b_beta = tl.load(p_beta + (i_ni % INSTRUMENTS) * C + i_c, mask=m_c, other=0.0).to(tl.float32)
    b_y = (activation(b_x, slope_of(p_slope)) - b_mean[None, :]) * b_scale[None, :] + b_beta[None, :]
    p_y += i_ni.to(tl.int64) * T * C
    tl.store(p_y + i_t.to(tl.int64)[:, None] * C + i_c[None, :], b_y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "dy_n", "dy_i", "dy_t", "x_n", "x_i", "x_t"])
def group_norm_sums_kernel(
    p_dy, p_x, p_slope, p_affine, p_sums, T, dy_n, dy_i, dy_t, x_n, x_i, x_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute S and D of one tile and BLOCK_C channels; write them as the two rows of ``p_sums`` (n, I, tiles, 2, C)."""
    row, i_ni, i_t, i_c = _place(T, C, BLOCK_T, BLOCK_C)
    m_c = i_c < C
    mask = (i_t < T)[:, None] & m_c[None, :]
    b_dy = _load(p_dy, dy_n, dy_i, dy_t, i_ni, i_t, i_c, mask, ALIGN, INSTRUMENTS).to(tl.float32)
    b_z = activation(_load(p_x, x_n, x_i, x_t, i_ni, i_t, i_c, mask, ALIGN, INSTRUMENTS), slope_of(p_slope))
    b_mean = tl.load(p_affine + (i_ni.to(tl.int64) * 4 + 2) * C + i_c, mask=m_c, other=0.0)
    p_sums += row.to(tl.int64) * 2 * C + i_c
    tl.store(p_sums, tl.sum(b_dy * (b_z - b_mean[None, :]), 0), mask=m_c)
    tl.store(p_sums + C, tl.sum(b_dy, 0), mask=m_c)


@triton.jit(do_not_specialize=["T"])
def norm_sums_kernel(
    p_sums, p_affine, p_out, T, C: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Compute the four rows of ``p_out`` (n, I, 4, C) for one group of one item and instrument: q, r, and the item's terms of
    dgamma and dbeta."""
    i_ni, i_group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    width = C // GROUPS
    tiles = tl.cdiv(T, TILE)
    i_c = i_group * width + tl.arange(0, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < width
    b_s = tl.zeros([BLOCK_C], tl.float32)
    b_d = tl.zeros([BLOCK_C], tl.float32)
    for i_tile in range(tiles):
        p_tile = p_sums + (i_ni.to(tl.int64) * tiles + i_tile) * 2 * C + i_c
        b_s += tl.load(p_tile, mask=m_c, other=0.0)
        b_d += tl.load(p_tile + C, mask=m_c, other=0.0)
    p_affine += i_ni.to(tl.int64) * 4 * C + i_c
    b_scale = tl.load(p_affine, mask=m_c, other=0.0)
    b_rstd = tl.load(p_affine + 3 * C, mask=m_c, other=0.0)
    count = width * T.to(tl.float32)
    p_out += i_ni.to(tl.int64) * 4 * C + i_c
    tl.store(p_out, -b_rstd * b_rstd * (tl.sum(b_scale * b_s, 0) / count), mask=m_c)
    tl.store(p_out + C, tl.zeros([BLOCK_C], tl.float32) - tl.sum(b_scale * b_d, 0) / count, mask=m_c)
    tl.store(p_out + 2 * C, b_rstd * b_s, mask=m_c)
    tl.store(p_out + 3 * C, b_d, mask=m_c)


@triton.jit(do_not_specialize=["T", "dy_n", "dy_i", "dy_t", "x_n", "x_i", "x_t"])
def group_norm_dx_kernel(
    p_dy, p_x, p_slope, p_affine, p_norm, p_dx, p_dslope, T, dy_n, dy_i, dy_t, x_n, x_i, x_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute dx of one tile and BLOCK_C channels of one item and instrument, and a partial sum of dslope."""
    _, i_ni, i_t, i_c = _place(T, C, BLOCK_T, BLOCK_C)
    m_c = i_c < C
    mask = (i_t < T)[:, None] & m_c[None, :]
    b_dy = _load(p_dy, dy_n, dy_i, dy_t, i_ni, i_t, i_c, mask, ALIGN, INSTRUMENTS).to(tl.float32)
    b_x = _load(p_x, x_n, x_i, x_t, i_ni, i_t, i_c, mask, ALIGN, INSTRUMENTS)
    slope = slope_of(p_slope)
    p_affine += i_ni.to(tl.int64) * 4 * C + i_c
    p_norm += i_ni.to(tl.int64) * 4 * C + i_c
    b_scale = tl.load(p_affine, mask=m_c, other=0.0)
    b_mean = tl.load(p_affine + 2 * C, mask=m_c, other=0.0)
    b_q = tl.load(p_norm, mask=m_c, other=0.0)
    b_r = tl.load(p_norm + C, mask=m_c, other=0.0)
    b_dz = b_scale[None, :] * b_dy + b_q[None, :] * (activation(b_x, slope) - b_mean[None, :]) + b_r[None, :]
    b_x = b_x.to(tl.float32)
    p_dx += i_ni.to(tl.int64) * T * C
    b_dx = tl.where(b_x > 0, b_dz, slope * b_dz).to(p_dx.dtype.element_ty)
    tl.store(p_dx + i_t.to(tl.int64)[:, None] * C + i_c[None, :], b_dx, mask=mask)
    tl.store(p_dslope + tl.program_id(0), tl.sum(tl.where((b_x > 0) | ~mask, 0.0, b_dz * b_x)))


def norm_sums(sums: Tensor, affine: Tensor, frames: int) -> Tensor:
    """Return the rows q, r, and the items' terms of dgamma and dbeta, (n, I, 4, C) float32.

    ``sums`` (n, I, tiles, 2, C) holds S and D of every tile of ``frames`` frames in all.
    """
    n, instruments, _, _, channels = sums.shape
    norm = torch.empty(n, instruments, 4, channels, dtype=torch.float32, device=sums.device)
    launch(
        norm_sums_kernel, n * instruments * GROUPS, sums, p_sums=sums, p_affine=affine, p_out=norm, T=frames, C=channels,
        GROUPS=GROUPS, TILE=TILE, BLOCK_C=power_of_two(channels // GROUPS), num_warps=1,
    )  # fmt: skip
    return norm


def group_norm_forward(x: Tensor, slope: Tensor, affine: Tensor, beta: Tensor) -> Tensor:
    """Return y (n, I, T, C) in x's dtype; ``x`` (n, I, T, C) has unit stride along channels."""
    n, instruments, frames, channels = x.shape
    y = torch.empty(n, instruments, frames, channels, dtype=x.dtype, device=x.device)
    block, align = channel_block(channels), alignment(x)
    launch(
        group_norm_fwd_kernel, n * instruments * -(-frames // TILE) * -(-channels // block), x,
        p_x=x, p_slope=slope, p_affine=affine, p_beta=beta, p_y=y, T=frames, **strides(align, x=x),
        C=channels, INSTRUMENTS=instruments, ALIGN=align, BLOCK_T=TILE, BLOCK_C=block, num_warps=8,
    )  # fmt: skip
    return y


def group_norm_backward(dy: Tensor, x: Tensor, slope: Tensor, affine: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx in x's dtype and, in float32, dslope (1,), dgamma and dbeta (I, C).

    ``dy`` and ``x`` have unit stride along channels.
    """
    n, instruments, frames, channels = x.shape
    tiles, block, align = -(-frames // TILE), channel_block(channels), alignment(dy, x)
    programs = n * instruments * tiles * -(-channels // block)
    sums = torch.empty(n, instruments, tiles, 2, channels, dtype=torch.float32, device=x.device)
    dslope = torch.empty(programs, dtype=torch.float32, device=x.device)
    dx = torch.empty(n, instruments, frames, channels, dtype=x.dtype, device=x.device)
    shared = {
        "p_dy": dy, "p_x": x, "p_slope": slope, "p_affine": affine, "T": frames, **strides(align, dy=dy, x=x),
        "C": channels, "INSTRUMENTS": instruments, "ALIGN": align, "BLOCK_T": TILE, "BLOCK_C": block, "num_warps": 4,
    }  # fmt: skip
    launch(group_norm_sums_kernel, programs, x, p_sums=sums, **shared)
    norm = norm_sums(sums, affine, frames)
    launch(group_norm_dx_kernel, programs, x, p_norm=norm, p_dx=dx, p_dslope=dslope, **shared)
    return dx, dslope.sum(0, keepdim=True), norm[:, :, 2].sum(0), norm[:, :, 3].sum(0)
