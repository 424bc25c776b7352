"""Putting the kept parts of the windows together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .windows import Window

__all__ = ["stitch"]


def stitch(estimates: Iterator[Tensor], plan: Sequence[Window], channels: int, hop: int, fade: int) -> Iterator[Tensor]:
    """Join window after window; at each seam the first ``fade`` frames go linearly from the old window to the new.

    Where both agree, the result is exactly theirs.

    Args:
        estimates: (stems, samples) of the first window's channels, then the second's, and so on.
        hop: samples per latent frame.

    Returns:
        (channels, stems, n) blocks, which together have ``hop`` samples for every frame of the plan.
    """
    ramp: Tensor | None = None
    tail: Tensor | None = None
    for index, window in enumerate(plan):
        block = torch.stack([next(estimates) for _ in range(channels)])
        begin, stop = (window.begin - window.start) * hop, (window.stop - window.start) * hop
        kept = block[..., begin:stop]
        if tail is not None:
            if ramp is None:
                ramp = (torch.arange(fade * hop, device=kept.device, dtype=kept.dtype) + 0.5) / (fade * hop)
            head = kept[..., : fade * hop]
            kept = torch.cat([tail + ramp * (head - tail), kept[..., fade * hop :]], dim=-1)
        tail = block[..., stop : stop + fade * hop].clone() if index + 1 < len(plan) else None
        yield kept
