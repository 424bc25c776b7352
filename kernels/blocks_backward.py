"""Backward of all blocks of the masking network, last block first.

    with dskips given and dx[L] = 0, for every block l:
        b[l] as in the forward, computed again from c[l] if it was not kept
        db[l], and the gradients of Wres, Wskip and the second norm, from [dx[l + 1]; dskips] and [Wres; Wskip]:
            one weight gradient and one data gradient over both: their input is the same        pointwise_backward.py
        dc[l], and the gradients of the taps, the first norm and both slopes                    depthwise_backward.py
        dx[l] = dx[l + 1] + W1[l]^T dc[l]

Bytes of one block, in units of U = n I T C sizeof(dtype): b again 2; [Wres; Wskip]: weight gradient 3, data gradient 4;
depthwise 3 + 3; conv1d: weight and data gradient 2 + 3. In all 20, or 18 if b was kept. The forward keeps x and c, 2 U a
block, or 3 U with b. Every sum has one fixed order. Sums over the items are short and wait for memory: one launch per block
takes all of these sums.
Not yet run on a GPU. Source: as the forward's.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import BlockWeights, Kept
from .depthwise import depthwise_forward
from .depthwise_backward import CHANNELS, depthwise_gradients, depthwise_total_kernel, total_programs
from .launch import launch
from .pointwise_backward import data_gradient, weight_gradient
from .pointwise_sums import new_sums, norm_gradient, sum_blocks, sum_kernel

__all__ = ["block_sums_kernel", "blocks_backward"]


@triton.jit(do_not_specialize=["ITEMS", "PARTS", "NEXT_PARTS", "OUT", "ALL"])
def block_sums_kernel(
    p_s, p_d, p_affine, p_beta, p_norm, p_dout, p_dbias, p_dgamma_2, p_dbeta_2, p_s1, p_dconv1d,
    p_taps, p_parts, p_next_parts, p_dtaps, p_dslope_1, p_dgamma_1, p_dbeta_1, p_dslope_2, ITEMS, PARTS, NEXT_PARTS, OUT, ALL,
    N: tl.constexpr, ROWS: tl.constexpr, H: tl.constexpr, B: tl.constexpr, INSTRUMENTS: tl.constexpr,
    OUT_PARTS: tl.constexpr, CONV_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N1: tl.constexpr, BLOCK_K1: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up gradients over the items: of res_out, skip_out and the second norm (programs below OUT), conv1d (below ALL), or
    the taps, the first norm and both slopes (the other programs)."""
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
    gamma_2, beta_2, out and bias; zero for res_out's rows in the last block. ``dskips`` is contiguous; ``x`` has unit stride
    along channels."""
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
    """Return b of block ``layer``: a slice of the kept tensor, or, if b was not kept, the depthwise pass on c once more."""
    if kept.b.numel():
        hidden = c.shape[-1]
        return kept.b[..., layer * hidden : (layer + 1) * hidden]
    return depthwise_forward(
        c, w.taps[layer], w.dilations[layer], w.slope_1[layer], kept.affine_1[layer], w.beta_1[layer], w.slope_2[layer]
    )
