"""Validation items as the authors make them: whole tracks, mono, divided by the deviation of their mixture.

Source: the authors' ``dataset.py``, ``get_validation_sample``; their mixture is MUSDB18's own, ours is the sum of the stems.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import TrainingDataError
from .cache import Track

__all__ = ["validation_sources"]


def validation_sources(track: Track, rates: Sequence[int]) -> list[Tensor]:
    """For each rate the four stems of a track, (1, 4, 1, T), float32 on the CPU; the mixture is their sum over dimension 1.

    Raises:
        TrainingDataError: if a file of the track is missing, damaged or not finite.
    """
    found = []
    for rate in rates:
        mono = torch.from_numpy(track.stems(rate)[:].mean(1))
        if not mono.isfinite().all():
            raise TrainingDataError(f"{track.file(rate)} holds NaN or infinity; delete its folder and prepare again.")
        found.append((mono / track.deviation(rate))[None, :, None])
    return found
