"""Group norm, dilated depthwise convolution of three taps and PReLU in one pass, with the next norm's statistics.

    z = PReLU(x, slope) as stored;  m = scale (z - mean) + beta for 0 <= t < T, and 0 outside: the original pads after the norm
    a[n, i, t, c] = sum_k w[i, c, k] m[n, i, t + (k - 1) dilation, c]
    y = PReLU(a, next_slope)
    partials[n, i, tile, :, c] = (mean, M2) of y as stored

The norm is applied to each tap as it is loaded, not folded into the taps: both cost a few instructions of a memory-bound
kernel, and z - mean loses no digits to an offset.
Bytes: x once, y once, 2 n I T C sizeof(dtype); the shifted taps of a tile come from the caches (32 channels are 64 or 128
contiguous bytes in every frame). FLOPs: about 15 n I T C. Memory-bound everywhere.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (dconv1d, prelu_2, norm_2's statistics).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, alignment, channel_block, launch, strides
from .tile import activation, prelu, slope_of, store_moments
from .tuned import configuration

__all__ = ["channel_parameters", "depthwise_forward", "depthwise_fwd_kernel", "load_tap"]


@triton.jit
def load_tap(p_x, i_t, T, i_c, m_c, x_t, slope):
    """x and z of frames ``i_t``, zero outside the signal, and where it is inside."""
    mask = ((i_t >= 0) & (i_t < T))[:, None] & m_c[None, :]
    b_x = tl.load(p_x + i_t[:, None] * x_t + i_c[None, :], mask=mask, other=0.0)
    return b_x.to(tl.float32), activation(b_x, slope), mask


@triton.jit
def channel_parameters(p_affine, p_beta, p_w, i_ni, i_c, m_c, C: tl.constexpr, INSTRUMENTS: tl.constexpr):
    """scale, mean, beta and the three taps of some channels of one item and instrument, float32."""
    p_affine += i_ni.to(tl.int64) * 4 * C + i_c
    i_parameter = (i_ni % INSTRUMENTS) * C + i_c
    b_scale = tl.load(p_affine, mask=m_c, other=0.0)
    b_mean = tl.load(p_affine + 2 * C, mask=m_c, other=0.0)
    b_beta = tl.load(p_beta + i_parameter, mask=m_c, other=0.0).to(tl.float32)
    b_w0 = tl.load(p_w + i_parameter * 3, mask=m_c, other=0.0).to(tl.float32)
    b_w1 = tl.load(p_w + i_parameter * 3 + 1, mask=m_c, other=0.0).to(tl.float32)
    b_w2 = tl.load(p_w + i_parameter * 3 + 2, mask=m_c, other=0.0).to(tl.float32)
    return b_scale, b_mean, b_beta, b_w0, b_w1, b_w2


@triton.jit(do_not_specialize=["T", "dilation", "x_n", "x_i", "x_t"])
def depthwise_fwd_kernel(
    p_x, p_w, p_slope, p_affine, p_beta, p_next_slope, p_y, p_statistics, T, dilation, x_n, x_i, x_t,
    C: tl.constexpr, LD: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: one tile of one item and instrument, BLOCK_C channels. Frames of y are LD elements apart."""
    blocks = tl.cdiv(C, BLOCK_C)
    row = tl.program_id(0) // blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_ni, i_tile = row // tiles, row % tiles
    i_t = i_tile * BLOCK_T + tl.arange(0, BLOCK_T)
    i_c = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_t, m_c = i_t < T, i_c < C
    x_t = x_t.to(tl.int64) * ALIGN
    p_x += (i_ni // INSTRUMENTS) * (x_n.to(tl.int64) * ALIGN) + (i_ni % INSTRUMENTS) * (x_i.to(tl.int64) * ALIGN)
    slope, next_slope = slope_of(p_slope), slope_of(p_next_slope)
    b_scale, b_mean, b_beta, b_w0, b_w1, b_w2 = channel_parameters(
        p_affine, p_beta, p_w, i_ni, i_c, m_c, C, INSTRUMENTS
    )
    b_a = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for k in tl.static_range(3):
        _, b_z, m_tap = load_tap(p_x, i_t + (k - 1) * dilation, T, i_c, m_c, x_t, slope)
        b_m = tl.where(m_tap, (b_z - b_mean[None, :]) * b_scale[None, :] + b_beta[None, :], 0.0)
        b_w = b_w0 if k == 0 else (b_w1 if k == 1 else b_w2)
        b_a += b_w[None, :] * b_m
    b_y = prelu(b_a, next_slope).to(p_y.dtype.element_ty)
    p_y += i_ni.to(tl.int64) * T * LD
    tl.store(p_y + i_t.to(tl.int64)[:, None] * LD + i_c[None, :], b_y, mask=m_t[:, None] & m_c[None, :])
    if p_statistics is not None:
        count = tl.minimum(T - i_tile * BLOCK_T, BLOCK_T).to(tl.float32)
        store_moments(b_y.to(tl.float32), m_t, count, p_statistics, row, i_c, m_c, C)


def depthwise_forward(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor, affine: Tensor, beta: Tensor, next_slope: Tensor,
    y: Tensor | None = None, statistics: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """y (n, I, T, C) in x's dtype, and its partials into ``statistics`` if given; ``x`` with unit stride along channels.

    A given ``y`` may be some channels of a contiguous tensor with more of them.
    """
    n, instruments, frames, channels = x.shape
    if y is None:
        y = torch.empty(n, instruments, frames, channels, dtype=x.dtype, device=x.device)
    defaults = {"BLOCK_C": channel_block(channels), "num_warps": 4}
    chosen = configuration("depthwise_fwd", x, False, defaults, C=channels)
    block, align = chosen["BLOCK_C"], alignment(x)
    launch(
        depthwise_fwd_kernel, n * instruments * -(-frames // TILE) * -(-channels // block), x,
        p_x=x, p_w=weight, p_slope=slope, p_affine=affine, p_beta=beta, p_next_slope=next_slope, p_y=y,
        p_statistics=statistics, T=frames, C=channels, LD=y.stride(1) // frames, dilation=dilation,
        INSTRUMENTS=instruments, **strides(align, x=x), ALIGN=align, BLOCK_T=TILE, **chosen,
    )  # fmt: skip
    return y
