"""A step whose loss or gradient cannot be used: what it was kept in, and what was at fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import TrainingError
from .data import Batch, BatchSource
from .step import BatchGradients

__all__ = ["faulty_input", "keep_step", "unusable_step"]


def faulty_input(batch: Batch, source: BatchSource) -> str | None:
    """Describe the first stem of a batch that is not finite, with its track and rate; None if all are finite."""
    for rate, sources in zip(source.rates, batch.sources, strict=True):
        faulty = (~sources.isfinite()).flatten(2).any(-1).nonzero().tolist()
        if faulty:
            item, place = faulty[0]
            stem = source.places[place]
            track = source.tracks[int(source.plan(batch.number).tracks[item, stem])]
            return f"the {track.entry.instruments[stem]} of {track.name} at {rate} Hz ({track.file(rate)})"
    return None


def keep_step(path: Path, content: Mapping[str, Any]) -> str:
    """Write the data from which the step can be repeated; return a sentence that says where, or why not."""
    try:
        torch.save(dict(content), path)
    except (OSError, RuntimeError) as error:
        return f"Its batch could not be kept in {path} ({error})"
    return f"Its batch and the weights before it are in {path}"


def unusable_step(found: BatchGradients, step: int, fault: str | None, kept: str) -> TrainingError:
    """Return why training stops.

    Args:
        fault: the samples that are at fault, if any are.
        kept: what the run can continue from.
    """
    if fault is not None:
        return TrainingError(
            f"Step {step} got samples that are not finite from {fault}: training stops. {kept}. "
            "Delete that track's folder and prepare the cache again."
        )
    return TrainingError(
        f"Step {step} gave a loss of {found.loss:g} and a gradient of norm {found.norm:g}: training stops. "
        f"{kept}. Go on with a smaller --learning_rate, or with --dtype float32."
    )
