"""The loss of a stage and its statistics: signal-to-distortion ratios (sdr) here, cosines in loss_cosine.py.

The sdr of an estimate e of a target s, each of T samples, and its gradient:

    a = <s, e> / (|s|^2 + 1e-8);  P = a^2 |s|^2;  R = |e - a s|^2;  sdr = 10 (log10 max(P, 1e-8) - log10 max(R, 1e-8))
    d sdr / de = (p + q) s + r (e - a s); p is 0 where P is clamped, q and r are 0 where R is clamped, else
                 p = 20 / ln 10 a |s|^2 / (P (|s|^2 + 1e-8)),  r = -20 / (ln 10 R),  q = -r a 1e-8 / (|s|^2 + 1e-8)

R is summed in a second pass over e and s: |e|^2 - a <s, e> would lose a digit for every 10 dB. Sums are taken by tiles, and the
tiles are added in order. For silence a is 0, P and R are clamped, and the gradient is 0, not NaN.
Bytes: e and s twice forward and once backward, de written once: 7 n T 4 for n float32 signals. FLOPs: 10 n T. Memory-bound. For
12 items of 5 signals of 8 s at 32 kHz these are 0.43 GB.

The loss of I sources and the mix:

    sdr_i = sum_n sdr mask / divisors[i];  reconstruction = sum_n sdr(mix) / divisors[I]
    dissimilarity = sum of the cosines between instruments / divisors[I + 1] / T, T latent frames
    similarity = sum of the cosines between items / divisors[I + 2] / T
    loss = - sum_i sdr_i - w_r reconstruction + w_d dissimilarity - w_s similarity; terms of weight 0 or less are left out

The forward also returns scales, the factors with which each kind of value enters the loss: the sdr of each source, the sdr of
the mix, a cosine between instruments, a cosine between items. One program computes the loss, so its sums have one fixed order.
It reads a few kilobytes, and the partial sums of the cosines. The divisors belong to the whole batch, also if the items are
only a part of the batch: so the losses of the parts add up to the loss of the batch. Forward takes seven launches (moments and
residuals of the sources and of the mix, rows, cosines, the loss), backward three.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.4; original utility/loss.py (sdr_objective) and model/tasnet.py
(loss).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch, power_of_two
from .loss_cosine import cosine_backward, cosine_forward

__all__ = [
    "loss_kernel", "sdr_backward", "sdr_bwd_kernel", "sdr_forward", "sdr_moments_kernel", "sdr_residual_kernel",
    "sdr_rows_kernel", "stage_loss_backward", "stage_loss_forward",
]  # fmt: skip

SAMPLES = 4096  # samples of one tile
TERMS = 256  # partial sums of the cosines that are added up at a time
MERGED = 64
EPSILON = tl.constexpr(1e-8)
TEN_OVER_LN10 = tl.constexpr(10 / math.log(10))
LOG10_2 = tl.constexpr(0.30102999566398120)


@triton.jit
def _place(SIGNALS, FIRST, samples, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the place of this program's work: item, signal, the signal's row in (items, ROWS), tile and samples."""
    tiles = tl.cdiv(samples, BLOCK)
    i_signal, i_tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    i_n, i_i = (i_signal // SIGNALS).to(tl.int64), (i_signal % SIGNALS).to(tl.int64)
    return i_n, i_i, i_n * ROWS + FIRST + i_i, i_tile, i_tile * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _moments(p_moments, tiles, MERGED: tl.constexpr):
    """Return <s, e> and |s|^2 of one signal: its tiles' sums, added up in order."""
    b_dot, b_power = tl.zeros([MERGED], tl.float32), tl.zeros([MERGED], tl.float32)
    for first in range(0, tiles, MERGED):
        i_tile = first + tl.arange(0, MERGED)
        b_dot += tl.load(p_moments + i_tile, mask=i_tile < tiles, other=0.0)
        b_power += tl.load(p_moments + tiles + i_tile, mask=i_tile < tiles, other=0.0)
    return tl.sum(b_dot, 0), tl.sum(b_power, 0)


@triton.jit(do_not_specialize=["T", "e_n", "e_i", "s_n", "s_i"])
def sdr_moments_kernel(
    p_e, p_s, p_parts, T, e_n, e_i, s_n, s_i,
    SIGNALS: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute <s, e> and |s|^2 of one tile of one signal. ``p_parts`` is (items, ROWS, 3, tiles): they go to places 0 and 1 of
    the axis of size 3."""
    i_n, i_i, row, i_tile, i_t = _place(SIGNALS, FIRST, T, ROWS, BLOCK)
    b_e = tl.load(p_e + i_n * e_n + i_i * e_i + i_t, mask=i_t < T, other=0.0).to(tl.float32)
    b_s = tl.load(p_s + i_n * s_n + i_i * s_i + i_t, mask=i_t < T, other=0.0).to(tl.float32)
    tiles = tl.cdiv(T, BLOCK)
    p_parts += row * 3 * tiles + i_tile
    tl.store(p_parts, tl.sum(b_s * b_e, 0))
    tl.store(p_parts + tiles, tl.sum(b_s * b_s, 0))


@triton.jit(do_not_specialize=["T", "e_n", "e_i", "s_n", "s_i"])
def sdr_residual_kernel(
    p_e, p_s, p_parts, T, e_n, e_i, s_n, s_i,
    SIGNALS: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Compute |e - a s|^2 of one tile of one signal. ``p_parts`` is (items, ROWS, 3, tiles): it goes to place 2 of the axis of
    size 3."""
    i_n, i_i, row, i_tile, i_t = _place(SIGNALS, FIRST, T, ROWS, BLOCK)
    tiles = tl.cdiv(T, BLOCK)
    p_parts += row * 3 * tiles
    dot, power = _moments(p_parts, tiles, MERGED)
    b_e = tl.load(p_e + i_n * e_n + i_i * e_i + i_t, mask=i_t < T, other=0.0).to(tl.float32)
    b_s = tl.load(p_s + i_n * s_n + i_i * s_i + i_t, mask=i_t < T, other=0.0).to(tl.float32)
    b_residual = b_e - dot / (power + EPSILON) * b_s
    tl.store(p_parts + 2 * tiles + i_tile, tl.sum(b_residual * b_residual, 0))


@triton.jit(do_not_specialize=["TILES"])
def sdr_rows_kernel(p_parts, p_rows, TILES, MERGED: tl.constexpr):
    """Compute sdr, a, p + q and r of one signal, a row of ``p_rows``."""
    row = tl.program_id(0).to(tl.int64)
    p_parts += row * 3 * TILES
    dot, power = _moments(p_parts, TILES, MERGED)
    residual, _ = _moments(p_parts + 2 * TILES, TILES, MERGED)
    a = dot / (power + EPSILON)
    projection = a * a * power
    heard, missed = projection >= EPSILON, residual >= EPSILON
    sdr = tl.log2(tl.maximum(projection, EPSILON)) - tl.log2(tl.maximum(residual, EPSILON))
    r = tl.where(missed, 1.0 / tl.maximum(residual, EPSILON), 0.0) * (-2 * TEN_OVER_LN10)
    p = tl.where(heard, a * power / (tl.maximum(projection, EPSILON) * (power + EPSILON)), 0.0) * (2 * TEN_OVER_LN10)
    p_rows += row * 4
    tl.store(p_rows, sdr * (10 * LOG10_2))
    tl.store(p_rows + 1, a)
    tl.store(p_rows + 2, p - r * a * EPSILON / (power + EPSILON))
    tl.store(p_rows + 3, r)


@triton.jit(do_not_specialize=["T", "e_n", "e_i", "s_n", "s_i"])
def sdr_bwd_kernel(
    p_dloss, p_scales, p_mask, p_rows, p_e, p_s, p_de, T, e_n, e_i, s_n, s_i,
    SIGNALS: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one tile of de. The signal's factor in the loss is its scale, times its mask if there is a mask."""
    i_n, i_i, row, i_tile, i_t = _place(SIGNALS, FIRST, T, ROWS, BLOCK)
    weight = tl.load(p_dloss).to(tl.float32) * tl.load(p_scales + FIRST + i_i)
    if p_mask is not None:
        weight *= tl.load(p_mask + i_n * SIGNALS + i_i)
    a, on_target = tl.load(p_rows + row * 4 + 1), tl.load(p_rows + row * 4 + 2)
    on_residual = tl.load(p_rows + row * 4 + 3)
    b_e = tl.load(p_e + i_n * e_n + i_i * e_i + i_t, mask=i_t < T, other=0.0).to(tl.float32)
    b_s = tl.load(p_s + i_n * s_n + i_i * s_i + i_t, mask=i_t < T, other=0.0).to(tl.float32)
    b_de = weight * (on_target * b_s + on_residual * (b_e - a * b_s))
    p_de += (i_n * SIGNALS + i_i) * T + i_t
    tl.store(p_de, b_de.to(p_de.dtype.element_ty), mask=i_t < T)


def _signals(e: Tensor, s: Tensor, first: int, rows: int) -> dict[str, int]:
    strides = {"e_n": e.stride(0), "e_i": e.stride(1), "s_n": s.stride(0), "s_i": s.stride(1)}
    return {"T": e.shape[2], **strides, "SIGNALS": e.shape[1], "FIRST": first, "ROWS": rows, "BLOCK": SAMPLES}


def sdr_forward(estimate: Tensor, target: Tensor, mix_estimate: Tensor | None, mix: Tensor | None) -> Tensor:
    """Return sdr, a, p + q and r of the I sources, then of the mix: (n, I + 1, 4), float32.

    Without a mix, its row is undefined. ``estimate``, ``target`` (n, I, T) and ``mix_estimate``, ``mix`` (n, 1, T) have unit
    stride along samples.
    """
    n, instruments, samples = estimate.shape
    tiles, signals = -(-samples // SAMPLES), instruments + 1
    parts = torch.empty(n, signals, 3, tiles, dtype=torch.float32, device=estimate.device)
    rows = torch.empty(n, signals, 4, dtype=torch.float32, device=estimate.device)
    pairs = [(0, estimate, target)]
    if mix_estimate is not None and mix is not None:
        pairs.append((instruments, mix_estimate, mix))
    for first, e, s in pairs:
        programs = n * e.shape[1] * tiles
        arguments = {"p_e": e, "p_s": s, "p_parts": parts, **_signals(e, s, first, signals)}
        launch(sdr_moments_kernel, programs, e, **arguments, num_warps=8)
        launch(sdr_residual_kernel, programs, e, **arguments, MERGED=MERGED, num_warps=8)
    launch(sdr_rows_kernel, n * signals, estimate, p_parts=parts, p_rows=rows, TILES=tiles, MERGED=MERGED, num_warps=1)
    return rows


def sdr_backward(
    dloss: Tensor, scales: Tensor, mask: Tensor | None, rows: Tensor, e: Tensor, s: Tensor, first: int
) -> Tensor:
    """Return the gradient of ``e`` (n, signals, T), in its dtype.

    ``first`` is the place of the first signal in ``rows`` and ``scales``: 0 for the sources, I for the mix.
    """
    de = torch.empty(e.shape, dtype=e.dtype, device=e.device)
    launch(
        sdr_bwd_kernel, len(e) * e.shape[1] * -(-e.shape[2] // SAMPLES), e,
        p_dloss=dloss, p_scales=scales, p_mask=mask, p_rows=rows, p_e=e, p_s=s, p_de=de,
        **_signals(e, s, first, rows.shape[1]), num_warps=8,
    )  # fmt: skip
    return de


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
    """Compute the loss, the statistics and the scales. There is only one program."""
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

    ``estimate`` and ``target`` are (b, I, T). ``mix_estimate``, ``mix`` (b, 1, T) and ``latents`` (c + b, I, frames, N) are
    None if their terms are off. ``mask`` (c + b, I) and ``divisors`` (I + 3,) are float32 and contiguous. c is 1 if the first
    item is the one before the batch, else 0. The rows are those of :func:`sdr_forward`.
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
        RECONSTRUCTION=float(reconstruction), BLOCK_I=power_of_two(instruments + 1, 1), BLOCK=TERMS, num_warps=4,
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
