"""BSSEval version 4, the metric of the MUSDB18 tables, computed once where museval computes it many times.

An estimate ``s_hat`` of source ``s`` is split into ``s + spatial + interference + artifacts`` by projecting it on
delayed copies of the references (see :mod:`.filters`), and frame by frame, in dB,

    SDR = |s|^2 / |s_hat - s|^2                        ISR = |s|^2 / |spatial|^2
    SIR = |s + spatial|^2 / |interference|^2           SAR = |s + spatial + interference|^2 / |artifacts|^2

The three error terms add up to ``s_hat - s`` whatever the filters are, so SDR needs no filter at all.

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
from .filters import correlate, solve
from .signals import Audio, EvaluationError, Signals, SilentSource, SilentSourceError, SilentSourceWarning, silence
from .windows import frame_slices, plain_energies, projected_energies, silent_frames

__all__ = ["METRICS", "BssScores", "bss_eval", "measure"]

METRICS = ("SDR", "ISR", "SIR", "SAR")


@dataclass(frozen=True)
class BssScores:
    """The scores of one track.

    values: metric name -> float64 array (sources, frames) in dB; NaN where a frame does not count.
    silent: signals that are silent from end to end; if there is one, no frame counts.
    solvers: how the normal equations were solved (all sources together, then each alone); empty if not needed.
    """

    values: dict[str, NDArray[np.float64]]
    silent: tuple[SilentSource, ...] = ()
    solvers: tuple[str, ...] = ()

    def __getitem__(self, metric: str) -> NDArray[np.float64]:
        return self.values[metric]

    @property
    def frames(self) -> int:
        return int(next(iter(self.values.values())).shape[1])


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
) -> BssScores:
    """Score estimates against references; the meaning of ``museval.evaluate(references, estimates, win, hop)``.

    references, estimates: (sources, samples, channels), NumPy or torch, any real dtype; computed in float64 on the
    device of the tensors. Estimates are cut, or padded with zeros, to the references' length.
    window, hop: in samples (one second at 44.1 kHz, the convention of the tables). A tail shorter than the window is
    not scored, but the filters see it.
    metrics: any of ``SDR ISR SIR SAR``. SDR alone is about ten times cheaper than all four.
    names: the stems' names, for messages only.

    A frame in which any reference or any estimate is silent (channels sum to zero at every sample) is NaN for all
    sources. A signal silent from end to end, where museval stops, makes every frame NaN, is recorded in
    ``result.silent`` and warned about; with `strict` it raises :class:`SilentSourceError`. A zero error energy gives
    ``inf``; where estimate and reference are equal bit by bit museval reports its own rounding (about 300 dB).

    Raises :class:`ShapeError` for shapes, dtypes or devices that do not fit, :class:`EvaluationError` for unknown
    metrics, for sizes below one and for NaN or infinite samples in a frame or, with the filters, anywhere.
    """
    scores = measure(
        references,
        estimates,
        window=window,
        hop=hop,
        filters_len=filters_len,
        metrics=metrics,
        names=names,
        strict=strict,
    )
    if scores.silent:
        warnings.warn(silence(scores.silent), SilentSourceWarning, stacklevel=2)
    return scores


@torch.no_grad()
def measure(
    references: Audio | Sequence[Audio],
    estimates: Audio | Sequence[Audio],
    *,
    window: int,
    hop: int,
    filters_len: int = 512,
    metrics: Sequence[str] = METRICS,
    names: Sequence[str] | None = None,
    strict: bool = False,
) -> BssScores:
    """:func:`bss_eval` without a warning, which no thread can collect for itself: who calls reads ``result.silent``."""
    reference = Signals(references, "references")
    estimate = Signals(estimates, "estimates", samples=reference.samples)
    labels = _check(reference, estimate, window, hop, filters_len, metrics, names)

    frames = frame_slices(reference.samples, window, hop)
    reference_silent, estimate_silent = (silent_frames(signals, frames) for signals in (reference, estimate))
    silent = _end_to_end(reference, "reference", reference_silent, labels)
    silent += _end_to_end(estimate, "estimate", estimate_silent, labels)
    if silent and strict:
        listed = ", ".join(str(source) for source in silent)
        raise SilentSourceError(
            f"Silent from end to end: {listed}. Leave these stems out of the evaluation, or evaluate without strict."
        )

    valid = ~(reference_silent | estimate_silent).any(dim=0)
    chosen = [frame for frame, counts in zip(frames, valid.tolist(), strict=True) if counts]
    decibels: dict[str, torch.Tensor] = {}
    solvers: list[str] = []
    if chosen and not silent:
        source, error = plain_energies(reference, estimate, chosen)
        if not bool(torch.isfinite(source + error).all()):
            raise EvaluationError("A reference or an estimate holds NaN or infinite samples. Remove them.")
        decibels["SDR"] = _decibel(source, error)
        if set(metrics) - {"SDR"}:
            all_filters, own_filters, solvers = _filters(reference, estimate, filters_len)
            energies = projected_energies(reference, estimate, chosen, all_filters, own_filters)
            decibels["ISR"] = _decibel(source, energies["spatial"])
            decibels["SIR"] = _decibel(energies["target"], energies["interference"])
            decibels["SAR"] = _decibel(energies["projection"], energies["artifacts"])

    values = {}
    for metric in metrics:
        values[metric] = np.full((reference.sources, len(frames)), np.nan)
        if metric in decibels:
            values[metric][:, valid.cpu().numpy()] = decibels[metric].cpu().numpy()
    return BssScores(values, silent, tuple(solvers))


def _filters(references: Signals, estimates: Signals, delays: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Filters on all references, on each estimate's own reference, and how they were solved."""
    correlations = correlate(references, estimates, delays)
    if not bool(torch.isfinite(correlations.references).all() & torch.isfinite(correlations.estimates).all()):
        raise EvaluationError("A reference or an estimate holds NaN or infinite samples. Remove them.")
    together, method = solve(correlations)
    alone = [solve(correlations.own(source, references.channels)) for source in range(references.sources)]
    return together, torch.stack([filters for filters, _ in alone]), [method, *(name for _, name in alone)]


