"""All blocks of the masking network in a row, forward and backward, on (n, 4, frames, channels).

Stacked weights of L blocks: ``conv1d`` (L, 4, H, B); ``out`` (L, 4, 2 B, H), the residual's rows first; ``bias`` (L, 4, 2 B) or
None; ``taps`` (L, 4, H, 3); ``gamma``, ``beta`` (L, 4, H); slopes (L,). The last block's residual rows are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import depthwise, pointwise
from .statistics import activation, group_affine, tile_statistics

__all__ = ["Stacked", "backward", "forward"]


@dataclass(frozen=True)
class Stacked:
    """Weights of all blocks."""

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


def forward(x: Tensor, w: Stacked, dilations: Sequence[int], tile: int) -> tuple[Tensor, ...]:
    """The sum of the skips; and, a row a block: inputs of all but the first, results of conv1d and of the depthwise pass, and
    the affines of both norms."""
    width, frames = x.shape[3], x.shape[2]
    skips = torch.zeros_like(x)
    xs, cs, bs, affines_1, affines_2 = [], [], [], [], []
    for layer, dilation in enumerate(dilations):
        c = pointwise.forward(x, w.conv1d[layer], None, None, None, None, None)
        slope_1, slope_2 = w.slope_1[layer : layer + 1], w.slope_2[layer : layer + 1]
        affine_1 = group_affine(
            tile_statistics(activation(c, slope_1), tile), w.gamma_1[layer], w.beta_1[layer], frames, tile
        )
        b = depthwise.forward(c, w.taps[layer], dilation, slope_1, affine_1, w.beta_1[layer], slope_2)
        affine_2 = group_affine(
            tile_statistics(activation(b, None), tile), w.gamma_2[layer], w.beta_2[layer], frames, tile
        )
        residual, skip = (None, None) if w.bias is None else (w.bias[layer, :, :width], w.bias[layer, :, width:])
        skips = pointwise.forward(b, w.out[layer, :, width:], skip, skips, None, affine_2, w.beta_2[layer])
        if layer < len(dilations) - 1:
            x = pointwise.forward(b, w.out[layer, :, :width], residual, x, None, affine_2, w.beta_2[layer])
            xs.append(x)
        cs.append(c)
        bs.append(b)
        affines_1.append(affine_1)
        affines_2.append(affine_2)
    inputs = torch.stack(xs) if xs else x.new_empty(0, *x.shape)
    return skips, inputs, *(torch.stack(values) for values in (cs, bs, affines_1, affines_2))


def backward(
    dskips: Tensor,
    x: Tensor,
    w: Stacked,
    dilations: Sequence[int],
    kept: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, ...]:
    """dx and the gradients of the weights in the order of :class:`Stacked`, with the last block's residual rows zero.

    ``kept`` are the inputs, the results of conv1d and the affines that the forward returned.
    """
    xs, cs, affines_1, affines_2 = kept
    width = x.shape[3]
    dx: Tensor | None = None
    found: list[tuple[Tensor, ...]] = []
    for layer in reversed(range(len(dilations))):
        slope_1, slope_2 = w.slope_1[layer : layer + 1], w.slope_2[layer : layer + 1]
        b = depthwise.forward(
            cs[layer], w.taps[layer], dilations[layer], slope_1, affines_1[layer], w.beta_1[layer], slope_2
        )
        dy = torch.cat([torch.zeros_like(dskips) if dx is None else dx, dskips], dim=3)
        out = w.out[layer]
        if dx is None:
            out = torch.cat([torch.zeros_like(out[:, :width]), out[:, width:]], dim=1)
        db, dout, dbias, _, dgamma_2, dbeta_2 = pointwise.backward(
            dy, b, out, None, affines_2[layer], w.gamma_2[layer], w.beta_2[layer]
        )
        assert dgamma_2 is not None and dbeta_2 is not None
        dc, dtaps, dslope_1, dgamma_1, dbeta_1, dslope_2 = depthwise.backward(
            db,
            cs[layer],
            w.taps[layer],
            dilations[layer],
            slope_1,
            affines_1[layer],
            w.gamma_1[layer],
            w.beta_1[layer],
            slope_2,
        )
        dx_l, dconv1d, *_ = pointwise.backward(
            dc, xs[layer - 1] if layer else x, w.conv1d[layer], None, None, None, None
        )
        dx = dx_l if dx is None else dx + dx_l
        found.insert(0, (dconv1d, dslope_1[0], dgamma_1, dbeta_1, dtaps, dslope_2[0], dgamma_2, dbeta_2, dout, dbias))
    assert dx is not None
    return dx, *(torch.stack(values) for values in zip(*found, strict=True))
