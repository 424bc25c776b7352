"""References and estimates as the metrics read them: any dtype in, float64 slices out, never a whole float64 copy.

A reference may have no energy in some band. There the filters of BSSEval are undetermined: they are fitted to the whole
track, where such a band costs nothing, and applied to frames, whose edges put energy into it. So ISR, SIR and SAR depend on
how the computer rounds: the same music, low-passed at 3 kHz, has a SIR of 4 dB in float32 and of 17 dB in 16 bits, whose
rounding is noise in every band. SDR uses no filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import MetaTasNetError, ShapeError

__all__ = [
    "EmptyBand", "EmptyBandWarning", "EvaluationError", "Signals", "SilentSource", "SilentSourceError", "SilentSourceWarning",
    "empty_bands", "warnings_of",
]  # fmt: skip

Audio = torch.Tensor | NDArray[Any]

MOST_CHANNELS = 64
"""A signal with more is a mistake: an axis of samples taken for one of channels."""

BAND_FFT, MOST_SEGMENTS = 4096, 256
"""Samples of the segments of a track whose spectra are averaged, and how many are looked at, evenly spread."""

EMPTY = 1e-12
"""Share of the largest bin's power below which a bin is empty: far below the rounding to 16 bits, far above that of float64."""

NARROWEST = 20
"""Bins; the window spreads a tone over 13."""

KAISER = 20.0
"""Kaiser's window with this parameter has side lobes 155 dB down."""


class EvaluationError(MetaTasNetError, ValueError):
    """Signals, scores or score files that cannot be evaluated."""


class SilentSourceError(EvaluationError):
    """A reference or an estimate that is silent from end to end, under ``strict=True``."""


class SilentSourceWarning(UserWarning):
    """A reference or an estimate is silent from end to end: in museval's terms the track has no frame that counts."""


class EmptyBandWarning(UserWarning):
    """A reference has no energy in a band, so ISR, SIR and SAR depend on rounding."""


@dataclass(frozen=True)
class SilentSource:
    """A signal that is silent from end to end; `signal` is ``"reference"`` or ``"estimate"``."""

    signal: str
    index: int
    name: str

    def __str__(self) -> str:
        return f"{self.signal} of {self.name}"


@dataclass(frozen=True)
class EmptyBand:
    """The widest band without energy of a reference, in Hz."""

    name: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} from {self.low:.0f} to {self.high:.0f} Hz"


def warnings_of(silent: Iterable[SilentSource], bands: Iterable[EmptyBand]) -> list[Warning]:
    """Return the warnings about signals that are silent from end to end, and about references without energy in a band."""
    found: list[Warning] = []
    if listed := ", ".join(map(str, silent)):
        found.append(
            SilentSourceWarning(
                f"Silent from end to end: {listed}. Leave these stems out to score the rest, or choose the rule of "
                "silence `own`."
            )
        )
    if listed := ", ".join(map(str, bands)):
        found.append(
            EmptyBandWarning(
                f"References without any energy in a band: {listed}. ISR, SIR and SAR of this track depend on rounding. "
                "Regularise, or score files of 16 bits."
            )
        )
    return found


class Signals:
    """One set of sources, (sources, samples, channels), read in float64 pieces.

    Sources with channels first, (sources, channels, samples), and mono ones, (sources, samples), are recognised: an
    axis longer than ``MOST_CHANNELS`` holds samples. `samples` is the length that counts: what lies beyond it is ignored,
    what is missing reads as zeros.
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

    def piece(self, start: int, stop: int) -> torch.Tensor:
        """Samples `start` to `stop` in float64, (sources, stop - start, channels), zeros beyond the end."""
        piece = self.audio[:, start:stop].to(torch.float64)
        missing = stop - start - piece.shape[1]
        return torch.nn.functional.pad(piece, (0, 0, 0, missing)) if missing else piece

    def channels_first(self, start: int, stop: int) -> torch.Tensor:
        """The same as (sources * channels, stop - start)."""
        return self.piece(start, stop).mT.reshape(-1, stop - start)

    def silent(self, start: int, stop: int) -> torch.Tensor:
        """Which sources are silent between `start` and `stop`, bool (sources,).

        Silent means that the channels sum to exactly zero at every sample, so left = -right counts as silent:
        museval's definition.
        """
        # Most windows sound, and a sixty-fourth of the samples proves it; only an undecided window is read in full.
        if bool(_sounds(self.audio[:, start:stop:64]).all()):
            return torch.zeros(self.sources, dtype=torch.bool, device=self.device)
        return ~_sounds(self.audio[:, start:stop])


def empty_bands(references: Signals, sample_rate: float, names: Sequence[str]) -> tuple[EmptyBand, ...]:
    """Return the widest band without energy of each non-silent reference that has one, by Welch's averaged power spectra."""
    if references.samples < BAND_FFT:
        return ()
    last = references.samples - BAND_FFT
    segments = min(MOST_SEGMENTS, 1 + last // (BAND_FFT // 2))
    starts = [last * index // max(1, segments - 1) for index in range(segments)]
    window = torch.kaiser_window(BAND_FFT, False, KAISER, dtype=torch.float64, device=references.device)
    shape = (references.sources * references.channels, BAND_FFT // 2 + 1)
    power = torch.zeros(shape, dtype=torch.float64, device=references.device)
    for start in starts:
        power += torch.fft.rfft(references.channels_first(start, start + BAND_FFT) * window).abs().square()
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
    """(sources, samples, channels) of what may have its channels first, or none."""
    shape = tuple(audio.shape)
    if audio.dim() == 2 and shape[0] <= max(1, shape[1]):
        return audio[..., None]
    if audio.dim() != 3 or min(shape[1:]) > MOST_CHANNELS:
        raise ShapeError(
            f"The {what} have the shape {shape}. Give an array (sources, samples, channels) or (sources, channels, samples), "
            f"with at most {MOST_CHANNELS} channels."
        )
    return audio if shape[2] <= MOST_CHANNELS else audio.mT


def _sounds(audio: torch.Tensor) -> torch.Tensor:
    """Return whether the channel sum of each source is non-zero anywhere, bool (sources,)."""
    total = audio[..., 0].to(torch.float64)
    for channel in range(1, audio.shape[-1]):
        total = total + audio[..., channel]
    return (total != 0).any(dim=1)


def _as_tensor(audio: Audio | Sequence[Audio], what: str) -> torch.Tensor:
    if isinstance(audio, torch.Tensor):
        tensor = audio.detach()
    else:
        tensor = _from_numpy(audio, what)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ShapeError(f"The {what} have the dtype {tensor.dtype}. Give real numbers.")
    # float64 does not exist on every accelerator; where it is missing the metric runs on the CPU.
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _from_numpy(audio: NDArray[Any] | Sequence[Audio], what: str) -> torch.Tensor:
    try:
        if isinstance(audio, Sequence) and audio and isinstance(audio[0], torch.Tensor):
            return torch.stack([torch.as_tensor(source).detach() for source in audio])
        array = np.asarray(audio)
        # torch takes neither negative strides nor foreign byte order nor read-only memory without a copy.
        if not (array.dtype.isnative and array.flags.writeable and min(array.strides, default=0) >= 0):
            array = array.astype(array.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"The {what} are not one numeric array (sources, samples, channels): {error}. "
            "Give all sources the same length and number of channels."
        ) from error
