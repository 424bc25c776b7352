"""Cut a batch into parts, for processes and micro-batches, so that the losses of the parts add up to the batch's loss.

Two things couple the items of a batch. Every mean divides by a count over the whole batch: these divisors are known
before the first part. The similarity loss compares each item with the item before it, so every part also contains that
item and encodes it again; the gradient of a pair is then computed in one part. The result is exact; it costs the source
encoding of one more item for each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Items", "Part", "cut"]


@dataclass(frozen=True)
class Items:
    """Consecutive items of a batch.

    mixes: (n, 1, T_s) for every stage.
    sources: (n, I, 1, T_s) for every stage and the I instruments; a mixture may contain more than these.
    masks: (n, I, 1) for every stage, 1 where the source is not silent and counts in the loss.
    """

    mixes: Sequence[Tensor]
    sources: Sequence[Tensor]
    masks: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.masks[0])

    def rows(self, start: int, count: int) -> Items:
        """Return ``count`` items from ``start`` on, or fewer at the end."""
        chosen = slice(start, start + count)
        return Items(*([x[chosen] for x in values] for values in (self.mixes, self.sources, self.masks)))


@dataclass(frozen=True)
class Part:
    """Items that are computed at once."""

    items: Items
    before: Items | None
    """The item before the first item; None if this part is the whole batch, whose last item then counts as the item
    before the first."""
    first: int
    """Place of the first item in the whole batch."""


def cut(items: Items, size: int, before: Items | None, first: int) -> list[Part]:
    """Cut a process's share of a batch into micro-batches of at most ``size`` items.

    Args:
        items: the share.
        before: the item before the share's first item; None if the share is the whole batch.
        first: place of the share's first item in the whole batch.
    """
    if size >= len(items):
        return [Part(items, before, first)]
    parts = []
    for start in range(0, len(items), size):
        # The item before the first one of a whole batch is its last.
        carried = before if start == 0 and before is not None else items.rows((start - 1) % len(items), 1)
        parts.append(Part(items.rows(start, size), carried, first + start))
    return parts
