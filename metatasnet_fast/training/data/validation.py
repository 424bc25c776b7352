"""Validation items as the authors make them: whole tracks, mono, divided by the deviation of their mixture.

Source: the authors' ``dataset.py``, ``get_validation_sample``; their mixture is MUSDB18's own, ours is the sum of the stems.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import TrainingDataError
from .cache import Track

__all__ = ["validation_signals"]


def validation_signals(track: Track, rates: Sequence[int], places: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """For each rate the mixture of a track, (1, 1, T), and the instruments at ``places`` of the cache, (1, I, 1, T).

    Both are float32 on the CPU.

    Raises:
        TrainingDataError: if a file of the track is missing, damaged or not finite.
    """
    mixes, sources = [], []
    for rate in rates:
        mono = torch.from_numpy(track.stems(rate)[:].mean(1))
        if not mono.isfinite().all():
            raise TrainingDataError(f"{track.file(rate)} holds NaN or infinity; delete its folder and prepare again.")
        scaled = (mono / track.deviation(rate))[None, :, None]
        mixes.append(scaled.sum(1))
        sources.append(scaled[:, list(places)])
    return mixes, sources
