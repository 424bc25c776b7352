"""Read references and estimates of any real dtype in float64 pieces, without a float64 copy of the whole signals.

A reference may have no energy in some band. There the filters of BSSEval are undetermined: they are fitted to the whole
track, where such a band costs nothing, and applied to frames, whose edges put energy into it. So ISR, SIR and SAR depend on
how the computer rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MetaTasNetError, ShapeError

__all__ = [
    "EmptyBand", "EmptyBandWarning", "EvaluationError", "Signals", "SilentSourceError", "SilentSourceWarning",
    "empty_bands", "require_finite",
]  # fmt: skip

Audio = torch.Tensor | NDArray[Any]

MOST_CHANNELS = 64
"""A signal with more channels is taken for a mistake: a time axis in the place of the channels."""

BAND_FFT, MOST_SEGMENTS = 4096, 256
"""Samples of a segment for averaged spectra; and the most segments of a track, over which they are spread evenly."""
EMPTY = 1e-12
"""Share of the largest bin's power below which a bin is empty: far below rounding to 16 bits, far above float64's."""
NARROWEST = 20
"""Narrowest empty band, in bins; the window spreads a tone over 13."""
KAISER = 20.0
"""Kaiser's window with this parameter has side lobes 155 dB down."""


class EvaluationError(MetaTasNetError, ValueError):
    """Signals, scores or score files that cannot be evaluated."""


class SilentSourceError(EvaluationError):
    """A reference or an estimate that is silent from end to end, under ``strict=True``."""


class SilentSourceWarning(UserWarning):
    """A reference or an estimate is silent from end to end: under museval's rule of silence, the track has no valid
    frame (all are NaN)."""


class EmptyBandWarning(UserWarning):
    """A reference has no energy in a band, so ISR, SIR and SAR depend on rounding."""


class EmptyBand(NamedTuple):
    """The widest band without energy of a reference, in Hz."""

    name: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} from {self.low:.0f} to {self.high:.0f} Hz"


class Signals:
    """One set of sources, (sources, samples, channels), read in float64 pieces.

    Sources with channels first, (sources, channels, samples), and mono ones, (sources, samples), are recognised: an
    axis longer than ``MOST_CHANNELS`` holds samples. `samples` is the length that counts: later samples are ignored,
    missing ones read as zeros.
    """

    def __init__(self, audio: Audio | Sequence[Audio], what: str, samples: int | None = None) -> None:
        self.audio = _channels_last(_as_tensor(audio, what), what)
        if self.audio.numel() == 0:
            raise ShapeError(f"The {what} are empty, shape {tuple(self.audio.shape)}. Give at least one sample.")
        self.sources, available, self.channels = self.audio.shape
        self.samples = available if samples is None else samples
        self.audio = self.audio[:, : self.samples]

    @property
    def device(self) -> torch.device:
        return self.audio.device

    def piece(self, where: slice) -> torch.Tensor:
        """Return samples in float64, (sources, samples, channels), zeros beyond the end."""
        piece = self.audio[:, where].to(torch.float64)
        missing = where.stop - where.start - piece.shape[1]
        return torch.nn.functional.pad(piece, (0, 0, 0, missing)) if missing else piece

    def channels_first(self, where: slice) -> torch.Tensor:
        """Return samples in float64, (sources * channels, samples), zeros beyond the end."""
        return self.piece(where).mT.reshape(-1, where.stop - where.start)

    def silent(self, where: slice) -> torch.Tensor:
        """Return for each source whether it is silent in the samples ``where``, bool (sources,).

        Silent means that the channels sum to exactly zero at every sample, so left = -right counts as silent:
        museval's definition.
        """
        # Most windows are not silent, as a sixty-fourth of the samples shows. Only an undecided one is read in full.
        for step in (64, 1):
            audio = self.audio[:, where.start : where.stop : step]
            total = audio[..., 0].to(torch.float64)
            for channel in range(1, self.channels):
                total = total + audio[..., channel]
            found = (total == 0).all(dim=1)
            if not bool(found.any()):
                break
        return found


def require_finite(*values: torch.Tensor) -> None:
    """Raise :class:`EvaluationError` unless all energies or products of signals are finite."""
    if not all(bool(torch.isfinite(each).all()) for each in values):
        raise EvaluationError("A reference or an estimate holds NaN or infinite samples. Remove them.")


def empty_bands(references: Signals, sample_rate: float, names: Sequence[str]) -> tuple[EmptyBand, ...]:
    """Return the widest band without energy of each non-silent reference that has one, by Welch's averaged power spectra."""
    last = references.samples - BAND_FFT
    if last < 0:
        return ()
    segments = min(MOST_SEGMENTS, 1 + last // (BAND_FFT // 2))
    window = torch.kaiser_window(BAND_FFT, False, KAISER, dtype=torch.float64, device=references.device)
    power = window.new_zeros(references.sources * references.channels, BAND_FFT // 2 + 1)
    for index in range(segments):
        start = last * index // max(1, segments - 1)
        power += torch.fft.rfft(references.channels_first(slice(start, start + BAND_FFT)) * window).abs().square()
    largest = power.amax(dim=1, keepdim=True)
    empty = ((power < EMPTY * largest) & (largest > 0)).view(references.sources, references.channels, -1).any(dim=1)
    hertz, found = sample_rate / BAND_FFT, []
    for name, flags in zip(names, empty.tolist(), strict=True):
        runs = [[place for place, _ in run] for flag, run in groupby(enumerate(flags), itemgetter(1)) if flag]
        widest = max(runs, key=len, default=[])
        if len(widest) >= NARROWEST:
            found.append(EmptyBand(name, widest[0] * hertz, (widest[-1] + 1) * hertz))
    return tuple(found)


def _channels_last(audio: torch.Tensor, what: str) -> torch.Tensor:
    """Return sources as (sources, samples, channels); the input may have channels before samples, or no channel axis."""
    shape = tuple(audio.shape)
    if audio.dim() == 2 and shape[0] <= max(1, shape[1]):
        return audio[..., None]
    if audio.dim() != 3 or min(shape[1:]) > MOST_CHANNELS:
        raise ShapeError(
            f"The {what} have the shape {shape}. Give an array (sources, samples, channels) or (sources, channels, samples), "
            f"with at most {MOST_CHANNELS} channels."
        )
    return audio if shape[2] <= MOST_CHANNELS else audio.mT


def _as_tensor(audio: Audio | Sequence[Audio], what: str) -> torch.Tensor:
    try:
        if isinstance(audio, Sequence) and audio and isinstance(audio[0], torch.Tensor):
            audio = torch.stack([torch.as_tensor(source).detach() for source in audio])
        elif not isinstance(audio, torch.Tensor):
            array = np.asarray(audio)
            # torch cannot use negative strides, foreign byte order or read-only memory without a copy.
            if not (array.dtype.isnative and array.flags.writeable and min(array.strides, default=0) >= 0):
                array = array.astype(array.dtype.newbyteorder("="), order="C")
            audio = torch.from_numpy(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"The {what} are not one numeric array (sources, samples, channels): {error}. "
            "Give all sources the same length and number of channels."
        ) from error
    if audio.is_complex() or audio.dtype == torch.bool:
        raise ShapeError(f"The {what} have the dtype {audio.dtype}. Give real numbers.")
    # float64 does not exist on every accelerator; where it is missing the metric runs on the CPU.
    return audio.detach().cpu() if audio.device.type == "mps" else audio.detach()
