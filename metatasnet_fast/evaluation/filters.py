"""Compute BSSEval's distortion filters: least squares of the estimates on delayed references, solved once per track.

With ``x_a`` the reference channels (a = source and channel), the filters ``c`` minimise
``|s_hat - sum_{a, tau} c_{a, tau} x_a(t - tau)|^2`` over the zero-padded track. The normal equations
``G c = d`` have ``G[(a, tau), (b, sigma)] = R_ab(tau - sigma)`` and ``d[(a, tau)] = R_{a, s_hat}(tau)`` with
``R_ab(k) = sum_t x_a(t) x_b(t + k)``. G does not depend on the estimate, so all estimates share one factorisation.

Source: Vincent, Gribonval, Fevotte 2006; Liutkus, Stoeter, Ito 2018 (version 4: filters of the whole track).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .bss_eval import Signals

__all__ = ["Correlations", "correlate", "fft_length", "projected_energies", "solve"]

_BLOCK_FFT = 1 << 12
_CHOLESKY_BLOCK = 256
_BLOCKS_AT_ONCE = {"cpu": 4, "cuda": 256}
_BYTES_PER_BATCH = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Bytes of a batch: on a CPU, a batch fits into a core's cache; on a GPU, a batch keeps all multiprocessors busy."""
_RESIDUAL = 1e-9
"""Largest residual of a good solution. On music, residuals stay below 1e-12; a broken factorisation gives far more."""


@dataclass(frozen=True)
class Correlations:
    """Lagged products of the signals of a track, float64, with the lag k in the last dimension.

    `references` (a, b, delays) is ``sum_t x_a(t) x_b(t + k)``; `estimates` (a, e, delays) is the same with estimates.
    Here a and b count the channels of all references, e those of all estimates.
    """

    references: torch.Tensor
    estimates: torch.Tensor

    def own(self, source: int, channels: int) -> Correlations:
        """Return the correlations of one source's reference with its own estimate alone."""
        mine = slice(source * channels, (source + 1) * channels)
        return Correlations(self.references[mine, mine], self.estimates[mine, mine])


def correlate(references: Signals, estimates: Signals, delays: int) -> Correlations:
    """Compute the lagged products for lags 0 to delays - 1, by FFT over blocks: memory does not grow with the track.

    A block is multiplied with the samples up to delays - 1 ahead of it. The products of a few blocks are one matrix
    product for each frequency: (channels, blocks) times (blocks, 2 channels).
    """
    length = _BLOCK_FFT
    while length < 4 * delays:
        length *= 2
    block = length - delays + 1
    channels, bins, device = references.sources * references.channels, length // 2 + 1, references.device
    at_once = _BLOCKS_AT_ONCE.get(device.type, _BLOCKS_AT_ONCE["cuda"])
    total = torch.zeros(bins, channels, 2 * channels, dtype=torch.complex128, device=device)
    here = total.new_zeros(bins, channels, at_once)
    later = total.new_zeros(bins, at_once, 2 * channels)
    pieces = torch.zeros(3, channels, length, dtype=torch.float64, device=device)
    for first in range(0, references.samples, at_once * block):
        starts = range(first, min(first + at_once * block, references.samples), block)
        for index, start in enumerate(starts):
            pieces[0, :, :block] = references.channels_first(slice(start, start + block))
            ahead = slice(start, start + length)
            pieces[1] = references.channels_first(ahead)
            pieces[2] = estimates.channels_first(ahead)
            spectra = torch.fft.rfft(pieces)
            here[:, :, index] = spectra[0].T.conj()
            later[:, index] = spectra[1:].flatten(0, 1).T
        total.baddbmm_(here[:, :, : len(starts)], later[:, : len(starts)])
    lagged = torch.fft.irfft(total, n=length, dim=0)[:delays].movedim(0, 2)
    return Correlations(lagged[:, :channels].contiguous(), lagged[:, channels:].contiguous())


