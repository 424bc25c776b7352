"""Compute BSSEval version 4, the metric of the MUSDB18 tables. The filters are solved once; museval solves them often.

An estimate ``s_hat`` of source ``s`` is split into ``s + spatial + interference + artifacts`` by projecting it on
delayed copies of the references (see :mod:`.filters`), and frame by frame, in dB,

    SDR = |s|^2 / |s_hat - s|^2                        ISR = |s|^2 / |spatial|^2
    SIR = |s + spatial|^2 / |interference|^2           SAR = |s + spatial + interference|^2 / |artifacts|^2

With any filters, the three error terms add up to ``s_hat - s``, so SDR needs no filter.

Signals of any real dtype are read in float64 pieces, without a float64 copy of the whole signals. A reference may have
no energy in some band. There the filters are undetermined: they are fitted to the whole track, where such a band costs
nothing, but they are applied to frames, whose edges put energy into the band. So ISR, SIR and SAR depend on how the
computer rounds.

Sources: Vincent et al. 2006; Liutkus, Stoeter, Ito 2018; the numbers are those of ``museval.evaluate`` 0.4.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import EvaluationError, ShapeError, SilentSourceError
from .filters import correlate, projected_energies, solve

__all__ = [
    "METRICS", "SILENCE", "BssScores", "EmptyBand", "EmptyBandWarning", "Signals", "SilentSourceWarning", "bss_eval",
    "frame_slices",
]  # fmt: skip

METRICS = ("SDR", "ISR", "SIR", "SAR")
SILENCE = ("museval", "own")
"""Rules of silence: a frame is invalid for a stem if any signal is silent in it, or only if one of the stem's own
signals is."""
NOISE = 1e-6
"""Power of the noise that regularises the solve: white noise 60 dB below each reference."""


Audio = torch.Tensor | NDArray[Any]

MOST_CHANNELS = 64
"""Most channels of a signal. A longer axis in the place of the channels is taken for a time axis."""

BAND_FFT, MOST_SEGMENTS = 4096, 256
"""Samples of a segment for averaged spectra; and the most segments of a track, which are spread evenly over the
track."""
EMPTY = 1e-12
"""Share of the largest bin's power below which a bin is empty: far below rounding to 16 bits, far above float64's."""
NARROWEST = 20
"""Least width of an empty band, in bins; the window spreads a tone over 13 bins."""
KAISER = 20.0
"""Kaiser's window with this parameter has side lobes 155 dB down."""


class SilentSourceWarning(UserWarning):
    """A reference or an estimate is silent from end to end. Under museval's rule of silence, all frames of the track
    are then NaN."""


class EmptyBandWarning(UserWarning):
    """A reference has no energy in a band, so ISR, SIR and SAR depend on rounding."""


class EmptyBand(NamedTuple):
    """The widest band in which a reference has no energy; limits in Hz."""

    name: str
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} from {self.low:.0f} to {self.high:.0f} Hz"


@dataclass(frozen=True)
class BssScores:
    """The scores of one track.

    values: metric name -> float64 array (sources, frames) in dB; NaN where a frame does not count.
    silent: signals that are silent from end to end, such as "reference of bass"; under museval's rule of silence, one
        such signal makes every frame invalid.
    solvers: how the normal equations were solved, for all sources together, then for each alone; empty if no filter was
        needed.
    empty_bands: bands in which a reference has no energy: ISR, SIR and SAR depend on rounding unless `regularised`.
    """

    values: dict[str, NDArray[np.float64]]
    silent: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ()
    empty_bands: tuple[EmptyBand, ...] = ()
    regularised: bool = False

    def __getitem__(self, metric: str) -> NDArray[np.float64]:
        return self.values[metric]

    def warnings(self) -> list[Warning]:
        """Return the warnings that a reader of these scores needs."""
        found: list[Warning] = []
        if self.silent:
            advice = "Leave these stems out to score the rest, or choose the rule of silence `own`."
            found.append(SilentSourceWarning(f"Silent from end to end: {', '.join(self.silent)}. {advice}"))
        if self.empty_bands and not self.regularised:
            bands = ", ".join(map(str, self.empty_bands))
            effect = "ISR, SIR and SAR of this track depend on rounding. Regularise, or score files of 16 bits."
            found.append(EmptyBandWarning(f"References without any energy in a band: {bands}. {effect}"))
        return found


