"""Bands in which a reference has no energy: there the filters of BSSEval are undetermined.

The filters are fitted to the whole track, where such a band costs nothing, and applied to frames, whose edges put energy
into it. So ISR, SIR and SAR depend on how the computer rounds: the same music, low-passed at 3 kHz, has a SIR of 4 dB in
float32 and of 17 dB in 16 bits, whose rounding is noise in every band. SDR uses no filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .signals import Signals

__all__ = ["EmptyBand", "EmptyBandWarning", "empty_bands", "empty_sentence"]

_LENGTH = 4096
_SEGMENTS = 256
"""Segments of a track that are looked at, evenly spread."""

_EMPTY = 1e-12
"""Share of the largest bin's power below which a bin is empty: far below the rounding to 16 bits, far above that of float64."""

_NARROWEST = 20
"""Bins; the window spreads a tone over 13."""

# Kaiser's window with this parameter has side lobes 155 dB down.
_KAISER = 20.0


class EmptyBandWarning(UserWarning):
    """A reference has no energy in a band, so ISR, SIR and SAR depend on rounding."""


@dataclass(frozen=True)
class EmptyBand:
    """The widest band without energy of a reference, in Hz."""

    name: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} from {self.low:.0f} to {self.high:.0f} Hz"


def empty_sentence(bands: Sequence[EmptyBand]) -> str:
    """Return the sentence of a warning about references without energy in a band."""
    return (
        f"References without any energy in a band: {', '.join(map(str, bands))}. ISR, SIR and SAR of this track depend on "
        "rounding. Regularise, or score files of 16 bits."
    )


def empty_bands(references: Signals, sample_rate: float, names: Sequence[str]) -> tuple[EmptyBand, ...]:
    """The references that sound but have no energy in some band, by their averaged power spectra (Welch's method)."""
    if references.samples < _LENGTH:
        return ()
    last = references.samples - _LENGTH
    segments = min(_SEGMENTS, 1 + last // (_LENGTH // 2))
    starts = [last * index // max(1, segments - 1) for index in range(segments)]
    window = torch.kaiser_window(_LENGTH, False, _KAISER, dtype=torch.float64, device=references.device)
    shape = (references.sources * references.channels, _LENGTH // 2 + 1)
    power = torch.zeros(shape, dtype=torch.float64, device=references.device)
    for start in starts:
        power += torch.fft.rfft(references.channels_first(start, start + _LENGTH) * window).abs().square()
    found = []
    largest = power.amax(dim=1, keepdim=True)
    empty = ((power < _EMPTY * largest) & (largest > 0)).view(references.sources, references.channels, -1).any(dim=1)
    for name, bins in zip(names, empty.tolist(), strict=True):
        low, high = _longest_run(bins)
        if high - low >= _NARROWEST:
            hertz = sample_rate / _LENGTH
            found.append(EmptyBand(name, low * hertz, high * hertz))
    return tuple(found)


def _longest_run(flags: Sequence[bool]) -> tuple[int, int]:
    """Start and end of the longest run of true flags."""
    best, start = (0, 0), 0
    for index, flag in enumerate([*flags, False]):
        if not flag:
            best = max(best, (start, index), key=lambda run: run[1] - run[0])
            start = index + 1
    return best
