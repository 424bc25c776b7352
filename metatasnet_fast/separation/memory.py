"""When an allocation fails: a sentence that says what needs less."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from ..errors import MetaTasNetError, OutOfMemoryError

__all__ = ["is_out_of_memory", "memory_for", "reporting_memory"]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "DefaultCPUAllocator", "not enough memory", "bad_alloc")
    )


def memory_for(what: str, advice: str) -> contextlib.AbstractContextManager[None]:
    """Raise :class:`OutOfMemoryError` for a failed allocation in the block: there is too little memory for ``what``."""
    return reporting_memory(lambda: f"Memory does not suffice for {what}: {advice}.", OutOfMemoryError)


@contextlib.contextmanager
def reporting_memory(message: Callable[[], str], kind: type[MetaTasNetError]) -> Iterator[None]:
    """Turn a failed allocation in the block into an error of a kind.

    Args:
        message: its sentence; called only when it is needed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MetaTasNetError) or not is_out_of_memory(error):
            raise
        raise kind(message()) from error
