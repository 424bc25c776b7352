"""Chunks with context, into which ``MultiTasNet.inference`` cuts a signal.

Source: original ``model/tasnet.py``, ``MultiTasNet.inference``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Chunk", "plan_chunks"]


@dataclass(frozen=True)
class Chunk:
    """Samples of the first stage: ``start`` to ``end`` are processed, ``begin`` to ``stop`` are kept."""

    start: int
    end: int
    begin: int
    stop: int

    @property
    def kept(self) -> tuple[int, int]:
        """The part to keep, counted from ``start``; it may end early if the chunk was cut to a multiple of the stride."""
        return self.begin - self.start, min(self.stop, self.end) - self.start


def plan_chunks(length: int, chunks: int, context: int, stride: int) -> list[Chunk]:
    """Cut ``length`` samples into ``chunks`` parts at ``int(length / chunks * c + 0.5)``, with context to both sides.

    Each processed range is a multiple of ``stride``: one that starts at 0 loses samples at its end, any other at its start. A
    single range over the whole signal therefore misses up to ``stride - 1`` samples at the end, as in the original.
    """
    edges = [int(length / chunks * c + 0.5) for c in range(chunks)] + [length]
    plan = []
    for begin, stop in zip(edges[:-1], edges[1:], strict=True):
        start, end = max(0, begin - context), min(length, stop + context)
        excess = (end - start) % stride
        if start == 0:
            end -= excess
        else:
            start += excess
        plan.append(Chunk(start, end, begin, stop))
    return plan
