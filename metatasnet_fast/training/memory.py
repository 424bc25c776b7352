"""Memory that does not suffice for a training, and what needs less."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ..errors import MetaTasNetError, TrainingError
from ..separation.batches import is_out_of_memory
from .settings import TrainingSettings

__all__ = ["enough_memory", "lighter"]


@contextlib.contextmanager
def enough_memory(message: Callable[[], str]) -> Iterator[None]:
    """Say in one sentence that memory ran out.

    Args:
        message: the sentence; called only when it is needed.

    Raises:
        TrainingError: if an allocation fails, on any device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MetaTasNetError) or not is_out_of_memory(error):
            raise
        raise TrainingError(message()) from error


def lighter(settings: TrainingSettings, processes: int) -> str:
    """The flags that make a step need less memory and change no result; if all are in use, one that does."""
    share = settings.batch_size // processes
    at_once = min(settings.micro_batch or share, share)
    flags = [f"--micro_batch {at_once // 2}"] if at_once > 1 else []
    flags += [] if settings.recompute else ["--recompute"]
    return " or ".join(flags) or "a shorter --time_length"
