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
from .windows import frame_spectra

__all__ = ["Correlations", "correlate", "solve"]

_BLOCK_FFT = 1 << 15
_BLOCKS_AT_ONCE = 2
_REFINEMENTS = 6
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
        """What is left when only one source's reference explains only its own estimate."""
        mine = slice(source * channels, (source + 1) * channels)
        return Correlations(self.references[mine, mine], self.estimates[mine, mine])


def correlate(references: Signals, estimates: Signals, delays: int) -> Correlations:
    """Lagged products for lags 0 to delays - 1, by FFT over blocks, so memory does not grow with the track."""
    length = _BLOCK_FFT
    while length < 4 * delays:
        length *= 2
    block = length - delays + 1
    channels = references.sources * references.channels
    bins = length // 2 + 1
    total = torch.zeros(bins, channels, 2 * channels, dtype=torch.complex128, device=references.device)
    starts = range(0, references.samples, block)
    for first in range(0, len(starts), _BLOCKS_AT_ONCE):
        batch = starts[first : first + _BLOCKS_AT_ONCE]
        now = [slice(start, start + block) for start in batch]
        ahead = [slice(start, start + block + delays - 1) for start in batch]
        here = frame_spectra(references, now, length).flatten(2)
        later = torch.cat([frame_spectra(signals, ahead, length).flatten(2) for signals in (references, estimates)], 2)
        total.baddbmm_(here.mT.conj(), later)
    lagged = torch.fft.irfft(total, n=length, dim=0)[:delays].movedim(0, 2)
    return Correlations(lagged[:, :channels].contiguous(), lagged[:, channels:].contiguous())


def solve(correlations: Correlations) -> tuple[torch.Tensor, str]:
    """Filters (a, delays, e), float64, and the method: ``"cholesky"``, ``"shifted cholesky"`` or ``"lstsq"``.

    As in museval, the float64 epsilon is added to the diagonal, which keeps the filters of an all-zero channel at zero.

    G is positive semi-definite by construction, and on most music Cholesky is all it takes. Mono stems make G exactly
    singular; rounding then leaves a failed or a meaningless factor (an LU factorisation fares no better: it meets a
    zero pivot, or blows up unnoticed). So the residual ``|G c - d| / |d|`` is checked, and where it is bad G is
    shifted by about its rounding error and the shift is removed again by iterative refinement: directions with energy
    converge, those without stay near zero, where they change no projection. Least squares is the last resort.
    """
    right = correlations.estimates.movedim(1, 2).flatten(0, 1)
    gram = _gram(correlations.references)
    solution, method = _cholesky(gram, right), "cholesky"
    if solution is None:
        solution, method = _shifted_cholesky(gram, right), "shifted cholesky"
    if solution is None:
        # The rank-revealing driver exists on the CPU only.
        solution = torch.linalg.lstsq(gram.cpu(), right.cpu(), driver="gelsd").solution.to(right.device)
        method = "lstsq"
    return solution.unflatten(0, (-1, correlations.delays)), method


def _cholesky(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        return None
    solution = torch.cholesky_solve(right, factor)
    return solution if _residual(gram, solution, right) < _RESIDUAL else None


def _shifted_cholesky(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    diagonal = gram.diagonal()
    rounding = torch.finfo(torch.float64).eps * float(diagonal.sum())
    for shift in (4 * rounding, 400 * rounding):
        shifted = gram.clone()
        shifted.diagonal().add_(shift)
        factor, info = torch.linalg.cholesky_ex(shifted)
        del shifted
        if int(info):
            continue
        solution = torch.cholesky_solve(right, factor)
        for _ in range(_REFINEMENTS):
            solution = solution + torch.cholesky_solve(right - gram @ solution, factor)
        if _residual(gram, solution, right) < _RESIDUAL:
            return solution
    return None


def _residual(gram: torch.Tensor, solution: torch.Tensor, right: torch.Tensor) -> float:
    """The largest ``|G c - d| / |d|`` of all estimates; NaN, which is never small, where the solution is not finite."""
    scale = right.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return float(((gram @ solution - right).norm(dim=0) / scale).max())


def _gram(lagged: torch.Tensor) -> torch.Tensor:
    """The symmetric block-Toeplitz matrix G, (a * delays, a * delays), with epsilon on its diagonal."""
    channels, _, delays = lagged.shape
    gram = lagged.new_empty(channels, delays, channels, delays)
    for a in range(channels):
        for b in range(a + 1):
            # Lags from -(delays - 1) to delays - 1 of tau - sigma, read as a Hankel matrix with its rows reversed.
            sequence = torch.cat([lagged[b, a].flip(0)[:-1], lagged[a, b]]).flip(0)
            toeplitz = sequence.unfold(0, delays, 1).flip(0)
            gram[a, :, b] = toeplitz
            gram[b, :, a] = toeplitz.T
    gram = gram.view(channels * delays, channels * delays)
    gram.diagonal().add_(torch.finfo(torch.float64).eps)
    return gram