def solve(correlations: Correlations, noise: float = 0.0) -> tuple[torch.Tensor, str]:
    """Return the filters (a, delays, e), float64, and the method: ``"cholesky"``, ``"shifted cholesky"`` or ``"lstsq"``.

    The sizes a and e are those of :class:`Correlations`. As in museval, the float64 epsilon is added to the diagonal of
    G, which keeps the filters of an all-zero channel at zero. `noise`, the energy of white noise in every reference
    relative to the reference's energy, is added there, too.

    G is positive semi-definite by construction, and for most music Cholesky suffices. Mono stems make G exactly
    singular: because of rounding, the factorisation then fails or gives a meaningless factor (LU is no better: it meets
    a zero pivot, or its factor grows without an error). So the residual ``|G c - d| / |d|`` is checked. If it is too
    large, a number of about G's rounding error is added to the diagonal. One step of iterative refinement then removes
    the effect of this shift where there is energy (on music with a mono bass, more steps change less than 1e-7 dB).
    Directions without energy stay near zero; more steps would only amplify their rounding errors. If this fails, too,
    the equations are solved by least squares.
    """
    right = correlations.estimates.movedim(1, 2).flatten(0, 1)
    scale = right.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    lagged = correlations.references.clone()
    diagonal = lagged[..., 0].diagonal()
    diagonal.mul_(1 + noise).add_(torch.finfo(torch.float64).eps)
    rounding = torch.finfo(torch.float64).eps * float(diagonal.sum()) * lagged.shape[-1]
    for shift in (0.0, 4 * rounding, 400 * rounding):
        factor = _cholesky_factor(_gram(lagged, shift))
        if factor is None:
            continue
        solution = _substitute(factor, right)
        if shift:
            solution = solution + _substitute(factor, right - _gram_times(lagged, solution))
        del factor  # it takes as much memory as the matrix of the next attempt
        # A solution that is not finite has the residual NaN, which is never small.
        if float(((right - _gram_times(lagged, solution)).norm(dim=0) / scale).max()) < _RESIDUAL:
            method = "shifted cholesky" if shift else "cholesky"
            break
    else:
        # The rank-revealing driver exists on the CPU only.
        lower = _gram(lagged, shift=0.0).cpu().tril()
        gram = lower + lower.tril(-1).mT
        solution, method = torch.linalg.lstsq(gram, right.cpu(), driver="gelsd").solution.to(right.device), "lstsq"
    return solution.view(-1, lagged.shape[-1], right.shape[1]), method


def _cholesky_factor(gram: torch.Tensor) -> torch.Tensor | None:
    """Return the lower factor in the memory of `gram`; None if `gram` is not positive definite.

    The upper triangle of `gram` is not read. The work is done in blocks of columns, so that almost everything is matrix
    products: 0.57 s for 4,096 rows, where LAPACK takes 0.72 s (one core of an AMD EPYC, Zen 5).
    """
    for start in range(0, len(gram), _CHOLESKY_BLOCK):
        stop = min(start + _CHOLESKY_BLOCK, len(gram))
        columns = gram[start:, start:stop]
        columns.addmm_(gram[start:, :start], gram[start:stop, :start].mT, alpha=-1)
        factor, failed = torch.linalg.cholesky_ex(columns[: stop - start])
        if int(failed):
            return None
        columns[: stop - start] = factor
        if stop < len(gram):
            below = columns[stop - start :]
            below.copy_(torch.linalg.solve_triangular(factor.mT, below, upper=True, left=False))
    return gram


