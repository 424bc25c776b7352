"""When an allocation fails: a sentence that says what needs less."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ..errors import MetaTasNetError, OutOfMemoryError

__all__ = ["is_out_of_memory", "memory_for"]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "DefaultCPUAllocator", "not enough memory", "bad_alloc")
    )


@contextlib.contextmanager
def memory_for(what: str, advice: str) -> Iterator[None]:
    """Turn a failed allocation in the block into one sentence.

    Raises:
        OutOfMemoryError: that memory does not suffice for ``what``, with ``advice``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MetaTasNetError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"Memory does not suffice for {what}: {advice}.") from error
