"""Backward of group norm, depthwise convolution and PReLU, in two passes.

Of the forward's activations it reads only x. Symbols as in ``depthwise.py``: z = PReLU(x), a is what the convolution gives
before the second PReLU; both are computed again.

    da = dy PReLU'(a), with a exactly as in the forward;  dnext_slope = sum dy a where a <= 0
    S[n, i, k, c] = sum_t da[t] (z[t + (k - 1) dilation] - mean) over the taps in range;  D[n, i, k, c] = sum_t da[t] likewise
    dw     = sum_n (scale S + beta D);   dbeta = sum_n sum_k w D;   dgamma = sum_n rstd sum_k w S
    dz     = scale sum_k w[k] da[t - (k - 1) dilation] + q (z - mean) + r, with M = T C / 8 values in a group
             r = -1/M sum_ck scale w D;  q = -rstd^2 / M sum_ck scale w S
    dx     = dz PReLU'(x);               dslope = sum dz x where x <= 0

The taps' gradients contain the group norm's reductions, so there is no third pass. D counts only taps in range: the padding is
constant and has no gradient. The first pass adds up all da. The program that merges the sums then subtracts the da at either
end that have no neighbour. A program adds up four tiles before it adds up the rows: adding up the rows after every tile cost
a third of the instructions.
The first pass stores da, rounded to dy's dtype; the second pass reads da instead of dy. Computing da again would save a sixth
of the bytes, but would load x's neighbours and apply the taps again, and instructions limit the first pass.
Rows step through frames as in the forward: with four steps, each value (x in the first pass, da in the second) is loaded 1.5
times. It would be loaded three times if each tap loaded its own values. As in the forward, tiles that are far enough from the
ends need no masks.
Bytes: x twice, dy once, da written and read once, dx once: 6 n I T C sizeof(dtype); shifted frames come from the caches. Every
sum has one fixed order: steps, rows, tiles, items. Predicted on an H100, for 12 x 8 s: 0.053 and 0.055 ms (0.056 for the first
pass if the model follows every program instead of a sample). Instructions limit the first pass (245 registers, two programs a
multiprocessor), memory the second (141 registers, three programs).
Not yet run on a GPU. Source: as the forward's.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .depthwise import BACKWARD_ROWS, channel_parameters, load_frames, load_normalised, place, rows_of, starts, taps
from .launch import TILE, alignment, channel_block, launch, power_of_two, strides
from .statistics import GROUPS
from .tile import activation, slope_of

__all__ = [
    "CHANNELS", "depthwise_backward", "depthwise_dx_kernel", "depthwise_gradients", "depthwise_norm_kernel",
    "depthwise_sums_kernel", "depthwise_total_kernel", "total_programs",
]  # fmt: skip


SPAN = 4
"""Number of tiles over which a program takes sums. It adds up the rows once, after the last tile."""
EDGE = 16
"""Number of frames, at an end of the signal, that are added up at a time."""
CHANNELS = 128
"""Number of an instrument's channels, or of partial sums of a slope's gradient, that a program handles in parallel."""


@triton.jit
def _sums_of_tile(
    b_s0, b_s1, b_s2, b_d, b_dnext, p_dy, p_x, p_da, i_first, i_c, m_c, T, dilation, dy_t, x_t,
    slope, next_slope, b_scale, b_mean, b_beta, b_w0, b_w1, b_w2,
    C: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Store da of a tile. Add the tile to the sums of every row, and return these: S (three taps), da and dnext_slope."""
    stored = ()
    _, b_z0, b_m0 = load_normalised(p_x, i_first - dilation, T, i_c, m_c, x_t, slope, b_scale, b_mean, b_beta, INSIDE)
    _, b_z1, b_m1 = load_normalised(p_x, i_first, T, i_c, m_c, x_t, slope, b_scale, b_mean, b_beta, INSIDE)
    for step in tl.static_range(STEPS):
        i_t = i_first + step * dilation
        _, b_z2, b_m2 = load_normalised(p_x, i_t + dilation, T, i_c, m_c, x_t, slope, b_scale, b_mean, b_beta, INSIDE)
        b_a = taps(b_m0, b_m1, b_m2, b_w0, b_w1, b_w2)
        b_dy = load_frames(p_dy, i_t, T, i_c, m_c, dy_t, INSIDE)[0].to(tl.float32)
        b_dnext += tl.where(b_a > 0, 0.0, b_dy * b_a)
        b_stored = tl.where(b_a > 0, b_dy, next_slope * b_dy).to(p_da.dtype.element_ty)
        stored = stored + (b_stored,)
        b_da = b_stored.to(tl.float32)  # as the second pass sees it
        b_s0 += b_da * b_z0
        b_s1 += b_da * b_z1
        b_s2 += b_da * b_z2
        b_d += b_da
        b_z0, b_m0, b_z1, b_m1 = b_z1, b_m1, b_z2, b_m2
    # Store after all loads: otherwise every load would wait for the stores before it.
    for step in tl.static_range(STEPS):
        i_t = i_first + step * dilation
        p_row = p_da + i_t.to(tl.int64)[:, None] * C + i_c[None, :]
        if INSIDE:
            tl.store(p_row, stored[step])
        else:
            tl.store(p_row, stored[step], mask=(i_t < T)[:, None] & m_c[None, :])
    return b_s0, b_s1, b_s2, b_d, b_dnext


