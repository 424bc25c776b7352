"""The frames of BSSEval v4: where they start, which of them count, and the energies inside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .signals import Signals

__all__ = ["fft_length", "frame_slices", "frame_spectra", "plain_energies", "projected_energies", "silent_frames"]

_BYTES_PER_BATCH = 4 << 20


def frame_slices(samples: int, window: int, hop: int) -> list[slice]:
    """All whole windows of a signal: ``floor((samples - window + hop) / hop)`` of them.

    A signal that is not longer than the window is one frame; a shorter tail is not counted.
    """
    if window >= samples:
        return [slice(0, samples)]
    return [slice(start, start + window) for start in range(0, samples - window + 1, hop)]


def silent_frames(signals: Signals, frames: Sequence[slice]) -> torch.Tensor:
    """Which sources are silent in which frames, bool (sources, frames)."""
    return torch.stack([signals.silent(frame.start, frame.stop) for frame in frames], dim=1)


def plain_energies(
    references: Signals, estimates: Signals, frames: Sequence[slice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies of the references, ``|s|^2``, and of all errors together, ``|s_hat - s|^2``.

    Both (sources, frames), float64.
    """
    energies = torch.empty(2, references.sources, len(frames), dtype=torch.float64, device=references.device)
    for index, frame in enumerate(frames):
        reference = references.piece(frame.start, frame.stop)
        error = estimates.piece(frame.start, frame.stop) - reference
        energies[0, :, index] = torch.linalg.vector_norm(reference, dim=(1, 2)).square()
        energies[1, :, index] = torch.linalg.vector_norm(error, dim=(1, 2)).square()
    return energies[0], energies[1]


def projected_energies(
    references: Signals,
    estimates: Signals,
    frames: Sequence[slice],
    all_filters: torch.Tensor,
    own_filters: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Energies of every part of the decomposition, each (sources, frames), float64.

    With ``P`` the reference windows through `all_filters` (sources * channels, delays, sources * channels) and
    ``P_j`` source j's window through its `own_filters` (sources, channels, delays, channels), the parts are
    ``spatial = P_j - s``, ``target = P_j``, ``interference = P - P_j``, ``projection = P``, ``artifacts = s_hat - P``.

    The filtered windows keep their tail of delays - 1 samples, as in BSSEval. No inverse transform is needed: the
    energies are taken in the frequency domain by Parseval's theorem.
    """
    delays = all_filters.shape[1]
    length = fft_length(frames[0].stop - frames[0].start + delays - 1)
    all_spectra = _filter_spectra(all_filters, length)
    own_spectra = _filter_spectra(own_filters.flatten(0, 1), length)
    names = ("target", "spatial", "interference", "projection", "artifacts")
    # Results first: small tensors left between large ones keep the heap from shrinking (measured: 130 to 230 MB).
    energies = all_filters.new_empty(len(names), len(frames), references.sources)
    target_energy, spatial_energy, interference_energy, projection_energy, artifacts_energy = energies
    size = max(1, _BYTES_PER_BATCH // (8 * length * references.sources * references.channels))
    for start in range(0, len(frames), size):
        now = slice(start, start + size)
        batch = frames[now]
        reference = frame_spectra(references, batch, length)
        estimate = frame_spectra(estimates, batch, length)
        bins, _, sources, channels = reference.shape
        projection = torch.bmm(reference.flatten(2), all_spectra).view_as(reference)
        target = torch.einsum("fwjc,fjcd->fwjd", reference, own_spectra.view(bins, sources, channels, channels))
        target_energy[now] = _energy(target, length)
        projection_energy[now] = _energy(projection, length)
        interference_energy[now] = _energy(projection - target, length)
        # In place: the spectra of a few windows are what this stage needs most memory for.
        spatial_energy[now] = _energy(target.sub_(reference), length)
        artifacts_energy[now] = _energy(estimate.sub_(projection), length)
    return {name: energy.T for name, energy in zip(names, energies, strict=True)}


def fft_length(at_least: int) -> int:
    """The smallest even length of the form 2^a 3^b 5^c that is not below `at_least`."""
    best = 2
    while best < at_least:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            length = 2 * three
            while length < at_least:
                length *= 2
            best = min(best, length)
            three *= 3
        five *= 5
    return best


def frame_spectra(signals: Signals, frames: Sequence[slice], length: int) -> torch.Tensor:
    """Zero-padded spectra, complex128 (length / 2 + 1, frames, sources, channels)."""
    pieces = torch.stack([signals.piece(frame.start, frame.stop) for frame in frames])
    spectra: torch.Tensor = torch.fft.rfft(pieces, n=length, dim=2)
    return spectra.movedim(2, 0)


def _filter_spectra(filters: torch.Tensor, length: int) -> torch.Tensor:
    """Spectra of filters (inputs, delays, outputs), complex128 (length / 2 + 1, inputs, outputs)."""
    inputs, _, outputs = filters.shape
    spectra = filters.new_empty(length // 2 + 1, inputs, outputs, dtype=torch.complex128)
    # One input at a time: padded to the length of a window all filters together are as large as a matrix of them.
    for index in range(inputs):
        spectra[:, index] = torch.fft.rfft(filters[index].T, n=length).T
    return spectra


def _energy(spectrum: torch.Tensor, length: int) -> torch.Tensor:
    """Energies per window and source of real signals of an even `length` from their one-sided spectra."""
    power = torch.view_as_real(spectrum).square().sum(dim=(-1, -2))
    energy: torch.Tensor = (2 * power.sum(dim=0) - power[0] - power[-1]) / length
    return energy
