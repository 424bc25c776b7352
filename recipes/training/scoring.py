"""Scores of a network on songs with stems: SI-SDR, mono, at the last stage's rate, by pieces of a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metatasnet_fast.config import INSTRUMENTS
from metatasnet_fast.reference.losses import si_sdr

from .sampling import SOUNDS

__all__ = ["Scores", "band_levels", "ideal_ratio_mask", "piece_scores", "summary"]

Scores = dict[str, Tensor]
"""For each stem (pieces in which it sounds, 3): SI-SDR, dB, of the mixture, of the ideal ratio mask and of the estimate."""


def ideal_ratio_mask(sources: Tensor, mix: Tensor) -> Tensor:
    """Estimates (4, T) of the mask |S_i| / sum of |S_j|, from the true stems: 1024 samples' Hann window, hop 256."""
    window = torch.hann_window(1024)

    def spectrum(x: Tensor) -> Tensor:
        return torch.stft(x, 1024, 256, window=window, return_complex=True)

    magnitude = spectrum(sources).abs()
    masked = spectrum(mix) * magnitude / magnitude.sum(0).clamp(min=1e-8)
    return torch.istft(masked, 1024, 256, window=window, length=mix.shape[-1])


def band_levels(total: Tensor, mix: Tensor, rate: int, bands: Sequence[tuple[float, float]]) -> list[float]:
    """Energy of the stems' sum less that of the mixture, dB, in bands from a to b Hz; both (n,)."""
    frequency = torch.fft.rfftfreq(mix.shape[-1], 1 / rate)
    powers = [torch.fft.rfft(x.double()).abs().square() for x in (total, mix)]
    inside = [(frequency >= a) & (frequency < b) for a, b in bands]
    return [float(10 * torch.log10(powers[0][i].sum() / powers[1][i].sum())) for i in inside]


def piece_scores(
    separate: Callable[[Sequence[Tensor]], Tensor],
    mixes: Sequence[Tensor],
    sources: Sequence[Tensor],
    piece: int | None = None,
) -> Scores:
    """Scores of one song.

    Args:
        separate: from mixtures (1, 1, T_s), each of unit deviation, to estimates (4, T).
        mixes, sources: (T_s) and (4, T_s) for each stage.
        piece: samples at the last rate; None for the song as a whole.
    """
    estimates = separate([(x / x.std())[None, None] for x in mixes])
    length = estimates.shape[-1]
    piece = piece or length
    count = length // piece
    mix, target, ideal, estimate = (
        x[..., : count * piece].unflatten(-1, (count, piece))
        for x in (mixes[-1], sources[-1], ideal_ratio_mask(sources[-1], mixes[-1]), estimates)
    )
    scores: Scores = {}
    for stem, name in enumerate(INSTRUMENTS):
        sounding = target[stem].square().mean(-1) > SOUNDS * mix.square().mean(-1)
        columns = [si_sdr(x[sounding], target[stem, sounding]) for x in (mix, ideal[stem], estimate[stem])]
        scores[name] = torch.stack(columns, dim=1)
    return scores


def summary(scores: Sequence[Scores]) -> dict[str, dict[str, float]]:
    """Medians over all pieces; the improvement is the median of the pieces' improvements over the mixture."""
    rows = {}
    for name in INSTRUMENTS:
        values = torch.cat([song[name] for song in scores])
        mixture, ideal, separated = values.unbind(1)
        columns = {"mixture": mixture, "ideal mask": ideal, "separated": separated, "improvement": separated - mixture}
        rows[name] = {"pieces": len(values)} | {k: round(float(v.median()), 2) for k, v in columns.items()}
    return rows