@triton.jit(do_not_specialize=["T", "dilation", "dy_n", "dy_i", "dy_t", "x_n", "x_i", "x_t"])
def depthwise_sums_kernel(
    p_dy, p_x, p_w, p_slope, p_affine, p_beta, p_next_slope, p_da, p_sums, p_dnext_slope, T, dilation,
    dy_n, dy_i, dy_t, x_n, x_i, x_t, C: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Compute da of SPAN tiles, and a partial sum of dnext_slope.

    Also write S (three taps) and the sum of da over these tiles, as the four rows of ``p_sums`` (n, I, spans, 4, C).
    """
    row, i_ni, _, i_c = place(T, dilation, C, SPAN * BLOCK_T, ROWS, BLOCK_C)
    i_n, i_i, m_c = (i_ni // INSTRUMENTS).to(tl.int64), (i_ni % INSTRUMENTS).to(tl.int64), i_c < C
    dy_t, x_t = dy_t.to(tl.int64) * ALIGN, x_t.to(tl.int64) * ALIGN
    p_dy += i_n * (dy_n.to(tl.int64) * ALIGN) + i_i * (dy_i.to(tl.int64) * ALIGN)
    p_x += i_n * (x_n.to(tl.int64) * ALIGN) + i_i * (x_i.to(tl.int64) * ALIGN)
    slope, next_slope = slope_of(p_slope), slope_of(p_next_slope)
    b_scale, b_mean, b_beta, b_w0, b_w1, b_w2 = channel_parameters(
        p_affine, p_beta, p_w, i_ni, i_c, m_c, C, INSTRUMENTS
    )
    p_da += i_ni.to(tl.int64) * T * C
    b_s0 = tl.zeros([ROWS, BLOCK_C], tl.float32)
    b_s1, b_s2, b_d, b_dnext = b_s0, b_s0, b_s0, b_s0
    span = (row % tl.cdiv(T, SPAN * BLOCK_T)) * (SPAN * BLOCK_T)
    for first in range(span, tl.minimum(span + SPAN * BLOCK_T, T), BLOCK_T):
        i_first = first + starts(tl.arange(0, ROWS), dilation, BLOCK_T // ROWS)
        if (first >= dilation) & (first + BLOCK_T + dilation <= T) & (C % BLOCK_C == 0):
            b_s0, b_s1, b_s2, b_d, b_dnext = _sums_of_tile(
                b_s0, b_s1, b_s2, b_d, b_dnext, p_dy, p_x, p_da, i_first, i_c, m_c, T, dilation, dy_t, x_t,
                slope, next_slope, b_scale, b_mean, b_beta, b_w0, b_w1, b_w2, C, BLOCK_T // ROWS, ROWS, BLOCK_C, True,
            )  # fmt: skip
        else:
            b_s0, b_s1, b_s2, b_d, b_dnext = _sums_of_tile(
                b_s0, b_s1, b_s2, b_d, b_dnext, p_dy, p_x, p_da, i_first, i_c, m_c, T, dilation, dy_t, x_t,
                slope, next_slope, b_scale, b_mean, b_beta, b_w0, b_w1, b_w2, C, BLOCK_T // ROWS, ROWS, BLOCK_C, False,
            )  # fmt: skip
    tl.store(p_dnext_slope + tl.program_id(0), tl.sum(b_dnext))
    p_sums += row.to(tl.int64) * 4 * C + i_c
    tl.store(p_sums, tl.sum(b_s0, 0), mask=m_c)
    tl.store(p_sums + C, tl.sum(b_s1, 0), mask=m_c)
    tl.store(p_sums + 2 * C, tl.sum(b_s2, 0), mask=m_c)
    tl.store(p_sums + 3 * C, tl.sum(b_d, 0), mask=m_c)


@triton.jit(do_not_specialize=["T", "dilation"])
def depthwise_norm_kernel(
    p_sums, p_da, p_w, p_affine, p_beta, p_out, T, dilation, C: tl.constexpr, INSTRUMENTS: tl.constexpr,
    GROUPS: tl.constexpr, SPAN: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the seven rows of ``p_out`` (n, I, 7, C) for one group of one item and instrument.

    The rows are q, r, and the item's terms of dgamma, dbeta and dw (three taps).
    """
    i_ni, i_group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    width = C // GROUPS
    spans = tl.cdiv(T, SPAN)
    i_c = i_group * width + tl.arange(0, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < width
    b_scale, b_mean, b_beta, b_w0, b_w1, b_w2 = channel_parameters(
        p_affine, p_beta, p_w, i_ni, i_c, m_c, C, INSTRUMENTS
    )
    b_rstd = tl.load(p_affine + (i_ni.to(tl.int64) * 4 + 3) * C + i_c, mask=m_c, other=0.0)
    p_out += i_ni.to(tl.int64) * 7 * C + i_c
    p_sums += i_ni.to(tl.int64) * spans * 4 * C + i_c
    p_da += i_ni.to(tl.int64) * T * C + i_c[None, :]
    b_d = tl.zeros([BLOCK_C], tl.float32)
    b_s0, b_s1, b_s2 = b_d, b_d, b_d
    for i_span in tl.range(spans, loop_unroll_factor=4):
        p_span = p_sums + i_span * 4 * C
        b_s0 += tl.load(p_span, mask=m_c, other=0.0)
        b_s1 += tl.load(p_span + C, mask=m_c, other=0.0)
        b_s2 += tl.load(p_span + 2 * C, mask=m_c, other=0.0)
        b_d += tl.load(p_span + 3 * C, mask=m_c, other=0.0)
    # The first frames have no neighbour a dilation before them, the last frames have none a dilation after them.
    b_first, b_last = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    edge = tl.minimum(dilation, T)
    for t in range(0, edge, BLOCK_T):
        i_t = t + tl.arange(0, BLOCK_T)[:, None]
        mask = (i_t < edge) & m_c[None, :]
        b_first += tl.sum(tl.load(p_da + i_t * C, mask=mask, other=0.0).to(tl.float32), 0)
        b_last += tl.sum(tl.load(p_da + (T - 1 - i_t).to(tl.int64) * C, mask=mask, other=0.0).to(tl.float32), 0)
    b_d0, b_d2 = b_d - b_first, b_d - b_last
    b_ws = b_w0 * b_s0 + b_w1 * b_s1 + b_w2 * b_s2
    b_wd = b_w0 * b_d0 + b_w1 * b_d + b_w2 * b_d2
    tl.store(p_out + 4 * C, b_scale * b_s0 + b_beta * b_d0, mask=m_c)
    tl.store(p_out + 5 * C, b_scale * b_s1 + b_beta * b_d, mask=m_c)
    tl.store(p_out + 6 * C, b_scale * b_s2 + b_beta * b_d2, mask=m_c)
    count = width * T.to(tl.float32)
    zeros = tl.zeros([BLOCK_C], tl.float32)
    tl.store(p_out, -b_rstd * b_rstd * (tl.sum(b_scale * b_ws, 0) / count), mask=m_c)
    tl.store(p_out + C, zeros - tl.sum(b_scale * b_wd, 0) / count, mask=m_c)
    tl.store(p_out + 2 * C, b_rstd * b_ws, mask=m_c)
    tl.store(p_out + 3 * C, b_wd, mask=m_c)


@triton.jit
def _dx_of_tile(
    p_da, p_x, p_dx, i_first, i_c, m_c, T, dilation, x_t, slope, b_scale, b_mean, b_w0, b_w1, b_w2, b_q, b_r,
    C: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Store dx of all frames of a tile; return the tile's terms of dslope."""
    b_dslope = tl.zeros([ROWS, BLOCK_C], tl.float32)
    i_t = i_first.to(tl.int64)
    b_da0 = load_frames(p_da, i_t - dilation, T, i_c, m_c, C, INSIDE)[0].to(tl.float32)
    b_da1 = load_frames(p_da, i_t, T, i_c, m_c, C, INSIDE)[0].to(tl.float32)
    for step in tl.static_range(STEPS):
        i_t = (i_first + step * dilation).to(tl.int64)
        b_da2 = load_frames(p_da, i_t + dilation, T, i_c, m_c, C, INSIDE)[0].to(tl.float32)
        b_x, mask = load_frames(p_x, i_t, T, i_c, m_c, x_t, INSIDE)
        b_z = activation(b_x, slope) - b_mean[None, :]
        b_dm = b_w0[None, :] * b_da2 + b_w1[None, :] * b_da1 + b_w2[None, :] * b_da0
        b_dz = b_scale[None, :] * b_dm + b_q[None, :] * b_z + b_r[None, :]
        b_x = b_x.to(tl.float32)
        b_dx = tl.where(b_x > 0, b_dz, slope * b_dz).to(p_dx.dtype.element_ty)
        p_row = p_dx + i_t[:, None] * C + i_c[None, :]
        if INSIDE:
            b_dslope += tl.where(b_x > 0, 0.0, b_dz * b_x)
            tl.store(p_row, b_dx)
        else:
            b_dslope += tl.where((b_x > 0) | ~mask, 0.0, b_dz * b_x)
            tl.store(p_row, b_dx, mask=mask)
        b_da0, b_da1 = b_da1, b_da2
    return tl.sum(b_dslope)


@triton.jit(do_not_specialize=["T", "dilation", "x_n", "x_i", "x_t"])
def depthwise_dx_kernel(
    p_da, p_x, p_w, p_slope, p_affine, p_beta, p_norm, p_dx, p_dslope, T, dilation, x_n, x_i, x_t,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_T: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute dx of one tile and BLOCK_C channels of one item and instrument, and a partial sum of dslope."""
    row, i_ni, i_first, i_c = place(T, dilation, C, BLOCK_T, ROWS, BLOCK_C)
    i_n, i_i, m_c = (i_ni // INSTRUMENTS).to(tl.int64), (i_ni % INSTRUMENTS).to(tl.int64), i_c < C
    x_t = x_t.to(tl.int64) * ALIGN
    p_x += i_n * (x_n.to(tl.int64) * ALIGN) + i_i * (x_i.to(tl.int64) * ALIGN)
    p_da += i_ni.to(tl.int64) * T * C
    p_dx += i_ni.to(tl.int64) * T * C
    slope = slope_of(p_slope)
    b_scale, b_mean, _, b_w0, b_w1, b_w2 = channel_parameters(p_affine, p_beta, p_w, i_ni, i_c, m_c, C, INSTRUMENTS)
    p_norm += i_ni.to(tl.int64) * 7 * C + i_c
    b_q, b_r = tl.load(p_norm, mask=m_c, other=0.0), tl.load(p_norm + C, mask=m_c, other=0.0)
    first = (row % tl.cdiv(T, BLOCK_T)) * BLOCK_T
    if (first >= dilation) & (first + BLOCK_T + dilation <= T) & (C % BLOCK_C == 0):
        dslope = _dx_of_tile(
            p_da, p_x, p_dx, i_first, i_c, m_c, T, dilation, x_t, slope, b_scale, b_mean, b_w0, b_w1, b_w2, b_q, b_r,
            C, BLOCK_T // ROWS, ROWS, BLOCK_C, True,
        )  # fmt: skip
    else:
        dslope = _dx_of_tile(
            p_da, p_x, p_dx, i_first, i_c, m_c, T, dilation, x_t, slope, b_scale, b_mean, b_w0, b_w1, b_w2, b_q, b_r,
            C, BLOCK_T // ROWS, ROWS, BLOCK_C, False,
        )  # fmt: skip
    tl.store(p_dslope + tl.program_id(0), dslope)


@triton.jit(do_not_specialize=["ITEMS", "PARTS", "NEXT_PARTS"])
def depthwise_total_kernel(
    i_program, p_norm, p_parts, p_next_parts, p_dw, p_dslope, p_dgamma, p_dbeta, p_dnext_slope, ITEMS, PARTS, NEXT_PARTS,
    C: tl.constexpr, INSTRUMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up dgamma, dbeta and dw over the items, for BLOCK channels of one instrument. The last two programs add up the
    gradients of the two slopes instead."""
    if i_program is None:  # a kernel that calls this one passes it
        i_program = tl.program_id(0)
    blocks = tl.cdiv(C, BLOCK)
    i_i, i_c = i_program // blocks, (i_program % blocks) * BLOCK + tl.arange(0, BLOCK)
    if i_i < INSTRUMENTS:
        m_c = i_c < C
        for k in tl.static_range(5):
            b_sum = tl.zeros([BLOCK], tl.float32)
            for n in tl.range(ITEMS, loop_unroll_factor=4):
                row = (n * INSTRUMENTS + i_i).to(tl.int64) * 7 + 2 + k
                b_sum += tl.load(p_norm + row * C + i_c, mask=m_c, other=0.0)
            i_out = i_i * C + i_c
            p_out = p_dgamma + i_out if k == 0 else (p_dbeta + i_out if k == 1 else p_dw + i_out * 3 + (k - 2))
            tl.store(p_out, b_sum, mask=m_c)
    else:
        if i_program > INSTRUMENTS * blocks:
            p_parts, p_dslope, PARTS = p_next_parts, p_dnext_slope, NEXT_PARTS
        b_sum = tl.zeros([BLOCK], tl.float32)
        for first in tl.range(0, PARTS, BLOCK, loop_unroll_factor=4):
            i_part = first + tl.arange(0, BLOCK)
            b_sum += tl.load(p_parts + i_part, mask=i_part < PARTS, other=0.0)
        tl.store(p_dslope, tl.sum(b_sum, 0))


def depthwise_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int,
    slope: Tensor, affine: Tensor, beta: Tensor, next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dx in x's dtype and, in float32, the terms that `depthwise_total_kernel` adds up.

    These are the rows (n, I, 7, C) of `depthwise_norm_kernel`, and the partial sums of dslope and of dnext_slope.
    """
    n, instruments, frames, channels = x.shape
    align = alignment(dy, x)
    # Four-byte dtypes take 16 channels: with 32 the registers would not suffice.
    tiles, block = -(-frames // TILE), min(channel_block(channels), 64 // x.dtype.itemsize)
    rows, blocks = n * instruments, -(-channels // block)
    spans, programs = -(-tiles // SPAN), rows * tiles * blocks
    sums = torch.empty(n, instruments, spans, 4, channels, dtype=torch.float32, device=x.device)
    norm = torch.empty(n, instruments, 7, channels, dtype=torch.float32, device=x.device)
    dslope = torch.empty(programs, dtype=torch.float32, device=x.device)
    dnext_slope = torch.empty(rows * spans * blocks, dtype=torch.float32, device=x.device)
    da, dx = (torch.empty(n, instruments, frames, channels, dtype=x.dtype, device=x.device) for _ in range(2))
    shared = {
        "p_x": x, "p_w": weight, "p_slope": slope, "p_affine": affine, "p_beta": beta, "p_da": da, "T": frames,
        "C": channels, "INSTRUMENTS": instruments, "dilation": dilation, **strides(align, x=x), "ALIGN": align,
        "BLOCK_T": TILE, "ROWS": rows_of(dilation, BACKWARD_ROWS), "BLOCK_C": block,
    }  # fmt: skip
    launch(
        depthwise_sums_kernel, rows * spans * blocks, x,
        p_dy=dy, p_next_slope=next_slope, p_sums=sums, p_dnext_slope=dnext_slope, **strides(align, dy=dy), SPAN=SPAN,
        num_warps=4, **shared,
    )  # fmt: skip
    launch(
        depthwise_norm_kernel, n * instruments * GROUPS, x,
        p_sums=sums, p_da=da, p_w=weight, p_affine=affine, p_beta=beta, p_out=norm, T=frames, dilation=dilation,
        C=channels, INSTRUMENTS=instruments, GROUPS=GROUPS, SPAN=SPAN * TILE, BLOCK_T=EDGE,
        BLOCK_C=power_of_two(channels // GROUPS), num_warps=1,
    )  # fmt: skip
    launch(
        depthwise_dx_kernel, programs, x, p_norm=norm, p_dx=dx, p_dslope=dslope,
        num_warps=4, **shared,
    )  # fmt: skip
    return dx, norm, dslope, dnext_slope


def depthwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int,
    slope: Tensor, affine: Tensor, beta: Tensor, next_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dx in x's dtype and, in float32, dw (I, C, 3), dslope (1,), dgamma, dbeta (I, C) and dnext_slope (1,).

    ``dy`` and ``x`` have unit stride along channels.
    """
    n, instruments, _, channels = x.shape
    dx, norm, *parts = depthwise_gradients(dy, x, weight, dilation, slope, affine, beta, next_slope)
    shapes = ((instruments, channels, 3), (1,), (instruments, channels), (instruments, channels), (1,))
    dw, dslope, dgamma, dbeta, dnext_slope = (
        torch.empty(shape, dtype=torch.float32, device=x.device) for shape in shapes
    )
    launch(
        depthwise_total_kernel, total_programs(x), x,
        i_program=None, p_norm=norm, p_parts=parts[0], p_next_parts=parts[1], p_dw=dw, p_dslope=dslope, p_dgamma=dgamma,
        p_dbeta=dbeta, p_dnext_slope=dnext_slope, ITEMS=n, PARTS=len(parts[0]), NEXT_PARTS=len(parts[1]), C=channels,
        INSTRUMENTS=instruments, BLOCK=CHANNELS, num_warps=4,
    )  # fmt: skip
    return dx, dw, dslope, dgamma, dbeta, dnext_slope


def total_programs(x: Tensor) -> int:
    """Return the number of programs of `depthwise_total_kernel` for ``x`` (n, I, T, C)."""
    return x.shape[1] * -(-x.shape[3] // CHANNELS) + 2
