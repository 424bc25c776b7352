"""Mean and standard deviation of the training set's log-power spectrograms.

Source: original ``model/spectrogram.py``, ``compute_stats``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import MetaTasNetConfig
from ..errors import EmptyAudioError
from ..reference.spectrogram import log_power

__all__ = ["compute_stats"]

ITEMS = 5000
"""Items after which the statistics are good enough."""


class _Moments:
    """Count, mean and sum of squared deviations per bin, merged batch by batch in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.m2: Tensor | float = 0.0

    def add(self, spectrogram: Tensor) -> None:
        """Merge a batch (b, bins, frames)."""
        x = spectrogram.double().transpose(1, 2).flatten(0, 1)
        count, mean = len(x), x.mean(0)
        delta, total = mean - self.mean, self.count + count
        self.m2 = self.m2 + (x - mean).square().sum(0) + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


@torch.no_grad()
def compute_stats(config: MetaTasNetConfig, spectrograms: Sequence[nn.Module], loader: Iterable[Any]) -> None:
    """Write ``mean`` and unbiased ``std`` over batch and frames into each stage's spectrogram module.

    Args:
        config: the network's settings.
        spectrograms: modules with parameters ``window``, ``mean`` and ``std``, one per stage.
        loader: yields batches whose first element is a list of mixtures, (b, 1, T 2^s). It is read once for each stage, as
            the original does, so that a training then draws the same random numbers as the original; an iterator, which
            can be read only once, is read once for all stages.

    Raises:
        EmptyAudioError: if the loader yields nothing.
    """
    stages = list(enumerate(spectrograms))
    for part in [stages] if isinstance(loader, Iterator) else [[stage] for stage in stages]:
        moments = [_Moments() for _ in part]
        items = 0
        for mixes, *_ in loader:
            for (index, spectrogram), moment in zip(part, moments, strict=True):
                window: Any = spectrogram.window
                moment.add(log_power(mixes[index].to(window), window, config.stage(index)))
            items += mixes[0].shape[0]
            if items > ITEMS:
                break
        if items == 0:
            raise EmptyAudioError("The training loader is empty: there is nothing to compute statistics from.")
        for (_, spectrogram), moment in zip(part, moments, strict=True):
            std = torch.as_tensor(moment.m2 / max(1, moment.count - 1)).sqrt()
            for name, value in (("mean", torch.as_tensor(moment.mean)), ("std", std)):
                getattr(spectrogram, name).copy_(value[None, :, None])
