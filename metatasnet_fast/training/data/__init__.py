"""Prepare and read training data: a cache of tracks at every rate, and batches of crops by their number."""

from .batches import Batch, BatchSource
from .cache import Cache, StemArray, Track
from .store import write_manifest, write_track

__all__ = ["Batch", "BatchSource", "Cache", "StemArray", "Track", "write_manifest", "write_track"]