def _substitute(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    forward = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: torch.Tensor = torch.linalg.solve_triangular(factor.mT, forward, upper=True)
    return solution


def _sequences(lagged: torch.Tensor) -> torch.Tensor:
    """Return the correlations ``R_ab(k)``, (a, b, 2 delays - 1), for k from -(delays - 1) to delays - 1.

    They follow from ``lagged`` (a, b, delays), as ``R_ab(-k) = R_ba(k)``.
    """
    return torch.cat([lagged.transpose(0, 1).flip(2)[..., :-1], lagged], dim=2)


def _gram_times(lagged: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Return G times filters (a * delays, e), computed as a convolution with the lags. G itself no longer exists: its
    memory holds the factor."""
    delays = lagged.shape[-1]
    length = fft_length(3 * delays)
    lags = torch.fft.rfft(_sequences(lagged), n=length)
    spectra = torch.fft.rfft(filters.view(-1, delays, filters.shape[1]), n=length, dim=1)
    product: torch.Tensor = torch.fft.irfft(torch.einsum("abf,bfe->afe", lags, spectra), n=length, dim=1)
    return product[:, delays - 1 : 2 * delays - 1].flatten(0, 1)


def _gram(lagged: torch.Tensor, shift: float) -> torch.Tensor:
    """Return the lower triangle of the block-Toeplitz matrix G, (a * delays, a * delays), with `shift` on its diagonal."""
    channels, _, delays = lagged.shape
    gram = lagged.new_empty(channels, delays, channels, delays)
    sequences = _sequences(lagged)
    for a in range(channels):
        for b in range(a + 1):
            # Entry (tau, sigma) is lag tau - sigma: a Hankel matrix of the reversed sequence, with its rows reversed.
            gram[a, :, b] = sequences[a, b].flip(0).unfold(0, delays, 1).flip(0)
    gram = gram.view(channels * delays, channels * delays)
    gram.diagonal().add_(shift)
    return gram


def projected_energies(
    references: Signals,
    estimates: Signals,
    frames: Sequence[slice],
    all_filters: torch.Tensor,
    own_filters: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return the energies of every part of the decomposition, each (sources, frames), float64.

    With ``P`` the reference windows through `all_filters` (sources * channels, delays, sources * channels) and
    ``P_j`` source j's window through its `own_filters` (sources, channels, delays, channels), the parts are
    ``spatial = P_j - s``, ``target = P_j``, ``interference = P - P_j``, ``projection = P``, ``artifacts = s_hat - P``.

    The filtered windows keep their tail of delays - 1 samples, as in BSSEval. No inverse transform is needed: the
    energies are taken in the frequency domain by Parseval's theorem.
    """
    delays = all_filters.shape[1]
    length = fft_length(frames[0].stop - frames[0].start + delays - 1)
    all_spectra, own_spectra = (
        _filter_spectra(filters, length) for filters in (all_filters, own_filters.flatten(0, 1))
    )
    names = ("target", "projection", "interference", "spatial", "artifacts")
    # Allocate the results first: small tensors between large ones kept the heap from shrinking, by 100 MB.
    energies = all_filters.new_empty(len(names), len(frames), references.sources)
    at_once = _BYTES_PER_BATCH.get(references.device.type, _BYTES_PER_BATCH["cuda"])
    size = max(1, at_once // (8 * length * references.sources * references.channels))
    for start in range(0, len(frames), size):
        now = slice(start, start + size)
        batch = frames[now]
        reference = _frame_spectra(references, batch, length)
        estimate = _frame_spectra(estimates, batch, length)
        bins, _, sources, channels = reference.shape
        projection = torch.bmm(reference.flatten(2), all_spectra).view_as(reference)
        target = torch.einsum("fwjc,fjcd->fwjd", reference, own_spectra.view(bins, sources, channels, channels))
        energies[0, now] = _energy(target, length)
        energies[1, now] = _energy(projection, length)
        energies[2, now] = _energy(projection - target, length)
        # Subtract in place: the spectra of a few windows take most of the memory here.
        energies[3, now] = _energy(target.sub_(reference), length)
        energies[4, now] = _energy(estimate.sub_(projection), length)
    return {name: energy.T for name, energy in zip(names, energies, strict=True)}


def fft_length(at_least: int) -> int:
    """Return the smallest even length of the form 2^a 3^b 5^c that is not below `at_least`."""
    powers = range(at_least.bit_length())
    odd: list[int] = [3**three * 5**five for three in powers for five in powers]
    return min(each << max(1, (-(-at_least // each) - 1).bit_length()) for each in odd)


def _frame_spectra(signals: Signals, frames: Sequence[slice], length: int) -> torch.Tensor:
    """Return zero-padded spectra, complex128 (length / 2 + 1, frames, sources, channels)."""
    pieces = torch.stack([signals.channels_first(frame) for frame in frames])
    spectra: torch.Tensor = torch.fft.rfft(pieces, n=length)
    return spectra.movedim(2, 0).reshape(-1, len(frames), signals.sources, signals.channels)


def _filter_spectra(filters: torch.Tensor, length: int) -> torch.Tensor:
    """Return the spectra of filters (inputs, delays, outputs), complex128 (length / 2 + 1, inputs, outputs)."""
    inputs, _, outputs = filters.shape
    spectra = filters.new_empty(length // 2 + 1, inputs, outputs, dtype=torch.complex128)
    # Transform one input at a time: padded to a window's length, all filters together would take as much memory again.
    for index in range(inputs):
        spectra[:, index] = torch.fft.rfft(filters[index].T, n=length).T
    return spectra


def _energy(spectrum: torch.Tensor, length: int) -> torch.Tensor:
    """Return the energies per window and source of real signals of an even `length`, from their one-sided spectra."""
    power = torch.view_as_real(spectrum).flatten(3).square()
    # Sum over the bins first, which are rows of contiguous memory.
    energy: torch.Tensor = ((2 * power.sum(dim=0) - power[0] - power[-1]) / length).sum(dim=-1)
    return energy
