"""Cutting and joining loses, repeats and changes nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast.separation.fast_mode import WindowShape, plan_windows, stitch

HOP = 4


def cut(signal: Tensor, plan: list, frames: int) -> list[Tensor]:
    """The stems of each channel in each window: two copies of (channels, samples)."""
    pieces = [signal[:, w.start * HOP : (w.start + frames) * HOP] for w in plan]
    return [torch.stack([channel, 2 * channel]) for piece in pieces for channel in piece]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(1, 3), st.integers(0, 9), st.integers(0, 6), st.integers(1, 60))
def test_what_agrees_at_the_seams_comes_back_bit_for_bit(
    total: int, channels: int, context: int, fade: int, room: int
) -> None:
    shape = WindowShape(2 * context + 3 * fade + room, context, fade)
    signal = torch.randn(channels, total * HOP, generator=torch.Generator().manual_seed(total))
    plan = plan_windows(total, shape)
    blocks = list(stitch(iter(cut(signal, plan, min(total, shape.window))), plan, channels, HOP, fade))
    assert torch.equal(torch.cat(blocks, -1), torch.stack([signal, 2 * signal], 1))


def test_only_what_lies_within_the_context_reaches_a_seam() -> None:
    """A filter as long as the context, applied window by window, is the filter applied to the whole."""
    shape = WindowShape(window=60, context=8, fade=4)
    total, taps = 700, 2 * 8 * HOP + 1
    generator = torch.Generator().manual_seed(1)
    # Small integers: sums are exact in any order.
    signal = torch.randint(-99, 99, (1, 1, total * HOP), generator=generator).float()
    kernel = torch.randint(-9, 9, (2, 1, taps), generator=generator).float()
    plan = plan_windows(total, shape)
    windows = [F.conv1d(signal[..., w.start * HOP : (w.start + 60) * HOP], kernel, padding=taps // 2)[0] for w in plan]
    joined = torch.cat(list(stitch(iter(windows), plan, 1, HOP, shape.fade)), -1)[0]
    assert torch.equal(joined, F.conv1d(signal, kernel, padding=taps // 2)[0])


def test_a_fade_goes_from_the_old_window_to_the_new() -> None:
    shape = WindowShape(window=20, context=4, fade=2)
    plan = plan_windows(30, shape)
    assert len(plan) == 2
    levels = [torch.full((1, 20 * HOP), float(i)) for i in range(2)]
    joined = torch.cat(list(stitch(iter(levels), plan, 1, HOP, 2)), -1)[0, 0]
    seam = plan[1].begin * HOP
    assert (joined[:seam] == 0).all() and (joined[seam + 2 * HOP :] == 1).all()
    torch.testing.assert_close(joined[seam : seam + 2 * HOP], (torch.arange(8) + 0.5) / 8, rtol=0, atol=0)
