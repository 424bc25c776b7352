"""Gradient of the signal through the logarithm of the short-time power (see `log_power`); training does not need it.

    with g = dy 2 / ln 10 / (|X|^2 + 1e-8):  d re = g re, d im = g im      the forward's transform with another epilogue
    the folded rows' gradients are products with the transposed basis; PyTorch unfolds those of even bins once
    then, gathered for every sample s,
    dx[s] = sum over u in {s + N/2, N/2 - s, N/2 + 2 (T - 1) - s} and frames f that cover u of w[m] dv[f, m], m = u - f hop
    dv[m] = de[k] + sign do[k] + (-1)^m dlast, k = min(m, N - m), sign = 1 for m <= N / 2, else -1
    (u: places of the sample in the padded signal; the second and third exist only near the ends)

Bytes: folded rows and their gradients, about 6 N 4 a frame; FLOPs: twice the forward's. One writer a sample, a fixed order.
Not yet run on a GPU. Source: as the forward's.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bottleneck import product
from .launch import exact_products, launch
from .log_power import basis, fold, transform

__all__ = ["log_power_backward", "unfold_kernel"]

BLOCK = 128


@triton.jit
def _covered(p_cos_even, p_cos_odd, p_sin_even, p_sin_odd, p_last, p_window, i_u, m_u, row, FRAMES, N, HOP):
    """Return the sum of w[m] dv[f, m] over the frames f of one item that cover the places ``i_u`` of the padded signal."""
    b_sum = i_u.to(tl.float32) * 0.0
    for j in range(0, tl.cdiv(N, HOP)):
        i_f = i_u // HOP - j
        i_m = i_u - i_f * HOP
        mask = m_u & (i_f >= 0) & (i_f < FRAMES) & (i_m < N)
        i_k = tl.minimum(i_m, N - i_m)
        far = i_k > N // 4
        i_at = (row + i_f) * (N // 4 + 1) + tl.minimum(i_k, N // 2 - i_k)
        b_even, b_odd = (
            tl.load(p_cos_even + i_at, mask=mask, other=0.0),
            tl.load(p_cos_odd + i_at, mask=mask, other=0.0),
        )
        b_value = tl.where(far, b_even - b_odd, b_even + b_odd)
        b_even, b_odd = (
            tl.load(p_sin_even + i_at, mask=mask, other=0.0),
            tl.load(p_sin_odd + i_at, mask=mask, other=0.0),
        )
        b_sin = tl.where(far, b_odd - b_even, b_odd + b_even)
        b_value += tl.where(i_m <= N // 2, b_sin, -b_sin)
        b_last = tl.load(p_last + row + i_f, mask=mask, other=0.0)
        b_value += tl.where(i_m % 2 == 0, b_last, -b_last)
        b_sum += b_value * tl.load(p_window + i_m, mask=mask, other=0.0)
    return b_sum


@triton.jit(do_not_specialize=["SAMPLES", "FRAMES"])
def unfold_kernel(
    p_cos_even, p_cos_odd, p_sin_even, p_sin_odd, p_last, p_window, p_dx, SAMPLES, FRAMES,
    N: tl.constexpr, HOP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute dx of BLOCK samples of one item."""
    blocks = tl.cdiv(SAMPLES, BLOCK)
    i_n = (tl.program_id(0) // blocks).to(tl.int64)
    i_s = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i_s < SAMPLES
    row = i_n * FRAMES
    b_dx = tl.zeros([BLOCK], tl.float32)
    for image in tl.static_range(3):
        if image == 0:
            i_u, m_u = i_s + N // 2, mask
        elif image == 1:
            i_u, m_u = N // 2 - i_s, mask & (i_s >= 1) & (i_s <= N // 2)
        else:
            i_u = N // 2 + 2 * (SAMPLES - 1) - i_s
            m_u = mask & (i_s <= SAMPLES - 2) & (i_u < SAMPLES + N)
        b_dx += _covered(
            p_cos_even, p_cos_odd, p_sin_even, p_sin_odd, p_last, p_window, i_u, m_u, row, FRAMES, N, HOP
        )  # fmt: skip
    tl.store(p_dx + i_n * SAMPLES + i_s, b_dx, mask=mask)


def log_power_backward(dy: Tensor, signal: Tensor, window: Tensor, hop: int) -> Tensor:
    """Return dsignal (n, samples); all float32, ``dy`` (n, F, N / 2 + 1) is contiguous, ``signal`` as in the forward."""
    n, samples = signal.shape
    n_fft, frames = len(window), samples // hop + 1
    quarter = n_fft // 4
    dlast = torch.empty(n * frames, dtype=torch.float32, device=signal.device)
    dparts = torch.empty(n * frames, 4 * quarter, dtype=torch.float32, device=signal.device)
    transform(fold(signal, window, hop, None, dy, dlast), n_fft, None, dy, None, dparts)
    waves = basis(n_fft, signal.device)
    parts = dparts.split([len(wave) for wave in waves], dim=1)
    cos, sin, cos_4, cos_2, sin_4, sin_2 = (
        product(part[None], wave[:, : values + 1].T, exact_products())
        for part, wave, values in zip(parts, waves, (quarter, quarter, *(quarter // 2,) * 4), strict=True)
    )
    dfolded = {
        "p_cos_even": torch.cat([cos_4 + cos_2, (cos_4 - cos_2)[:, :, :-1].flip(2)], dim=2), "p_cos_odd": cos,
        "p_sin_even": torch.cat([sin_2 + sin_4, (sin_2 - sin_4)[:, :, :-1].flip(2)], dim=2), "p_sin_odd": sin,
    }  # fmt: skip
    dx = torch.empty(n, samples, dtype=torch.float32, device=signal.device)
    launch(
        unfold_kernel, n * -(-samples // BLOCK), signal,
        **dfolded, p_last=dlast, p_window=window, p_dx=dx, SAMPLES=samples, FRAMES=frames,
        N=n_fft, HOP=hop, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return dx