def _decibel(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    ratio = 10 * torch.log10(numerator / denominator)
    return torch.where(denominator == 0, torch.inf, ratio)


def _end_to_end(signals: Signals, what: str, silent: torch.Tensor, labels: Sequence[str]) -> tuple[SilentSource, ...]:
    """Sources silent in all frames AND in the tail that no frame covers."""
    if not bool(silent.all(dim=1).any()):
        return ()
    whole = signals.silent(0, signals.samples)
    return tuple(SilentSource(what, index, labels[index]) for index in torch.nonzero(whole).flatten().tolist())


def _check(
    references: Signals,
    estimates: Signals,
    window: int,
    hop: int,
    filters_len: int,
    metrics: Sequence[str],
    names: Sequence[str] | None,
) -> Sequence[str]:
    if (references.sources, references.channels) != (estimates.sources, estimates.channels):
        raise ShapeError(
            f"There are {references.sources} references with {references.channels} channels and {estimates.sources} "
            f"estimates with {estimates.channels}. Give one estimate per reference, with the same channels."
        )
    if references.device != estimates.device:
        raise ShapeError(
            f"The references are on {references.device}, the estimates on {estimates.device}. Move one of them."
        )
    for name, value in (("window", window), ("hop", hop), ("filters_len", filters_len)):
        if value < 1 or value != int(value):
            raise EvaluationError(f"{name} is {value}. Give a whole number of samples, at least 1.")
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise EvaluationError(f"Metrics {list(metrics)} are not known. Choose from {', '.join(METRICS)}.")
    if names is None:
        return [f"source {index}" for index in range(references.sources)]
    if len(names) != references.sources:
        raise ShapeError(f"There are {len(names)} names for {references.sources} sources. Give one each.")
    return names
