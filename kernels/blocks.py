"""All blocks of the masking network in a row, from the start of the residual stream to the sum of the skips.

    for every block l, with x[0] given:
        c[l] = W1[l] x[l];   b[l] = PReLU(depthwise(GN(PReLU(c[l]))))          pointwise.py, depthwise.py
        x[l + 1] = x[l] + Wres[l] GN(b[l])                                     left out after the last block
    skips = sum_l Wskip[l] GN(b[l]), one product over the K = L H channels of all blocks' b side by side

so the skip tensor is written once, and never read.

In two bytes a block's res_out and the next one's conv1d are one kernel, block_pair.py, and so are the norm with which the
stream starts, where it is left to this, and the first conv1d.

Bytes of one block, in units of U = n I T C sizeof(dtype) with B = H = C: depthwise 2, res_out and conv1d 4 as a pair, 5 apart,
and of the skip product 1 + 1 / L: 7.1 with 18 blocks, or 8.1. Items are independent, so ``items`` of them may go depth-first
through all blocks, which need (L + 3) U / n an item.
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
    None; ``taps`` (L, I, H, 3); ``gamma``, ``beta`` (L, I, H); slopes (L, 4), one number four times so that each starts at a
    multiple of 16 bytes.
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
    """How the residual stream starts: slope (1,), affine (n, I, 4, B) and beta (I, B) of norm(PReLU(x))."""

    slope: Tensor
    affine: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Kept:
    """Tensors kept for backward; an empty one is computed again: ``x`` (L - 1, n, I, T, B), inputs of all blocks but the
    first, ``c`` (L, n, I, T, H), ``b`` (n, I, T, L H), ``affine_1``, ``affine_2`` (L, n, I, 4, H)."""

    x: Tensor
    c: Tensor
    b: Tensor
    affine_1: Tensor
    affine_2: Tensor


def blocks_forward(
    x: Tensor, w: BlockWeights, next_slope: Tensor, keep: int, items: int, tf32: bool, activated: bool = False,
    start: Start | None = None,
) -> tuple[Tensor, Tensor, Kept]:  # fmt: skip
    """skips (n, I, T, B), or PReLU(skips, next_slope) if ``activated``; the statistics of the latter, and what is kept.

    ``x`` (n, I, T, B) with unit stride along channels. ``keep`` 0: nothing; 1: x and c; 2: x, c and b. ``items`` go through all
    blocks at a time; if it is 0, as many as was measured to be best, or all. With a ``start`` the stream is norm(PReLU(x)).
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
    """All blocks on some items; writes their skips, statistics and what is kept of them.

    Backward needs c. Where it is not kept its PReLU is stored instead, which the depthwise pass then need not compute.
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
    """The stream behind block ``layer``, and the next block's c with its partials; into what is kept, if ``part`` of it is."""
    new, c = (None, None) if part is None else (kept.x[layer, part], kept.c[layer + 1, part])
    conv1d, slope = w.conv1d[layer + 1], w.slope_1[layer + 1]
    if pairs(x.dtype, x.shape[3], b.shape[3]):
        return block_pair(b, folded, bias, x, conv1d, slope, new, c, activated=part is None)
    new, _ = product(b, folded, bias, x, None, None, tf32, y=new)
    c, partials = product(new, conv1d, None, None, None, slope, tf32, c, activated=part is None)
    assert partials is not None
    return new, c, partials
