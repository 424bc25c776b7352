"""The distortion filters of BSSEval: least squares of the estimates on delayed references, solved once per track.

With ``x_a`` the reference channels (a = source and channel), the filters ``c`` minimise
``|s_hat - sum_{a, tau} c_{a, tau} x_a(t - tau)|^2`` over the zero-padded track. The normal equations
``G c = d`` have ``G[(a, tau), (b, sigma)] = R_ab(tau - sigma)`` and ``d[(a, tau)] = R_{a, s_hat}(tau)`` with
``R_ab(k) = sum_t x_a(t) x_b(t + k)``. G does not depend on the estimate, so all estimates share one factorisation.

Source: Vincent, Gribonval, Fevotte 2006; Liutkus, Stoeter, Ito 2018 (version 4: filters of the whole track).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .signals import Signals
from .windows import fft_length

__all__ = ["Correlations", "correlate", "solve"]

_BLOCK_FFT = 1 << 12
_BLOCKS_AT_ONCE = 4
# Sound solutions stay below 1e-12 on music; a broken factorisation is orders of magnitude above this.
_RESIDUAL = 1e-9


@dataclass(frozen=True)
class Correlations:
    """Lagged products of a track, float64, lag last.

    `references` (a, b, delays): ``sum_t x_a(t) x_b(t + k)``; `estimates` (a, e, delays): the same with estimates.
    """

    references: torch.Tensor
    estimates: torch.Tensor

    @property
    def delays(self) -> int:
        return self.references.shape[-1]

    def own(self, source: int, channels: int) -> Correlations:
        """Return the correlations of one source's reference with its own estimate alone."""
        mine = slice(source * channels, (source + 1) * channels)
        return Correlations(self.references[mine, mine], self.estimates[mine, mine])


def correlate(references: Signals, estimates: Signals, delays: int) -> Correlations:
    """Lagged products for lags 0 to delays - 1, by FFT over blocks, so memory does not grow with the track.

    A block is multiplied with what lies up to delays - 1 samples ahead. The products of a few blocks are one matrix product
    for each frequency: (channels, blocks) times (blocks, 2 channels).
    """
    length = _BLOCK_FFT
    while length < 4 * delays:
        length *= 2
    block = length - delays + 1
    channels, bins, device = references.sources * references.channels, length // 2 + 1, references.device
    total = torch.zeros(bins, channels, 2 * channels, dtype=torch.complex128, device=device)
    here = total.new_zeros(bins, channels, _BLOCKS_AT_ONCE)
    later = total.new_zeros(bins, _BLOCKS_AT_ONCE, 2 * channels)
    pieces = torch.zeros(3, channels, length, dtype=torch.float64, device=device)
    for first in range(0, references.samples, _BLOCKS_AT_ONCE * block):
        starts = range(first, min(first + _BLOCKS_AT_ONCE * block, references.samples), block)
        for index, start in enumerate(starts):
            pieces[0, :, :block] = references.channels_first(start, start + block)
            pieces[1] = references.channels_first(start, start + length)
            pieces[2] = estimates.channels_first(start, start + length)
            spectra = torch.fft.rfft(pieces)
            here[:, :, index] = spectra[0].T.conj()
            later[:, index] = spectra[1:].flatten(0, 1).T
        total.baddbmm_(here[:, :, : len(starts)], later[:, : len(starts)])
    lagged = torch.fft.irfft(total, n=length, dim=0)[:delays].movedim(0, 2)
    return Correlations(lagged[:, :channels].contiguous(), lagged[:, channels:].contiguous())


