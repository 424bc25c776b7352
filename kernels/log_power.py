"""Logarithm of the short-time power spectrum, minus a stored mean: centred frames, reflect padding, bins 0 to N / 2.

    y[n, f, b] = log10(|X_b|^2 + 1e-8) - mean[b],  X_b = sum_m w[m] x[f hop + m - N / 2] e^(-2 pi i b m / N),  0 <= b <= N / 2

The transform is a product with cosines and sines, whose length is a quarter of N or less. With v = w x, the real part needs
only e[k] = v[k] + v[N - k], and the imaginary part only o[k] = v[k] - v[N - k]. The factors of k and N / 2 - k are equal or
opposite, so the length halves once more (Q = N / 4, 0 <= k <= Q; at k = Q there is one term, at k = 0 there is no o):
    cos, even b: A[k] = e[k] + e[N/2 - k];   odd: e[k] - e[N/2 - k]
    sin, even b: B[k] = o[k] - o[N/2 - k];   odd: o[k] + o[N/2 - k]
Even bins are a transform of half the length, so for these the length halves again (H = N / 8, 0 <= k <= H; one term at k = H):
    cos, b = 4 i: A[k] + A[Q - k];   4 i + 2: A[k] - A[Q - k];   sin, 4 i: B[k] - B[Q - k];   4 i + 2: B[k] + B[Q - k]
`fold_kernel` writes two rows of Q + 1 values for the odd bins, and four rows of H + 1 values for the even bins. It also
computes bin N / 2, an alternating sum. There remain two products of exactly Q columns and four of H.
The products have float32 accuracy on the tensor cores (three TF32 products). With one TF32 product, the rounding of loud bins
would hide silent bins in log10(1e-8 + .). If |X|^2 is below 1e-7, the logarithm is taken of 1 + 1e8 |X|^2, and 8 is added to
the mean: bins that are always silent have a standard deviation of 1e-3 or less, so the last digits count.

FLOPs: 3 / 8 N^2 a frame, three sixteenths of the plain product's, at 31.25 frames a second. At stage 3 this is 0.25 MMAC for
each latent frame, times three; the whole network takes 40. Bytes: N float32 values a frame are written and read, and N / 2 are
written. The basis, 3 Q^2 4 bytes (0.8, 3, 13 MB at the three stages), stays in L2. Reading it from there takes nearly as long
as the products: 1.5 ms predicted on an H100. No column is idle. The rows of Q + 1 and H + 1 values are padded to blocks of 32,
so that at most 12, 6, 3 % of a product are idle.

Backward computes the gradient of the signal, which training does not need:

    with g = dy 2 / ln 10 / (|X|^2 + 1e-8):  d re = g re, d im = g im      the forward's transform with another epilogue
    the gradients of the folded rows are products with the transposed basis; PyTorch unfolds those of the even bins once
    then every sample s gathers its gradient:
    dx[s] = sum over u in {s + N/2, N/2 - s, N/2 + 2 (T - 1) - s} and frames f that cover u of w[m] dv[f, m], m = u - f hop
    dv[m] = de[k] + sign do[k] + (-1)^m dlast, k = min(m, N - m), sign = 1 for m <= N / 2, else -1
    (u are the places of the sample in the padded signal of T samples; the second and third exist only near the ends)

Bytes: folded rows and their gradients, about 6 N 4 a frame. FLOPs: twice the forward's. Each sample has one writer, so every
sum has one fixed order.
Not yet run on a GPU. Source: Samuel et al. 2020, section 2.3; original model/spectrogram.py.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .bottleneck import STAGES, product
from .launch import exact_products, launch, operands_in_shared_memory

__all__ = [
    "basis", "fold", "fold_kernel", "log_power_backward", "log_power_forward", "power_kernel", "row_length",
    "transform", "unfold_kernel",
]  # fmt: skip

FOLD_BLOCK = 128
BLOCK_ROWS, BLOCK_K = 64, 32


def block_columns(device: torch.device) -> int:
    """Return how many bins a program computes: 64 if tensor cores read operands from shared memory, else 32.

    In the second case the operands take registers.
    """
    return 64 if operands_in_shared_memory(device) else 32


FLOOR = tl.constexpr(1e-8)
QUIET = tl.constexpr(1e-7)
LOG10_2 = tl.constexpr(0.30102999566398120)
SLOPE = tl.constexpr(2 / math.log(10))


@triton.jit
def _windowed(p_signal, p_window, i_first, i_m, mask, SAMPLES):
    """Return w[m] times the sample ``i_first`` + m, for m = ``i_m``; the signal is reflected at both ends."""
    i_sample = tl.abs(i_first + i_m)
    i_sample = tl.where(i_sample >= SAMPLES, 2 * (SAMPLES - 1) - i_sample, i_sample)
    return tl.load(p_signal + i_sample, mask=mask, other=0.0) * tl.load(p_window + i_m, mask=mask, other=0.0)


@triton.jit
def _log_power(b_power, b_mean):
    """Return log10(power + 1e-8) - mean. It is accurate to the last digit, also for nearly silent bins."""
    b_quiet = b_power < QUIET
    b_value = tl.where(b_quiet, 1.0 + b_power * 1e8, b_power + FLOOR)
    return tl.log2(b_value) * LOG10_2 - tl.where(b_quiet, b_mean + 8.0, b_mean)


@triton.jit(do_not_specialize=["SAMPLES", "FRAMES", "signal_n"])
def fold_kernel(
    p_signal, p_window, p_mean, p_dy, p_folded, p_last, SAMPLES, FRAMES, signal_n,
    N: tl.constexpr, HOP: tl.constexpr, ROW: tl.constexpr, SHORT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the folded rows of one frame, padded with zeros, and bin N / 2 of y. Given dy, write the gradient of the sum whose
    square is the power of bin N / 2, instead of the bin.

    A lane adds up v at k, N / 2 - k, Q - k, N / 2 - (Q - k), and at N minus each of these places.
    """
    Q: tl.constexpr = N // 4
    H: tl.constexpr = N // 8
    row = tl.program_id(0).to(tl.int64)
    p_signal += (row // FRAMES) * signal_n
    i_first = (row % FRAMES) * HOP - N // 2
    p_folded += row * (2 * ROW + 4 * SHORT)
    p_even = p_folded + 2 * ROW
    b_last = tl.zeros([BLOCK], tl.float32)
    for k in range(0, SHORT, BLOCK):
        i_k = k + tl.arange(0, BLOCK)
        mask, m_row = i_k <= H, i_k < SHORT
        m_pair, m_far = mask & (i_k > 0), i_k < H
        b_1 = _windowed(p_signal, p_window, i_first, i_k, mask, SAMPLES)
        b_2 = _windowed(p_signal, p_window, i_first, N - i_k, m_pair, SAMPLES)
        b_3 = _windowed(p_signal, p_window, i_first, N // 2 - i_k, mask, SAMPLES)
        b_4 = _windowed(p_signal, p_window, i_first, N // 2 + i_k, m_pair, SAMPLES)
        b_5 = _windowed(p_signal, p_window, i_first, Q - i_k, m_far, SAMPLES)
        b_6 = _windowed(p_signal, p_window, i_first, 3 * Q + i_k, m_far, SAMPLES)
        b_7 = _windowed(p_signal, p_window, i_first, Q + i_k, m_far & m_pair, SAMPLES)
        b_8 = _windowed(p_signal, p_window, i_first, 3 * Q - i_k, m_far & m_pair, SAMPLES)
        b_sin, b_half_sin = tl.where(m_pair, b_1 - b_2, 0.0), tl.where(m_pair, b_3 - b_4, 0.0)
        b_cos, b_half_cos, b_far_cos, b_far_half_cos = b_1 + b_2, b_3 + b_4, b_5 + b_6, b_7 + b_8
        b_far_sin, b_far_half_sin = b_5 - b_6, b_7 - b_8
        tl.store(p_folded + i_k, b_cos - b_half_cos, mask=mask)
        tl.store(p_folded + Q - i_k, b_far_cos - b_far_half_cos, mask=m_far)
        tl.store(p_folded + ROW + i_k, b_sin + b_half_sin, mask=mask)
        tl.store(p_folded + ROW + Q - i_k, b_far_sin + b_far_half_sin, mask=m_far)
        b_cos, b_far_cos = b_cos + b_half_cos, b_far_cos + b_far_half_cos
        b_sin, b_far_sin = b_sin - b_half_sin, b_far_sin - b_far_half_sin
        tl.store(p_even + i_k, b_cos + b_far_cos, mask=m_row)
        tl.store(p_even + SHORT + i_k, b_cos - b_far_cos, mask=m_row)
        tl.store(p_even + 2 * SHORT + i_k, b_sin - b_far_sin, mask=m_row)
        tl.store(p_even + 3 * SHORT + i_k, b_sin + b_far_sin, mask=m_row)
        b_last += tl.where(i_k % 2 == 0, b_cos + b_far_cos, -b_cos - b_far_cos)
    i_rest = Q + 1 + tl.arange(0, BLOCK)
    tl.store(p_folded + i_rest, tl.zeros([BLOCK], tl.float32), mask=i_rest < ROW)
    tl.store(p_folded + ROW + i_rest, tl.zeros([BLOCK], tl.float32), mask=i_rest < ROW)
    last = tl.sum(b_last, 0)
    bins = N // 2 + 1
    if p_dy is not None:
        dy = tl.load(p_dy + row * bins + N // 2)
        tl.store(p_last + row, dy * SLOPE * last / (last * last + FLOOR))
    else:
        tl.store(p_last + row * bins + N // 2, _log_power(last * last, tl.load(p_mean + N // 2)))


@triton.jit(do_not_specialize=["ROWS"])
def power_kernel(
    p_folded, p_basis, p_mean, p_dy, p_y, p_dparts, ROWS,
    N: tl.constexpr, ROW: tl.constexpr, SHORT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_COLUMNS bins of y, all odd, all 4 j or all 4 j + 2, for BLOCK_ROWS frames.

    Given dy, compute the gradients of the real and imaginary parts of these bins instead of y.
    """
    Q: tl.constexpr = N // 4
    H: tl.constexpr = N // 8
    odd_blocks, even_blocks = tl.cdiv(Q, BLOCK_COLUMNS), tl.cdiv(H, BLOCK_COLUMNS)
    blocks = odd_blocks + 2 * even_blocks
    i_row, i_block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    even = (i_block >= odd_blocks).to(tl.int32)
    second = (i_block >= odd_blocks + even_blocks).to(tl.int32)
    length, columns = ROW - even * (ROW - SHORT), Q - even * (Q - H)
    i_block -= even * odd_blocks + second * even_blocks
    i_r = (i_row * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    i_j = i_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    m_r, m_j = i_r < ROWS, i_j < columns
    # A folded frame holds the rows for odd bins, then those for even bins: first for cosines, then as many for sines.
    first, sines = even * (2 * ROW) + second * SHORT, ROW + even * (2 * SHORT - ROW)
    first_bin, bin_sines = even * (2 * Q * ROW) + second * (H * SHORT), Q * ROW + even * (2 * H * SHORT - Q * ROW)
    b_cos = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    b_sin = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for k in range(0, length, BLOCK_K):
        i_k = k + tl.arange(0, BLOCK_K)
        m_x, m_w = m_r[:, None], m_j[None, :]  # rows end in zeros: a mask along k would break 16-byte copies
        p_x = p_folded + i_r[:, None] * (2 * ROW + 4 * SHORT) + first + i_k[None, :]
        p_w = p_basis + first_bin + i_j[None, :] * length + i_k[:, None]
        b_x, b_w = tl.load(p_x, mask=m_x, other=0.0), tl.load(p_w, mask=m_w, other=0.0)
        b_cos = tl.dot(b_x, b_w, b_cos, input_precision=PRECISION)
        b_x = tl.load(p_x + sines, mask=m_x, other=0.0)
        b_w = tl.load(p_w + bin_sines, mask=m_w, other=0.0)
        b_sin = tl.dot(b_x, b_w, b_sin, input_precision=PRECISION)
    b_power = b_cos * b_cos + b_sin * b_sin
    mask = m_r[:, None] & m_j[None, :]
    i_bin = (2 + 2 * even) * i_j + (1 - even) + 2 * second
    i_y = i_r[:, None] * (N // 2 + 1) + i_bin[None, :]
    if p_dy is not None:
        b_slope = tl.load(p_dy + i_y, mask=mask, other=0.0) * SLOPE / (b_power + FLOOR)
        p_dparts += i_r[:, None] * (4 * Q) + even * (2 * Q) + second * H + i_j[None, :]
        tl.store(p_dparts, b_slope * b_cos, mask=mask)
        tl.store(p_dparts + Q, b_slope * b_sin, mask=mask)
    else:
        b_mean = tl.load(p_mean + i_bin, mask=m_j, other=0.0)
        tl.store(p_y + i_y, _log_power(b_power, b_mean[None, :]), mask=mask)


def row_length(n_fft: int) -> int:
    """Return the length of a folded row of a transform of length ``n_fft``: Q + 1 values, and zeros up to whole blocks."""
    return (n_fft // 4 // BLOCK_K + 1) * BLOCK_K


def _waves(n_fft: int, bins: Tensor, values: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin of 2 pi b k / n_fft for the given bins b and k < ``values``: two tensors (bins, row), float64.

    The rows are padded with zeros to whole blocks.
    """
    angle = 2 * math.pi / n_fft * (bins[:, None] * torch.arange(values) % n_fft).double()
    row = (0, -(-values // BLOCK_K) * BLOCK_K - values)
    return F.pad(angle.cos(), row), F.pad(angle.sin(), row)


@functools.lru_cache(maxsize=16)
def basis(n_fft: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return six matrices, float32 and consecutive in memory.

    The first two are cos and sin of the odd bins, (Q, row_length(n_fft)). The other four are cos of the bins 4 i, cos of 4 i +
    2, sin of 4 i and sin of 4 i + 2, each (H, row_length(n_fft / 2)). The result is cached for each ``n_fft`` and device.
    """
    quarter, eighth = n_fft // 4, n_fft // 8
    cos, sin = _waves(n_fft, 2 * torch.arange(quarter) + 1, quarter + 1)
    (cos_4, sin_4), (cos_2, sin_2) = (_waves(n_fft, 4 * torch.arange(eighth) + b, eighth + 1) for b in (0, 2))
    # These entries are zero in theory, but are computed with rounding errors. The folded rows have values there: set zeros.
    cos[:, quarter] = cos_2[:, eighth] = sin_4[:, eighth] = 0
    waves = (cos, sin, cos_4, cos_2, sin_4, sin_2)
    found = torch.cat([wave.flatten() for wave in waves]).float().to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # other streams will read the basis
    parts = found.split([wave.numel() for wave in waves])
    return tuple(part.view(wave.shape) for part, wave in zip(parts, waves, strict=True))


def _sizes(n_fft: int) -> dict[str, int]:
    return {"N": n_fft, "ROW": row_length(n_fft), "SHORT": row_length(n_fft // 2)}


def fold(signal: Tensor, window: Tensor, hop: int, mean: Tensor | None, dy: Tensor | None, last: Tensor) -> Tensor:
    """Return the folded rows of all F frames of n signals, (n F, 2 ROW + 4 SHORT), float32.

    ROW and SHORT are the lengths of the rows for odd and for even bins.

    Write bin N / 2 into ``last``, which is y (n, F, N / 2 + 1). Given ``dy``, write the gradient of the bin's sum into ``last``
    (n F,) instead.
    """
    n, samples = signal.shape
    sizes, frames = _sizes(len(window)), samples // hop + 1
    folded = torch.empty(n * frames, 2 * sizes["ROW"] + 4 * sizes["SHORT"], dtype=torch.float32, device=signal.device)
    launch(
        fold_kernel, n * frames, signal,
        p_signal=signal, p_window=window, p_mean=mean, p_dy=dy, p_folded=folded, p_last=last, SAMPLES=samples,
        FRAMES=frames, signal_n=signal.stride(0), HOP=hop, **sizes, BLOCK=FOLD_BLOCK, num_warps=4,
    )  # fmt: skip
    return folded


def transform(
    folded: Tensor, n_fft: int, mean: Tensor | None, dy: Tensor | None, y: Tensor | None, dparts: Tensor | None
) -> None:
    """Write all bins of y except N / 2.

    Given ``dy``, write the gradients of the products with :func:`basis` into ``dparts`` (n F, 4 Q) instead, in the order of the
    matrices of :func:`basis`.
    """
    rows, block = len(folded), block_columns(folded.device)
    blocks = -(-(n_fft // 4) // block) + 2 * -(-(n_fft // 8) // block)
    launch(
        power_kernel, -(-rows // BLOCK_ROWS) * blocks, folded,
        p_folded=folded, p_basis=basis(n_fft, folded.device)[0], p_mean=mean, p_dy=dy, p_y=y, p_dparts=dparts, ROWS=rows,
        **_sizes(n_fft), BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=block, BLOCK_K=BLOCK_K,
        PRECISION=exact_products(), num_warps=4, num_stages=STAGES,
    )  # fmt: skip


def log_power_forward(signal: Tensor, window: Tensor, mean: Tensor, hop: int) -> Tensor:
    """Return y (n, F, N / 2 + 1). All tensors are float32; ``signal`` (n, samples) has unit stride along samples."""
    frames, bins = signal.shape[1] // hop + 1, len(window) // 2 + 1
    y = torch.empty(len(signal), frames, bins, dtype=torch.float32, device=signal.device)
    transform(fold(signal, window, hop, mean, None, y), len(window), mean, None, y, None)
    return y


BLOCK = 128


@triton.jit
def _covered(p_cos_even, p_cos_odd, p_sin_even, p_sin_odd, p_last, p_window, i_u, m_u, row, FRAMES, N, HOP):
    """Return the sum of w[m] dv[f, m] over all frames f of one item that cover the places ``i_u`` of the padded signal.

    The symbols are defined at the top of this module.
    """
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
    """Return the gradient of the signal, (n, samples). All tensors are float32.

    ``dy`` (n, F, N / 2 + 1) is contiguous; ``signal`` is as for :func:`log_power_forward`.
    """
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
