"""Run all blocks of the masking network in a row, from the start of the residual stream to the sum of the skips.

    for every block l, with x[0] given:
        c[l] = W1[l] x[l];   b[l] = PReLU(depthwise(GN(PReLU(c[l]))))          pointwise.py, depthwise.py
        x[l + 1] = x[l] + Wres[l] GN(b[l])                                     left out after the last block
    skips = sum_l Wskip[l] GN(b[l])

The skips are one product over K = L H channels: b of all blocks lie side by side. So the skip tensor is written once, and is
never read.

For dtypes of two bytes, and widths that ``pairs`` accepts, block_pair.py runs a block's res_out and the next block's conv1d in
one kernel. If the caller passes ``start``, it also runs the norm at the start of the stream and the first conv1d in one kernel.

Bytes of one block, in units of U = n I T C sizeof(dtype) with B = H = C: the depthwise pass moves 2; res_out and conv1d move 4
in one kernel, 5 in two; the block's part of the skip product is 1 + 1 / L. With 18 blocks this is 7.1 with pairs, 8.1 without.
Items are independent, so ``items`` items can go through all blocks before the next items start. Each of these items needs
(L + 3) U / n of memory.

Backward takes the last block first. It starts with the given dskips and dx[L] = 0. For every block l it computes
    b[l] as in the forward, from c[l], unless b[l] was kept
    db[l], and the gradients of Wres, Wskip and the second norm, from [dx[l + 1]; dskips] and [Wres; Wskip]: both products have
        the same input, so one weight gradient and one data gradient serve both                 pointwise_backward.py
    dc[l], and the gradients of the taps, the first norm and both slopes                        depthwise_backward.py
    dx[l] = dx[l + 1] + W1[l]^T dc[l]

Bytes of one block's backward, in units of U: computing b again moves 2; the weight gradient of [Wres; Wskip] 3, its data
gradient 4; the two depthwise passes 3 + 3; conv1d's weight and data gradient 2 + 3. In all this is 20, or 18 if b was kept. The
forward keeps x and c, 2 U a block, or x, c and b, 3 U. Every sum has one fixed order. Sums over the items are short and wait
for memory, so one launch takes all such sums of a block.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_pair import block_pair, pairs, start_pair
from .depthwise import depthwise_forward
from .depthwise_backward import CHANNELS, depthwise_gradients, depthwise_total_kernel, total_programs
from .group_norm import group_norm_forward
from .launch import launch
from .pointwise import Folding, fold, new_folded, product
from .pointwise_backward import data_gradient, weight_gradient
from .pointwise_sums import new_sums, norm_gradient, sum_blocks, sum_kernel
from .statistics import group_affine, new_statistics
from .tuned import configuration

__all__ = ["BlockWeights", "Kept", "Start", "block_sums_kernel", "blocks_backward", "blocks_forward"]


@dataclass(frozen=True)
class BlockWeights:
    """The weights of L blocks, all contiguous.

    ``conv1d`` is (L, I, H, B), in the dtype of the activations; ``taps`` (L, I, H, 3); every gamma and beta (L, I, H). ``out``
    (L, I, 2 B, H) holds the rows of res_out, then of skip_out; ``bias`` is (L, I, 2 B) or None. Slopes are (L, 4): each slope
    is repeated four times, so that it starts at a multiple of 16 bytes.
    """

    conv1d: Tensor
    slope_1: Tensor
    gamma_1: Tensor
    beta_1: Tensor
    taps: Tensor
    slope_2: Tensor
    gamma_2: Tensor
    beta_2: Tensor
    out: Tensor
    bias: Tensor | None
    dilations: tuple[int, ...]


class Start(NamedTuple):
    """The PReLU and the norm that start the residual stream as norm(PReLU(x)).

    ``slope`` is (1,), ``affine`` (n, I, 4, B), ``beta`` (I, B).
    """

    slope: Tensor
    affine: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Kept:
    """Tensors kept for backward; c and b are defined at the top of this module.

    ``x`` (L - 1, n, I, T, B) are the inputs of all blocks except the first. ``c`` is (L, n, I, T, H), ``b`` (n, I, T, L H); if
    ``b`` is empty, backward computes it again. ``affine_1`` and ``affine_2`` are (L, n, I, 4, H), float32.
    """

    x: Tensor
    c: Tensor
    b: Tensor
    affine_1: Tensor
    affine_2: Tensor


def blocks_forward(
    x: Tensor, w: BlockWeights, next_slope: Tensor, keep: int, items: int, tf32: bool, activated: bool = False,
    start: Start | None = None,
) -> tuple[Tensor, Tensor, Kept]:  # fmt: skip
    """Return skips (n, I, T, B) in x's dtype, the partials of PReLU(skips, next_slope), and the tensors kept for backward.

    If ``activated``, return PReLU(skips, next_slope) in place of skips. ``x`` (n, I, T, B) has unit stride along channels. The
    stream starts as x, or, given ``start``, as norm(PReLU(x)). If ``keep`` is 0, no activation is kept; 1 keeps x and c; 2
    keeps x, c and b. ``items`` items go through all blocks at a time; 0 stands for all items, or, if ``keep`` is 0 and a number
    was tuned, for that number.
    """
    n, instruments, frames, width = x.shape
    count, _, hidden, _ = w.conv1d.shape
    if items == 0 and keep == 0:
        items = configuration("blocks", x, tf32, {"items": 0}, K=width, N=hidden)["items"]
    items = items or max(1, n)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=x.dtype, device=x.device)

    kept = Kept(
        x=new(count - 1, n, instruments, frames, width) if keep else new(0),
        c=new(count, n, instruments, frames, hidden) if keep else new(0),
        b=new(n, instruments, frames, count * hidden) if keep > 1 else new(0),
        affine_1=torch.empty(count, n, instruments, 4, hidden, dtype=torch.float32, device=x.device),
        affine_2=torch.empty(count, n, instruments, 4, hidden, dtype=torch.float32, device=x.device),
    )
    skips, statistics = new(n, instruments, frames, width), new_statistics(x, width)
    for first in range(0, n, items):
        part = slice(first, min(n, first + items))
        own = None if start is None else start._replace(affine=start.affine[part])
        _go_through(x[part], part, w, next_slope, keep, tf32, activated, kept, skips[part], statistics[part], own)
    return skips, statistics, kept


def _go_through(
    x: Tensor, part: slice, w: BlockWeights, next_slope: Tensor, keep: int, tf32: bool, activated: bool, kept: Kept,
    skips: Tensor, statistics: Tensor, start: Start | None,
) -> None:  # fmt: skip
    """Run all blocks on the items ``part``; write these items' skips, statistics and kept tensors.

    Only backward needs c itself. If c is not kept, conv1d stores PReLU(c) instead, so that the depthwise pass need not compute
    the PReLU.
    """
    n, instruments, frames, width = x.shape
    count, _, hidden, _ = w.conv1d.shape
    partials = new_statistics(x, hidden)
    if start is not None and pairs(x.dtype, width, hidden):
        x, c, c_partials = start_pair(x, *start, w.conv1d[0], w.slope_1[0], not keep)
    else:
        if start is not None:
            x = group_norm_forward(x, start.slope, start.affine, start.beta)
        own, slope = kept.c[0, part] if keep else None, w.slope_1[0]
        c, first = product(x, w.conv1d[0], None, None, None, slope, tf32, own, activated=not keep)
        assert first is not None
        c_partials = first
    skip, skip_bias = new_folded(w.out[0, :, width:], n, x.dtype, count)
    every = kept.b[part] if keep > 1 else x.new_empty(n, instruments, frames, count * hidden)
    for layer in range(count):
        affine_1, affine_2 = kept.affine_1[layer, part], kept.affine_2[layer, part]
        group_affine(c_partials, w.gamma_1[layer], w.beta_1[layer], frames, affine_1)
        columns = slice(layer * hidden, (layer + 1) * hidden)
        b = every[..., columns]
        depthwise_forward(
            c, w.taps[layer], w.dilations[layer], w.slope_1[layer] if keep else None, affine_1, w.beta_1[layer],
            w.slope_2[layer], b, partials,
        )  # fmt: skip
        of_skip = Folding(
            w.out[layer, :, width:], None if w.bias is None else w.bias[layer, :, width:], skip[..., columns], skip_bias
        )
        rows, bias = w.out[layer, :, :width], None if w.bias is None else w.bias[layer, :, :width]
        residual = Folding(rows, bias, *new_folded(rows, n, x.dtype)) if layer < count - 1 else None
        fold(partials, w.gamma_2[layer], w.beta_2[layer], frames, affine_2, of_skip, residual, added=layer > 0)
        if residual is not None:
            weight, bias = residual.folded, residual.folded_bias
            x, c, c_partials = _next(b, weight, bias, x, w, layer, tf32, kept, part if keep else None)
    product(every, skip, skip_bias, None, None, next_slope, tf32, y=skips, partials=statistics, activated=activated)


def _next(
    b: Tensor, folded: Tensor, bias: Tensor, x: Tensor, w: BlockWeights, layer: int, tf32: bool, kept: Kept, part: slice | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the stream after block ``layer``, and the next block's c with its partials.

    If ``part`` is given, write the stream and c to the items ``part`` of ``kept``; else return PReLU(c) in place of c.
    """
    new, c = (None, None) if part is None else (kept.x[layer, part], kept.c[layer + 1, part])
    conv1d, slope = w.conv1d[layer + 1], w.slope_1[layer + 1]
    if pairs(x.dtype, x.shape[3], b.shape[3]):
        return block_pair(b, folded, bias, x, conv1d, slope, new, c, activated=part is None)
    new, _ = product(b, folded, bias, x, None, None, tf32, y=new)
    c, partials = product(new, conv1d, None, None, None, slope, tf32, c, activated=part is None)
    assert partials is not None
    return new, c, partials