def solve(correlations: Correlations, noise: float = 0.0) -> tuple[torch.Tensor, str]:
    """Filters (a, delays, e), float64, and the method: ``"cholesky"``, ``"shifted cholesky"`` or ``"lstsq"``.

    As in museval, the float64 epsilon is added to the diagonal, which keeps the filters of an all-zero channel at zero.
    `noise` is the energy of white noise in every reference, relative to its own: the same is added to the diagonal.

    G is positive semi-definite by construction, and on most music Cholesky is all it takes. Mono stems make G exactly
    singular; rounding then leaves a failed or a meaningless factor (an LU factorisation fares no better: it meets a
    zero pivot, or blows up unnoticed). So the residual ``|G c - d| / |d|`` is checked, and where it is bad G is
    shifted by about its rounding error, and one step of iterative refinement removes the shift where there is energy
    (on music with a mono bass, more steps change less than 1e-7 dB). Directions without energy stay near zero; more
    steps would only amplify their rounding errors. Least squares is the last resort.

    Signals that have no energy at all in a band (floats low-passed exactly; decoders round to 16 bits, which is noise
    enough) leave the filters undetermined there, and with them every score but SDR: museval's ISR is then arbitrary.
    :func:`.bands.empty_band` finds such bands, and `noise` determines the filters.
    """
    right = correlations.estimates.movedim(1, 2).flatten(0, 1)
    lagged = correlations.references.clone()
    diagonal = lagged[..., 0].diagonal()
    diagonal.mul_(1 + noise).add_(torch.finfo(torch.float64).eps)
    rounding = torch.finfo(torch.float64).eps * float(diagonal.sum()) * correlations.delays
    for shift in (0.0, 4 * rounding, 400 * rounding):
        solution = _by_cholesky(lagged, right, shift)
        if solution is not None and _relative_norm(right - _gram_times(lagged, solution), right) < _RESIDUAL:
            method = "shifted cholesky" if shift else "cholesky"
            break
    else:
        # The rank-revealing driver exists on the CPU only.
        gram = _gram(lagged, shift=0.0).cpu()
        solution, method = torch.linalg.lstsq(gram, right.cpu(), driver="gelsd").solution.to(right.device), "lstsq"
    return solution.view(-1, correlations.delays, right.shape[1]), method


def _by_cholesky(lagged: torch.Tensor, right: torch.Tensor, shift: float) -> torch.Tensor | None:
    factor = _cholesky_factor(_gram(lagged, shift))
    if factor is None:
        return None
    solution = _substitute(factor, right)
    if shift:
        solution = solution + _substitute(factor, right - _gram_times(lagged, solution))
    return solution


def _cholesky_factor(gram: torch.Tensor) -> torch.Tensor | None:
    """The lower factor, in the memory of `gram`, or None where `gram` is not positive definite."""
    # LAPACK's order of columns, or the factorisation and the two substitutions copy 134 MB each.
    column_major = gram.mT
    failed = torch.empty((), dtype=torch.int32, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(column_major, out=(column_major, failed))
    return None if int(failed) else factor


def _substitute(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    forward = torch.linalg.solve_triangular(factor, right, upper=False)
    solution: torch.Tensor = torch.linalg.solve_triangular(factor.mT, forward, upper=True)
    return solution


def _relative_norm(residual: torch.Tensor, right: torch.Tensor) -> float:
    """The largest ``|G c - d| / |d|`` of all estimates; NaN, which is never small, where the solution is not finite."""
    scale = right.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return float((residual.norm(dim=0) / scale).max())


def _sequences(lagged: torch.Tensor) -> torch.Tensor:
    """``R_ab(k)`` for k from -(delays - 1) to delays - 1, (a, b, 2 delays - 1); ``R_ab(-k) = R_ba(k)``."""
    return torch.cat([lagged.transpose(0, 1).flip(2)[..., :-1], lagged], dim=2)


def _gram_times(lagged: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """``G c`` for filters (a * delays, e) without G, whose memory holds the factor: a convolution of the lags."""
    delays = lagged.shape[-1]
    length = fft_length(3 * delays)
    lags = torch.fft.rfft(_sequences(lagged), n=length)
    spectra = torch.fft.rfft(filters.view(-1, delays, filters.shape[1]), n=length, dim=1)
    product: torch.Tensor = torch.fft.irfft(torch.einsum("abf,bfe->afe", lags, spectra), n=length, dim=1)
    return product[:, delays - 1 : 2 * delays - 1].flatten(0, 1)


def _gram(lagged: torch.Tensor, shift: float) -> torch.Tensor:
    """The symmetric block-Toeplitz matrix G, (a * delays, a * delays), with `shift` on its diagonal."""
    channels, _, delays = lagged.shape
    gram = lagged.new_empty(channels, delays, channels, delays)
    sequences = _sequences(lagged)
    for a in range(channels):
        for b in range(a + 1):
            # Entry (tau, sigma) is lag tau - sigma: a Hankel matrix of the reversed sequence, with its rows reversed.
            toeplitz = sequences[a, b].flip(0).unfold(0, delays, 1).flip(0)
            gram[a, :, b] = toeplitz
            gram[b, :, a] = toeplitz.T
    gram = gram.view(channels * delays, channels * delays)
    gram.diagonal().add_(shift)
    return gram