def bss_eval(
    references: Audio | Sequence[Audio],
    estimates: Audio | Sequence[Audio],
    *,
    window: int = 44100,
    hop: int = 44100,
    filters_len: int = 512,
    metrics: Sequence[str] = METRICS,
    names: Sequence[str] | None = None,
    strict: bool = False,
    silence: str = "museval",
    regularise: bool = False,
    sample_rate: float = 44100,
    warn: bool = True,
) -> BssScores:
    """Score estimates against references as ``museval.evaluate(references, estimates, win, hop)`` does.

    Silent means that the channels sum to zero at every sample. If a signal is silent from end to end, museval stops;
    here every frame is NaN under the rule ``museval``. If the error energy is zero, the result is ``inf``, where
    museval reports its own rounding (about 300 dB).

    Args:
        references, estimates: (sources, samples, channels) or (sources, channels, samples) or, mono, (sources, samples); NumPy
            or torch, any real dtype; computed in float64 on the device of the tensors. Estimates are cut, or padded with
            zeros, to the references' length.
        window, hop: length and distance of the frames in samples (by default one second at 44.1 kHz, as in published
            tables). A tail shorter than the window is not scored, but the filters are fitted to it, too.
        metrics: any of ``SDR ISR SIR SAR``. SDR alone takes a fiftieth of the time of all four.
        names: the stems' names, for messages only.
        strict: raise :class:`SilentSourceError` for a signal silent from end to end.
        silence: with ``museval``, a frame in which any reference or estimate is silent is NaN for all sources. With
            ``own``, a frame is NaN for a source if the source's reference is silent in it; or, except for SDR, if its
            estimate is.
        regularise: solve as if each reference carried white noise 60 dB below its own energy: ISR, SIR and SAR of references
            without energy in some band no longer depend on rounding, and others move by hundredths of a dB.
        sample_rate: in Hz, to name the bands without energy.
        warn: whether to issue the warnings that ``result.warnings()`` returns; False suits threads, which cannot catch
            warnings of their own.

    Raises:
        ShapeError: for shapes, dtypes or devices that do not fit.
        EvaluationError: for unknown metrics, for sizes below one, and for NaN or infinite samples in a frame or, with the
            filters, anywhere.
    """
    reference = Signals(references, "references")
    estimate = Signals(estimates, "estimates", samples=reference.samples)
    labels = _check(reference, estimate, {"window": window, "hop": hop, "filters_len": filters_len}, metrics, names)
    if silence not in SILENCE:
        raise EvaluationError(f"The rule of silence {silence!r} is not known. Choose from {', '.join(SILENCE)}.")

    frames = frame_slices(reference.samples, window, hop)
    silences = [torch.stack([signals.silent(frame) for frame in frames], dim=1) for signals in (reference, estimate)]
    silent = tuple(
        f"{what} of {labels[index]}"
        for what, signals, by_frame in zip(("reference", "estimate"), (reference, estimate), silences, strict=True)
        if bool(by_frame.all(dim=1).any())  # if so, the tail that no frame covers must be read, too
        for index in torch.nonzero(signals.silent(slice(0, signals.samples))).flatten().tolist()
    )
    if silent and strict:
        raise SilentSourceError(
            f"Silent from end to end: {', '.join(silent)}. Leave these stems out, or evaluate without strict."
        )
    counts = ~(silences[0] | silences[1])  # (sources, frames)
    sdr_counts = ~silences[0]
    if silence == "museval":
        counts = sdr_counts = counts.all(dim=0).expand_as(counts) & (not silent)
    scored = sdr_counts.any(dim=0)
    chosen = [frame for frame, counting in zip(frames, scored.tolist(), strict=True) if counting]
    decibels: dict[str, torch.Tensor] = {}
    solvers: tuple[str, ...] = ()
    bands: tuple[EmptyBand, ...] = ()
    if chosen:
        source, error = _plain_energies(reference, estimate, chosen)
        decibels["SDR"] = _decibel(source, error)
        if set(metrics) - {"SDR"}:
            bands = empty_bands(reference, sample_rate, labels)
            correlations = correlate(reference, estimate, filters_len)
            require_finite(correlations.references, correlations.estimates)
            owns = [correlations.own(index, reference.channels) for index in range(reference.sources)]
            (together, *alone), solvers = zip(
                *(solve(each, NOISE if regularise else 0.0) for each in (correlations, *owns)), strict=True
            )
            energies = projected_energies(reference, estimate, chosen, together, torch.stack(alone))
            decibels["ISR"] = _decibel(source, energies["spatial"])
            decibels["SIR"] = _decibel(energies["target"], energies["interference"])
            decibels["SAR"] = _decibel(energies["projection"], energies["artifacts"])

    values = {metric: np.full((reference.sources, len(frames)), np.nan) for metric in metrics}
    for metric in values.keys() & decibels.keys():
        values[metric][:, scored.cpu().numpy()] = decibels[metric].cpu().numpy()
        values[metric][~(sdr_counts if metric == "SDR" else counts).cpu().numpy()] = np.nan
    scores = BssScores(values, silent, solvers, bands, regularise)
    for warning in scores.warnings() if warn else ():
        warnings.warn(warning, stacklevel=2)
    return scores


