"""The loss of a stage and its statistics, from what `loss_sdr` and `loss_cosine` found; one program, one order.

    sdr_i = sum_n sdr mask / max(sum_n mask, 1e-8);  reconstruction = mean_n sdr(mix)
    dissimilarity = sum of cosines / (pairs that both sound + 1e-8) / T;  similarity = sum / max(neighbours, 1e-8) / T
    loss = - sum_i sdr_i - w_r reconstruction + w_d dissimilarity - w_s similarity, terms of weight 0 or less left out
    scales: what a signal's sdr (4 sources, mix) and a cosine (between instruments, between items) weigh in the loss

Launches: forward seven (two signals' moments and residuals, rows, cosines, this), backward three.
Bytes: a few kilobytes, and the cosines' partial sums. Not yet run on a GPU.
Source: Samuel et al. 2020, section 2.4; original utility/loss.py and model/tasnet.py (loss).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .loss_cosine import cosine_backward, cosine_forward
from .loss_sdr import sdr_backward, sdr_forward

__all__ = ["loss_kernel", "stage_loss_backward", "stage_loss_forward"]

EPSILON = tl.constexpr(1e-8)
BLOCK = 256


@triton.jit
def _strided_sum(p_x, count, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of every STEP-th value."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_sum += tl.load(p_x + i_x.to(tl.int64) * STEP, mask=i_x < count, other=0.0)
    return tl.sum(b_sum, 0)


@triton.jit(do_not_specialize=["ITEMS", "PARTS", "T"])
def loss_kernel(
    p_rows, p_parts, p_mask, p_loss, p_stats, p_scales, ITEMS, PARTS, T,
    SIMILARITY: tl.constexpr, DISSIMILARITY: tl.constexpr, RECONSTRUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The only program."""
    i_i = tl.arange(0, 8)
    m_source, m_signal = i_i < 4, i_i < (5 if RECONSTRUCTION > 0 else 4)
    b_mask, b_sdr = tl.zeros([8], tl.float32), tl.zeros([8], tl.float32)
    pairs, neighbours = 0.0, 0.0
    for n in range(ITEMS):
        before = (n + ITEMS - 1) % ITEMS
        b_own = tl.load(p_mask + n * 4 + i_i, mask=m_source, other=1.0)
        b_before = tl.load(p_mask + before * 4 + i_i, mask=m_source, other=0.0)
        b_value = tl.load(p_rows + (n * 5 + i_i) * 4, mask=m_signal, other=0.0)
        b_sdr += b_value * b_own
        b_mask += b_own
        sounding = tl.sum(tl.where(m_source, b_own, 0.0), 0)
        pairs += (sounding * sounding - tl.sum(tl.where(m_source, b_own * b_own, 0.0), 0)) / 2
        neighbours += tl.sum(b_own * b_before, 0)
    b_scale = 1.0 / tl.maximum(b_mask, EPSILON)
    b_sdr *= b_scale
    b_weight = tl.where(m_source, -1.0, tl.where(m_signal, -RECONSTRUCTION, 0.0))
    loss = tl.sum(b_weight * b_sdr, 0)
    frames = tl.maximum(T, 1).to(tl.float32)
    per_pair, per_neighbour = 1.0 / (pairs + EPSILON) / frames, 1.0 / tl.maximum(neighbours, EPSILON) / frames
    between, along = 0.0, 0.0
    if DISSIMILARITY > 0:
        between = _strided_sum(p_parts, PARTS, 2, BLOCK) * per_pair
        loss += DISSIMILARITY * between
    if SIMILARITY > 0:
        along = _strided_sum(p_parts + 1, PARTS, 2, BLOCK) * per_neighbour
        loss -= SIMILARITY * along
    tl.store(p_loss, loss)
    tl.store(p_stats + i_i, b_sdr, mask=i_i < 5)
    tl.store(p_stats + 5, between)
    tl.store(p_stats + 6, along)
    tl.store(p_scales + i_i, b_weight * b_scale, mask=i_i < 5)
    tl.store(p_scales + 5, (DISSIMILARITY if DISSIMILARITY > 0 else 0.0) * per_pair)
    tl.store(p_scales + 6, (-SIMILARITY if SIMILARITY > 0 else 0.0) * per_neighbour)


def stage_loss_forward(
    sources: tuple[Tensor, Tensor], mix: tuple[Tensor, Tensor] | None, mask: Tensor, latents: Tensor | None,
    similarity: float, dissimilarity: float, reconstruction: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Loss (), statistics (7,), rows (n, 5, 4), saved cosines (n, T, 4, 4) or None, scales (7,), all float32.

    ``mix`` and ``latents`` are None where their terms are off; ``mask`` (n, 4) float32 contiguous.
    """
    rows = sdr_forward(sources, mix)
    saved, parts = (None, None) if latents is None else cosine_forward(latents, mask)
    loss, stats, scales = (torch.empty(k, dtype=torch.float32, device=mask.device) for k in (1, 7, 7))
    launch(
        loss_kernel, 1, mask,
        p_rows=rows, p_parts=parts, p_mask=mask, p_loss=loss, p_stats=stats, p_scales=scales, ITEMS=len(mask),
        PARTS=0 if parts is None else len(parts), T=0 if latents is None else latents.shape[2],
        SIMILARITY=float(similarity), DISSIMILARITY=float(dissimilarity), RECONSTRUCTION=float(reconstruction),
        BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return loss[0], stats, rows, saved, scales


def stage_loss_backward(
    dloss: Tensor, sources: tuple[Tensor, Tensor], mix: tuple[Tensor, Tensor] | None, mask: Tensor,
    latents: Tensor | None, rows: Tensor, saved: Tensor | None, scales: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of the sources' estimates, of the mix's, and of the latents."""
    return (
        sdr_backward(dloss, scales, mask, rows, *sources, first=0),
        None if mix is None else sdr_backward(dloss, scales, None, rows, *mix, first=4),
        None if latents is None or saved is None else cosine_backward(dloss, scales, latents, mask, saved),
    )
