"""Which track of a cache holds samples that are no numbers."""

from __future__ import annotations

from ..config import INSTRUMENTS
from .data import Batch, BatchSource

__all__ = ["faulty_input"]


def faulty_input(batch: Batch, source: BatchSource) -> str | None:
    """The first stem of a batch that is not finite, in words with its track and rate; None if all is finite."""
    for rate, sources in zip(source.rates, batch.sources, strict=True):
        faulty = (~sources.isfinite()).flatten(2).any(-1).nonzero().tolist()
        if faulty:
            item, stem = faulty[0]
            track = source.tracks[int(source.plan(batch.number).tracks[item, stem])]
            return f"the {INSTRUMENTS[stem]} of {track.name} at {rate} Hz ({track.file(rate)})"
    return None