def frame_slices(samples: int, window: int, hop: int) -> list[slice]:
    """Return the slices of all whole windows of a signal; if the signal is not longer than the window, one frame."""
    if window >= samples:
        return [slice(0, samples)]
    return [slice(start, start + window) for start in range(0, samples - window + 1, hop)]


def _plain_energies(
    references: Signals, estimates: Signals, frames: Sequence[slice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the energies ``|s|^2`` and ``|s_hat - s|^2``, both (sources, frames), float64."""
    energies = torch.empty(2, references.sources, len(frames), dtype=torch.float64, device=references.device)
    for index, frame in enumerate(frames):
        reference = references.piece(frame)
        error = estimates.piece(frame) - reference
        energies[0, :, index] = torch.linalg.vector_norm(reference, dim=(1, 2)).square()
        energies[1, :, index] = torch.linalg.vector_norm(error, dim=(1, 2)).square()
    require_finite(energies)
    return energies[0], energies[1]


def _decibel(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    ratio = 10 * torch.log10(numerator / denominator)
    return torch.where(denominator == 0, torch.inf, ratio)


def _check(
    references: Signals, estimates: Signals, sizes: dict[str, int], metrics: Sequence[str], names: Sequence[str] | None
) -> Sequence[str]:
    """Check these arguments of :func:`bss_eval`, and raise the errors that it documents; return the stems' names."""
    if (references.sources, references.channels) != (estimates.sources, estimates.channels):
        raise ShapeError(
            f"There are {references.sources} references with {references.channels} channels and {estimates.sources} "
            f"estimates with {estimates.channels}. Give one estimate per reference, with the same channels."
        )
    if references.device != estimates.device:
        raise ShapeError(
            f"The references are on {references.device}, the estimates on {estimates.device}. Move one of them."
        )
    for name, value in sizes.items():
        if value < 1 or value != int(value):
            raise EvaluationError(f"{name} is {value}. Give a whole number of samples, at least 1.")
    if not metrics or set(metrics) - set(METRICS):
        raise EvaluationError(f"Metrics {list(metrics)} are not known. Choose from {', '.join(METRICS)}.")
    names = [f"source {index}" for index in range(references.sources)] if names is None else names
    if len(names) != references.sources:
        raise ShapeError(f"There are {len(names)} names for {references.sources} sources. Give one each.")
    return names


def require_finite(*values: torch.Tensor) -> None:
    """Raise :class:`EvaluationError` unless all energies or products of signals are finite."""
    if not all(bool(torch.isfinite(each).all()) for each in values):
        raise EvaluationError("A reference or an estimate holds NaN or infinite samples. Remove them.")


def empty_bands(references: Signals, sample_rate: float, names: Sequence[str]) -> tuple[EmptyBand, ...]:
    """Return the widest band without energy of each non-silent reference that has such a band.

    The spectra are Welch's averaged power spectra.
    """
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


class Signals:
    """One set of sources, (sources, samples, channels), read in float64 pieces.

    Sources with channels first, (sources, channels, samples), and mono ones, (sources, samples), are recognised: an
    axis longer than ``MOST_CHANNELS`` holds samples. `samples` is the length of all signals: samples after it are
    ignored, and samples that are missing before it read as zeros.
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
        # A sixty-fourth of the samples shows that most windows are not silent. Only the other windows are read in full.
        for step in (64, 1):
            audio = self.audio[:, where.start : where.stop : step]
            total = audio[..., 0].to(torch.float64)
            for channel in range(1, self.channels):
                total = total + audio[..., channel]
            found = (total == 0).all(dim=1)
            if not bool(found.any()):
                break
        return found


def _channels_last(audio: torch.Tensor, what: str) -> torch.Tensor:
    """Return sources as (sources, samples, channels). The input may have channels before samples, or no axis of
    channels."""
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