@triton.jit(do_not_specialize=["ITEMS", "PARTS", "NEXT_PARTS", "OUT", "ALL"])
def block_sums_kernel(
    p_s, p_d, p_affine, p_beta, p_norm, p_dout, p_dbias, p_dgamma_2, p_dbeta_2, p_s1, p_dconv1d,
    p_taps, p_parts, p_next_parts, p_dtaps, p_dslope_1, p_dgamma_1, p_dbeta_1, p_dslope_2, ITEMS, PARTS, NEXT_PARTS, OUT, ALL,
    N: tl.constexpr, ROWS: tl.constexpr, H: tl.constexpr, B: tl.constexpr, INSTRUMENTS: tl.constexpr,
    OUT_PARTS: tl.constexpr, CONV_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_K1: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up a block's gradients over the items.

    Programs below OUT add up the gradients of res_out, skip_out and the second norm; programs from OUT to ALL those of conv1d;
    the other programs those of the taps, the first norm and both slopes.
    """
    i_program = tl.program_id(0)
    if i_program < OUT:
        sum_kernel(
            i_program, p_s, p_d, p_affine, p_beta, p_norm, p_dout, p_dbias, p_dgamma_2, p_dbeta_2, ITEMS,
            H, N, ROWS, INSTRUMENTS, OUT_PARTS, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif i_program < ALL:
        sum_kernel(
            i_program - OUT, p_s1, None, None, None, None, p_dconv1d, None, None, None, ITEMS,
            B, H, H, INSTRUMENTS, CONV_PARTS, BLOCK_N1, BLOCK_K1,
        )  # fmt: skip
    else:
        depthwise_total_kernel(
            i_program - ALL, p_taps, p_parts, p_next_parts, p_dtaps, p_dslope_1, p_dgamma_1, p_dbeta_1, p_dslope_2,
            ITEMS, PARTS, NEXT_PARTS, H, INSTRUMENTS, BLOCK,
        )  # fmt: skip


def blocks_backward(dskips: Tensor, x: Tensor, kept: Kept, w: BlockWeights, tf32: bool) -> tuple[Tensor, ...]:
    """Return dx in x's dtype and, in float32, the gradients of conv1d, slope_1 (L,), gamma_1, beta_1, taps, slope_2 (L,),
    gamma_2, beta_2, out and bias.

    In the last block, the gradients of res_out's rows are zero. ``dskips`` is contiguous; ``x`` has unit stride along channels.
    """
    n, instruments, frames, width = x.shape
    count, _, hidden, _ = w.conv1d.shape

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    dconv1d, dtaps, dout, dbias = new(*w.conv1d.shape), new(*w.taps.shape), new(*w.out.shape), new(*w.out.shape[:3])
    dgamma_1, dbeta_1, dgamma_2, dbeta_2 = (new(count, instruments, hidden) for _ in range(4))
    dslope_1, dslope_2 = new(count, 4), new(count, 4)  # each slope starts at a multiple of 16 bytes
    dx: Tensor | None = None
    for layer in reversed(range(count)):
        x_l, c = (kept.x[layer - 1] if layer else x), kept.c[layer]
        b = _again(layer, c, kept, w)
        out = w.out[layer] if dx is not None else w.out[layer, :, width:].contiguous()
        s, d = new_sums(x, out.shape[1], hidden)
        dy, more = (dskips, None) if dx is None else (dx, dskips)
        weight_gradient(dy, more, b, None, kept.affine_2[layer], s, d, tf32)
        folded, norm = norm_gradient(s, d, out, kept.affine_2[layer], frames, x.dtype)
        db, _ = data_gradient(dy, more, folded, b, None, kept.affine_2[layer], norm, tf32)
        dc, of_taps, *parts = depthwise_gradients(
            db, c, w.taps[layer], w.dilations[layer], w.slope_1[layer], kept.affine_1[layer], w.beta_1[layer], w.slope_2[layer],
        )  # fmt: skip
        s1, _ = new_sums(x, hidden, width)
        weight_gradient(dc, None, x_l, None, None, s1, None, tf32)
        unused = 2 * width - out.shape[1]  # rows of res_out, if this is the last block
        if unused:
            dout[layer, :, :unused], dbias[layer, :, :unused] = 0, 0
        block_n, block_k, programs = sum_blocks(s)
        block_n1, block_k1, more_programs = sum_blocks(s1)
        launch(
            block_sums_kernel, programs + more_programs + total_programs(c), x,
            p_s=s, p_d=d, p_affine=kept.affine_2[layer], p_beta=w.beta_2[layer], p_norm=norm, p_dout=dout[layer, :, unused:],
            p_dbias=dbias[layer, :, unused:], p_dgamma_2=dgamma_2[layer], p_dbeta_2=dbeta_2[layer], p_s1=s1,
            p_dconv1d=dconv1d[layer], p_taps=of_taps, p_parts=parts[0], p_next_parts=parts[1], p_dtaps=dtaps[layer],
            p_dslope_1=dslope_1[layer], p_dgamma_1=dgamma_1[layer], p_dbeta_1=dbeta_1[layer], p_dslope_2=dslope_2[layer],
            ITEMS=n, PARTS=len(parts[0]), NEXT_PARTS=len(parts[1]), OUT=programs, ALL=programs + more_programs,
            N=out.shape[1], ROWS=2 * width, H=hidden, B=width, INSTRUMENTS=instruments, OUT_PARTS=s.shape[2],
            CONV_PARTS=s1.shape[2], BLOCK_N=block_n, BLOCK_K=block_k, BLOCK_N1=block_n1, BLOCK_K1=block_k1, BLOCK=CHANNELS,
            num_warps=4,
        )  # fmt: skip
        dx, _ = data_gradient(dc, None, w.conv1d[layer], x_l, None, None, None, tf32, added=dx)
    assert dx is not None
    slopes = dslope_1[:, 0].contiguous(), dslope_2[:, 0].contiguous()
    return dx, dconv1d, slopes[0], dgamma_1, dbeta_1, dtaps, slopes[1], dgamma_2, dbeta_2, dout, dbias


def _again(layer: int, c: Tensor, kept: Kept, w: BlockWeights) -> Tensor:
    """Return b of block ``layer``: a slice of the kept b, or, if b was not kept, the result of the depthwise pass on ``c``."""
    if kept.b.numel():
        hidden = c.shape[-1]
        return kept.b[..., layer * hidden : (layer + 1) * hidden]
    return depthwise_forward(
        c, w.taps[layer], w.dilations[layer], w.slope_1[layer], kept.affine_1[layer], w.beta_1[layer], w.slope_2[layer]
    )
