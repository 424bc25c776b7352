"""The loss of a stage and its statistics, from the results of `loss_sdr` and `loss_cosine`; one program, so one fixed order.

    sdr_i = sum_n sdr mask / divisors[i];  reconstruction = sum_n sdr(mix) / divisors[I]
    dissimilarity = sum of cosines / divisors[I + 1] / T;  similarity = sum / divisors[I + 2] / T
    loss = - sum_i sdr_i - w_r reconstruction + w_d dissimilarity - w_s similarity, terms of weight 0 or less left out
    scales: the weight in the loss of a signal's sdr (I sources, mix) and of a cosine (between instruments, between items)

The divisors are those of the whole batch, also if the items are only a part of it: the parts' losses add up to the batch's.
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

from .launch import launch, power_of_two
from .loss_cosine import cosine_backward, cosine_forward
from .loss_sdr import sdr_backward, sdr_forward

__all__ = ["loss_kernel", "stage_loss_backward", "stage_loss_forward"]

BLOCK = 256


@triton.jit
def _strided_sum(p_x, count, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Return the sum of ``count`` values that are STEP elements apart."""
    b_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        i_x = first + tl.arange(0, BLOCK)
        b_sum += tl.load(p_x + i_x.to(tl.int64) * STEP, mask=i_x < count, other=0.0)
    return tl.sum(b_sum, 0)


@triton.jit(do_not_specialize=["ITEMS", "PARTS", "T"])
def loss_kernel(
    p_rows, p_parts, p_mask, p_divisors, p_loss, p_stats, p_scales, ITEMS, PARTS, T, INSTRUMENTS: tl.constexpr,
    SIMILARITY: tl.constexpr, DISSIMILARITY: tl.constexpr, RECONSTRUCTION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the loss, the statistics and the scales; one program does all."""
    i_i = tl.arange(0, BLOCK_I)
    m_source, m_all = i_i < INSTRUMENTS, i_i < INSTRUMENTS + 1
    m_signal = i_i < (INSTRUMENTS + 1 if RECONSTRUCTION > 0 else INSTRUMENTS)
    b_sdr = tl.zeros([BLOCK_I], tl.float32)
    for n in range(ITEMS):
        b_own = tl.load(p_mask + n * INSTRUMENTS + i_i, mask=m_source, other=1.0)
        b_sdr += b_own * tl.load(p_rows + (n * (INSTRUMENTS + 1) + i_i) * 4, mask=m_signal, other=0.0)
    b_scale = 1.0 / tl.load(p_divisors + i_i, mask=m_all, other=1.0)
    b_sdr *= b_scale
    b_weight = tl.where(m_source, -1.0, tl.where(m_signal, -RECONSTRUCTION, 0.0))
    loss = tl.sum(b_weight * b_sdr, 0)
    frames = tl.maximum(T, 1).to(tl.float32)
    p_divisors += INSTRUMENTS + 1
    per_pair, per_neighbour = 1.0 / tl.load(p_divisors) / frames, 1.0 / tl.load(p_divisors + 1) / frames
    between, along = 0.0, 0.0
    if DISSIMILARITY > 0:
        between = _strided_sum(p_parts, PARTS, 2, BLOCK) * per_pair
        loss += DISSIMILARITY * between
    if SIMILARITY > 0:
        along = _strided_sum(p_parts + 1, PARTS, 2, BLOCK) * per_neighbour
        loss -= SIMILARITY * along
    tl.store(p_loss, loss)
    tl.store(p_stats + i_i, b_sdr, mask=m_all)
    tl.store(p_scales + i_i, b_weight * b_scale, mask=m_all)
    p_stats += INSTRUMENTS + 1
    p_scales += INSTRUMENTS + 1
    tl.store(p_stats, between)
    tl.store(p_stats + 1, along)
    tl.store(p_scales, (DISSIMILARITY if DISSIMILARITY > 0 else 0.0) * per_pair)
    tl.store(p_scales + 1, (-SIMILARITY if SIMILARITY > 0 else 0.0) * per_neighbour)


def stage_loss_forward(
    estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, divisors: Tensor, similarity: float, dissimilarity: float, reconstruction: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Return loss (), statistics (I + 3,), rows (b, I + 1, 4), saved cosines or None, scales (I + 3,), all float32.

    ``estimate``, ``target`` (b, I, T). ``mix_estimate``, ``mix`` (b, 1, T) and ``latents`` (c + b, I, frames, N) are None if
    their terms are off. ``mask`` (c + b, I) and ``divisors`` (I + 3,): float32, contiguous; c is the number of carried items.
    """
    items, instruments, _ = estimate.shape
    carried = len(mask) - items
    rows = sdr_forward(estimate, target, mix_estimate, mix)
    saved, parts = (None, None) if latents is None else cosine_forward(latents, mask, carried)
    loss, stats, scales = (
        torch.empty(k, dtype=torch.float32, device=mask.device) for k in (1, instruments + 3, instruments + 3)
    )
    launch(
        loss_kernel, 1, mask,
        p_rows=rows, p_parts=parts, p_mask=mask[carried:], p_divisors=divisors, p_loss=loss, p_stats=stats, p_scales=scales,
        ITEMS=items, PARTS=0 if parts is None else len(parts), T=0 if latents is None else latents.shape[2],
        INSTRUMENTS=instruments, SIMILARITY=float(similarity), DISSIMILARITY=float(dissimilarity),
        RECONSTRUCTION=float(reconstruction), BLOCK_I=power_of_two(instruments + 1, 1), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return loss[0], stats, rows, saved, scales


def stage_loss_backward(
    dloss: Tensor, estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, rows: Tensor, saved: Tensor | None, scales: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradients of ``estimate``, ``mix_estimate`` and ``latents``; None for an input that is None."""
    items, instruments, _ = estimate.shape
    carried, on_mix, dlatents = len(mask) - items, None, None
    destimate = sdr_backward(dloss, scales, mask[carried:], rows, estimate, target, first=0)
    if mix_estimate is not None and mix is not None:
        on_mix = sdr_backward(dloss, scales, None, rows, mix_estimate, mix, first=instruments)
    if latents is not None and saved is not None:
        dlatents = cosine_backward(dloss, scales, latents, mask, saved, carried)
    return destimate, on_mix, dlatents
