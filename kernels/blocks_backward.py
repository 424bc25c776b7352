"""Backward of all blocks of the masking network, last block first.

    with dskips given and dx[L] = 0, for every block l:
        b[l] as in the forward, computed again from c[l] where it was not kept
        db[l], and the gradients of Wres, Wskip and the second norm, from [dx[l + 1]; dskips] and [Wres; Wskip]:
            one weight gradient and one data gradient over both, as they share their input      pointwise_backward.py
        dc[l], and the gradients of the taps, the first norm and both slopes                    depthwise_backward.py
        dx[l] = dx[l + 1] + W1[l]^T dc[l]

Bytes of one block, in units of U = n I T C sizeof(dtype): b again 2, its weight gradient 3, data gradient 4, depthwise 2 + 3,
conv1d's 2 + 3: 19, or 17 if b was kept. Kept in forward: x and c, 2 U a block, or 3 with b. Every sum has one fixed order.
Not yet run on a GPU. Source: as the forward's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import BlockWeights, Kept
from .depthwise import depthwise_forward
from .depthwise_backward import depthwise_backward
from .pointwise import fold_weights
from .pointwise_backward import data_gradient, weight_gradient
from .pointwise_sums import norm_gradient, sum_items

__all__ = ["blocks_backward"]


def blocks_backward(dskips: Tensor, x: Tensor, kept: Kept, w: BlockWeights, tf32: bool) -> tuple[Tensor, ...]:
    """dx in x's dtype and, in float32, the gradients of conv1d, slope_1 (L,), gamma_1, beta_1, taps, slope_2 (L,), gamma_2,
    beta_2, out and bias; those of the last block's residual rows are zero. ``dskips`` contiguous, ``x`` with unit strides."""
    n, instruments, frames, width = x.shape
    count, _, hidden, _ = w.conv1d.shape

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    dconv1d, dtaps, dout, dbias = new(*w.conv1d.shape), new(*w.taps.shape), new(*w.out.shape), new(*w.out.shape[:3])
    dgamma_1, dbeta_1, dgamma_2, dbeta_2 = (new(count, instruments, hidden) for _ in range(4))
    dslope_1, dslope_2 = new(count, 4), new(count, 4)  # each starts at a multiple of 16 bytes
    dx: Tensor | None = None
    for layer in reversed(range(count)):
        x_l, c = (kept.x[layer - 1] if layer else x), kept.c[layer]
        b = _again(layer, c, kept, w)
        out = w.out[layer] if dx is not None else w.out[layer, :, width:].contiguous()
        s, d = new(n, instruments, out.shape[1], hidden), new(n, instruments, out.shape[1])
        dy, more = (dskips, None) if dx is None else (dx, dskips)
        weight_gradient(dy, more, b, None, kept.affine_2[layer], s, d, tf32)
        folded, _ = fold_weights(out, None, kept.affine_2[layer], w.beta_2[layer], x.dtype)
        norm = norm_gradient(s, d, out, folded, kept.affine_2[layer], frames)
        totals = norm, dgamma_2[layer], dbeta_2[layer]
        if dx is None:
            dout[layer], dbias[layer] = 0, 0
            rows = sum_items(s, d, kept.affine_2[layer], w.beta_2[layer], None, None, *totals)
            dout[layer, :, width:], dbias[layer, :, width:] = rows
        else:
            sum_items(s, d, kept.affine_2[layer], w.beta_2[layer], dout[layer], dbias[layer], *totals)
        db, _ = data_gradient(dy, more, folded, b, None, kept.affine_2[layer], norm, tf32)
        dc, *_ = depthwise_backward(
            db, c, w.taps[layer], w.dilations[layer], w.slope_1[layer], kept.affine_1[layer], w.beta_1[layer], w.slope_2[layer],
            (dtaps[layer], dslope_1[layer], dgamma_1[layer], dbeta_1[layer], dslope_2[layer]),
        )  # fmt: skip
        s = new(n, instruments, hidden, width)
        weight_gradient(dc, None, x_l, None, None, s, None, tf32)
        sum_items(s, None, None, None, dconv1d[layer])
        dx, _ = data_gradient(dc, None, w.conv1d[layer], x_l, None, None, None, tf32, added=dx)
    assert dx is not None
    slopes = dslope_1[:, 0].contiguous(), dslope_2[:, 0].contiguous()
    return dx, dconv1d, slopes[0], dgamma_1, dbeta_1, dtaps, slopes[1], dgamma_2, dbeta_2, dout, dbias


def _again(layer: int, c: Tensor, kept: Kept, w: BlockWeights) -> Tensor:
    """b of block ``layer``: a slice of what was kept, or the forward's depthwise pass once more."""
    if kept.b.numel():
        hidden, (stack, place) = c.shape[-1], divmod(layer, w.layers)
        return kept.b[stack][..., place * hidden : (place + 1) * hidden]
    return depthwise_forward(
        c, w.taps[layer], w.dilations[layer], w.slope_1[layer], kept.affine_1[layer], w.beta_1[layer], w.slope_2[layer]
    )
