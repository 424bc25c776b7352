"""Run all blocks of the masking network in a row, from the start of the residual stream to the sum of the skips.

    for every block l, with x[0] given:
        c[l] = W1[l] x[l];   b[l] = PReLU(depthwise(GN(PReLU(c[l]))))          pointwise.py, depthwise.py
        x[l + 1] = x[l] + Wres[l] GN(b[l])                                     left out after the last block
    skips = sum_l Wskip[l] GN(b[l]), one product over the K = L H channels of all blocks' b side by side

The skip tensor is thus written once, and never read.

For dtypes of two bytes, and widths that ``pairs`` accepts, block_pair.py runs a block's res_out and the next block's conv1d in
one kernel. If the caller passes ``start``, it also runs the norm at the start of the stream and the first conv1d in one kernel.

Bytes of one block, in units of U = n I T C sizeof(dtype) with B = H = C: depthwise 2; res_out and conv1d 4 as a pair, 5 apart;
its share of the skip product 1 + 1 / L. With 18 blocks: 7.1 with pairs, 8.1 without. Items are independent, so ``items`` items
can go through all blocks before the next ones start; each of these items needs (L + 3) U / n of memory.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2; original model/mask_tcn.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .block_pair import block_pair, pairs, start_pair
from .depthwise import depthwise_forward
from .group_norm import group_norm_forward
from .pointwise import Folding, fold, new_folded, product
from .statistics import group_affine, new_statistics
from .tuned import configuration

__all__ = ["BlockWeights", "Kept", "Start", "blocks_forward"]


@dataclass(frozen=True)
class BlockWeights:
    """Weights of L blocks, contiguous.

    ``conv1d`` (L, I, H, B) in the dtype of the activations; ``out`` (L, I, 2 B, H), res_out first; ``bias`` (L, I, 2 B) or
    None; ``taps`` (L, I, H, 3); ``gamma``, ``beta`` (L, I, H); slopes (L, 4): each slope is repeated four times, so that it
    starts at a multiple of 16 bytes.
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
    """The norm that starts the residual stream, norm(PReLU(x)): slope (1,), affine (n, I, 4, B) and beta (I, B)."""

    slope: Tensor
    affine: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Kept:
    """Tensors kept for backward: ``x`` (L - 1, n, I, T, B), the inputs of all blocks except the first; ``c`` (L, n, I, T, H);
    ``b`` (n, I, T, L H), computed again by backward if empty; ``affine_1``, ``affine_2`` (L, n, I, 4, H), float32."""

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

    If ``activated``, return PReLU(skips, next_slope) in place of skips. ``x`` (n, I, T, B) has unit stride along channels. With
    a ``start`` the stream is norm(PReLU(x)), else x. ``keep``: 0 keeps no activation, 1 keeps x and c, 2 keeps x, c and b.
    ``items`` items go through all blocks at a time; 0 stands for all, or, if ``keep`` is 0, for the tuned number if any.
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

    Backward needs c. If c is not kept, PReLU(c) is stored in its place, and the depthwise pass need not compute it.
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
