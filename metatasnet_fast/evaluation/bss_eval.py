"""Compute BSSEval version 4, the metric of the MUSDB18 tables; solve the filters once, where museval solves them often.

An estimate ``s_hat`` of source ``s`` is split into ``s + spatial + interference + artifacts`` by projecting it on
delayed copies of the references (see :mod:`.filters`), and frame by frame, in dB,

    SDR = |s|^2 / |s_hat - s|^2                        ISR = |s|^2 / |spatial|^2
    SIR = |s + spatial|^2 / |interference|^2           SAR = |s + spatial + interference|^2 / |artifacts|^2

For all filters, the three error terms add up to ``s_hat - s``, so SDR needs no filter.

Sources: Vincent et al. 2006; Liutkus, Stoeter, Ito 2018; the numbers are those of ``museval.evaluate`` 0.4.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ShapeError
from .filters import correlate, projected_energies, solve
from .signals import (
    Audio,
    EmptyBand,
    EmptyBandWarning,
    EvaluationError,
    Signals,
    SilentSourceError,
    SilentSourceWarning,
    empty_bands,
    require_finite,
)

__all__ = ["METRICS", "SILENCE", "BssScores", "bss_eval", "frame_slices"]

METRICS = ("SDR", "ISR", "SIR", "SAR")
SILENCE = ("museval", "own")
"""Rules of silence: a frame is invalid if any signal is silent, or only if the stem's own signals are."""
NOISE = 1e-6
"""Power of the noise that regularises the solve: white noise 60 dB below each reference."""


@dataclass(frozen=True)
class BssScores:
    """The scores of one track.

    values: metric name -> float64 array (sources, frames) in dB; NaN where a frame does not count.
    silent: signals that are silent from end to end, such as "reference of bass"; under museval's rule of silence, one
        such signal makes every frame invalid.
    solvers: how the normal equations were solved (all sources together, then each alone); empty if not needed.
    empty_bands: references without energy in a band: their ISR, SIR and SAR depend on rounding unless `regularised`.
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
        if bool(by_frame.all(dim=1).any())  # then the tail that no frame covers must be read too
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
    """Check these arguments of :func:`bss_eval`, and raise its errors; return the stems' names."""
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
