"""Group norm, dilated depthwise convolution with three taps and PReLU in one pass, with the next norm's statistics.

    z = PReLU(x, slope) as stored;  m = scale (z - mean) + beta for 0 <= t < T, and 0 outside: the original pads after the norm
    a[n, i, t, c] = sum_k w[i, c, k] m[n, i, t + (k - 1) dilation, c]
    y = PReLU(a, next_slope)
    partials[n, i, tile, :, c] = (mean, M2) of y as stored

The norm is applied to the values, not folded into the taps, because z - mean loses no digits to an offset. The frames of a tile
form ROWS rows; the frames of a row are a dilation apart. In each step a row loads and normalises one value, which serves all
three taps; at the start it loads two more. So each value is loaded (STEPS + 2) / STEPS times: 1.125 times with sixteen steps,
1.5 times with four. If the dilation divides no choice of ROWS, a row has one step, and each value is loaded three times. With
any dilation, one warp takes eight rows at a time, so that sums over rows need few shuffles, and loads two steps at once. Tiles
whose neighbours are all inside the signal (all but a few at the ends) need no masks, which saves a tenth of the instructions.
Bytes: x once, y once, 2 n I T C sizeof(dtype); values that rows share come from the caches (32 channels are 64 or 128
contiguous bytes in every frame). FLOPs: about 15 n I T C. Memory-bound: 0.202 ms predicted for one block of a song on an H100
(at most 186 registers, at least ten programs a multiprocessor).
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py (dconv1d, prelu_2, norm_2's statistics).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, alignment, channel_block, launch, strides
from .tile import activation, prelu, slope_of, store_moments_of_rows
from .tuned import configuration

__all__ = [
    "BACKWARD_ROWS", "channel_parameters", "depthwise_forward", "depthwise_fwd_kernel", "load_frames",
    "load_normalised", "place", "rows_of", "starts", "taps",
]  # fmt: skip

FORWARD_ROWS, BACKWARD_ROWS = (8, 16, 32), (32,)
"""Choices of ROWS. The smallest one that is a multiple of the dilation is used. All dilations of the network divide 32."""
LANES = 8
"""Rows that a program of the forward takes at a time."""


@triton.jit
def place(T, dilation, C: tl.constexpr, BLOCK_T: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the place of this program's work.

    This is the index of its tile among the tiles of all items and instruments, the index of its item and instrument, the
    frames at which its rows start, and its channels.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    row = tl.program_id(0) // blocks
    tiles = tl.cdiv(T, BLOCK_T)
    i_first = (row % tiles) * BLOCK_T + starts(tl.arange(0, ROWS), dilation, BLOCK_T // ROWS)
    return row, row // tiles, i_first, (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def starts(i_row, dilation, STEPS: tl.constexpr):
    """Return the frames of a tile at which the rows ``i_row`` start."""
    # The rows of a group start at neighbouring frames; with all steps the group fills STEPS * dilation frames.
    if STEPS > 1:
        i_row = (i_row // dilation) * (STEPS * dilation) + i_row % dilation
    return i_row


@triton.jit
def load_frames(p_x, i_t, T, i_c, m_c, x_t, INSIDE: tl.constexpr = False):
    """Return the values of frames ``i_t``, zero outside the signal, and the mask of the values inside.

    INSIDE says that all frames and channels are inside; then no mask is applied.
    """
    mask = ((i_t >= 0) & (i_t < T))[:, None] & m_c[None, :]
    p_x += i_t[:, None] * x_t + i_c[None, :]
    if INSIDE:
        b_x = tl.load(p_x)
    else:
        b_x = tl.load(p_x, mask=mask, other=0.0)
    return b_x, mask


@triton.jit
def channel_parameters(p_affine, p_beta, p_w, i_ni, i_c, m_c, C: tl.constexpr, INSTRUMENTS: tl.constexpr):
    """Load scale, mean, beta and the three taps of channels ``i_c`` of one item and instrument, as float32."""
    p_affine += i_ni.to(tl.int64) * 4 * C + i_c
    i_parameter = (i_ni % INSTRUMENTS) * C + i_c
    b_scale = tl.load(p_affine, mask=m_c, other=0.0)
    b_mean = tl.load(p_affine + 2 * C, mask=m_c, other=0.0)
    b_beta = tl.load(p_beta + i_parameter, mask=m_c, other=0.0).to(tl.float32)
    b_w0 = tl.load(p_w + i_parameter * 3, mask=m_c, other=0.0).to(tl.float32)
    b_w1 = tl.load(p_w + i_parameter * 3 + 1, mask=m_c, other=0.0).to(tl.float32)
    b_w2 = tl.load(p_w + i_parameter * 3 + 2, mask=m_c, other=0.0).to(tl.float32)
    return b_scale, b_mean, b_beta, b_w0, b_w1, b_w2


@triton.jit
def load_normalised(p_x, i_t, T, i_c, m_c, x_t, slope, b_scale, b_mean, b_beta, INSIDE: tl.constexpr = False):
    """Return x, z - mean and m (see the top of this module) of frames ``i_t``, all zero outside the signal."""
    b_x, mask = load_frames(p_x, i_t, T, i_c, m_c, x_t, INSIDE)
    b_z, b_m = normalised(b_x, mask, slope, b_scale, b_mean, b_beta, INSIDE)
    return b_x, b_z, b_m


@triton.jit
def normalised(b_x, mask, slope, b_scale, b_mean, b_beta, INSIDE: tl.constexpr):
    """Return z - mean and m of the loaded values ``b_x``, both zero outside the signal."""
    b_z = activation(b_x, slope) - b_mean[None, :]
    b_m = b_z * b_scale[None, :] + b_beta[None, :]
    if not INSIDE:
        b_z, b_m = tl.where(mask, b_z, 0.0), tl.where(mask, b_m, 0.0)
    return b_z, b_m


@triton.jit
def taps(b_m0, b_m1, b_m2, b_w0, b_w1, b_w2):
    """Return a, the input of the second PReLU, from m of the three taps.

    Forward and backward both call this function: a must have the same sign in both, since its sign selects the PReLU's side.
    """
    b_a = b_w0[None, :] * b_m0
    b_a += b_w1[None, :] * b_m1
    b_a += b_w2[None, :] * b_m2
    return b_a


@triton.jit
def _tile(
    p_x, p_y, first, i_c, m_c, T, dilation, x_t, slope, next_slope, b_scale, b_mean, b_beta, b_w0, b_w1, b_w2,
    LD: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr,
    STATISTICS: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Store y of a tile, LANES rows at a time. Return for each lane: its first value, the sum of the differences from this
    value, the sum of the squared differences, and the number of frames.

    INSIDE says that no masks are needed: all frames, also those a dilation before and after, are in the signal, and BLOCK_C
    divides C.
    """
    b_pivot = tl.zeros([LANES, BLOCK_C], tl.float32)
    b_sum, b_squares, b_count = b_pivot, b_pivot, tl.zeros([LANES], tl.int32)
    for walk in tl.static_range(ROWS // LANES):
        i_first = first + starts(walk * LANES + tl.arange(0, LANES), dilation, STEPS)
        _, _, b_m0 = load_normalised(p_x, i_first - dilation, T, i_c, m_c, x_t, slope, b_scale, b_mean, b_beta, INSIDE)
        _, _, b_m1 = load_normalised(p_x, i_first, T, i_c, m_c, x_t, slope, b_scale, b_mean, b_beta, INSIDE)
        for step in tl.static_range(STEPS):
            i_t = i_first + step * dilation
            # Load two steps at once: a load waits for earlier stores, so this halves the number of waits.
            if step % 2 == 0:
                b_x, mask = load_frames(p_x, i_t + dilation, T, i_c, m_c, x_t, INSIDE)
                if step + 1 < STEPS:
                    b_ahead, ahead = load_frames(p_x, i_t + 2 * dilation, T, i_c, m_c, x_t, INSIDE)
            else:
                b_x, mask = b_ahead, ahead
            _, b_m2 = normalised(b_x, mask, slope, b_scale, b_mean, b_beta, INSIDE)
            b_y = prelu(taps(b_m0, b_m1, b_m2, b_w0, b_w1, b_w2), next_slope).to(p_y.dtype.element_ty)
            m_t = (i_t < T)[:, None]
            p_row = p_y + i_t.to(tl.int64)[:, None] * LD + i_c[None, :]
            if INSIDE:
                tl.store(p_row, b_y)
            else:
                tl.store(p_row, b_y, mask=m_t & m_c[None, :])
            if STATISTICS:
                # Take moments about each lane's first value, so that a constant offset costs no digits.
                if walk + step == 0:
                    b_pivot = b_y.to(tl.float32)
                else:
                    b_d = b_y.to(tl.float32) - b_pivot
                    if not INSIDE:
                        b_d = tl.where(m_t, b_d, 0.0)
                    b_sum += b_d
                    b_squares += b_d * b_d
            b_m0, b_m1 = b_m1, b_m2
        b_count += tl.minimum(tl.maximum(tl.cdiv(T - i_first, dilation), 0), STEPS)
    return b_pivot, b_sum, b_squares, b_count.to(tl.float32)[:, None]


@triton.jit(do_not_specialize=["T", "dilation", "x_n", "x_i", "x_t"])
def depthwise_fwd_kernel(
    p_x, p_w, p_slope, p_affine, p_beta, p_next_slope, p_y, p_statistics, T, dilation, x_n, x_i, x_t,
    C: tl.constexpr, LD: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute y and its partials for one tile and BLOCK_C channels of one item and instrument.

    Frames of y are LD elements apart.
    """
    STEPS: tl.constexpr = BLOCK_T // ROWS
    row, i_ni, _, i_c = place(T, dilation, C, BLOCK_T, ROWS, BLOCK_C)
    m_c = i_c < C
    x_t = x_t.to(tl.int64) * ALIGN
    p_x += (i_ni // INSTRUMENTS) * (x_n.to(tl.int64) * ALIGN) + (i_ni % INSTRUMENTS) * (x_i.to(tl.int64) * ALIGN)
    p_y += i_ni.to(tl.int64) * T * LD
    slope, next_slope = slope_of(p_slope), slope_of(p_next_slope)
    b_scale, b_mean, b_beta, b_w0, b_w1, b_w2 = channel_parameters(
        p_affine, p_beta, p_w, i_ni, i_c, m_c, C, INSTRUMENTS
    )
    first = (row % tl.cdiv(T, BLOCK_T)) * BLOCK_T
    if (first >= dilation) & (first + BLOCK_T + dilation <= T) & (C % BLOCK_C == 0):
        b_pivot, b_sum, b_squares, b_count = _tile(
            p_x, p_y, first, i_c, m_c, T, dilation, x_t, slope, next_slope, b_scale, b_mean, b_beta, b_w0, b_w1, b_w2,
            LD, STEPS, ROWS, LANES, BLOCK_C, p_statistics is not None, True,
        )  # fmt: skip
    else:
        b_pivot, b_sum, b_squares, b_count = _tile(
            p_x, p_y, first, i_c, m_c, T, dilation, x_t, slope, next_slope, b_scale, b_mean, b_beta, b_w0, b_w1, b_w2,
            LD, STEPS, ROWS, LANES, BLOCK_C, p_statistics is not None, False,
        )  # fmt: skip
    if p_statistics is not None:
        b_shift = b_sum / tl.maximum(b_count, 1.0)
        b_m2s = b_squares - b_sum * b_shift
        store_moments_of_rows(b_pivot + b_shift, b_m2s, b_count, p_statistics, row, i_c, m_c, C)


def rows_of(dilation: int, choices: tuple[int, ...]) -> int:
    """Return ROWS: the first choice that is a multiple of the dilation; if there is none, TILE, so each row has one frame."""
    return next((rows for rows in choices if rows % dilation == 0), TILE)


def depthwise_forward(
    x: Tensor, weight: Tensor, dilation: int, slope: Tensor | None, affine: Tensor, beta: Tensor, next_slope: Tensor,
    y: Tensor | None = None, statistics: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return y (n, I, T, C) in x's dtype; write y's partials into ``statistics``, if given.

    ``x`` has unit stride along channels. If ``y`` is given, the result is written into it; ``y`` may be some channels of a
    contiguous tensor with more channels.
    """
    n, instruments, frames, channels = x.shape
    if y is None:
        y = torch.empty(n, instruments, frames, channels, dtype=x.dtype, device=x.device)
    rows = rows_of(dilation, FORWARD_ROWS)
    defaults = {"BLOCK_C": channel_block(channels), "num_warps": 1}
    chosen = configuration("depthwise_fwd", x, False, defaults, C=channels)
    block, align = chosen["BLOCK_C"], alignment(x)
    launch(
        depthwise_fwd_kernel, n * instruments * -(-frames // TILE) * -(-channels // block), x,
        p_x=x, p_w=weight, p_slope=slope, p_affine=affine, p_beta=beta, p_next_slope=next_slope, p_y=y,
        p_statistics=statistics, T=frames, C=channels, LD=y.stride(1) // frames, dilation=dilation,
        INSTRUMENTS=instruments, **strides(align, x=x), ALIGN=align, BLOCK_T=TILE,
        ROWS=rows, LANES=LANES, **chosen,
    )  # fmt: skip
    return y
