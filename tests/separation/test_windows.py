"""Windows cover a recording exactly once, with the context they promise; cutting and joining changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.separation.fast_mode import (
    WindowShape,
    default_shape,
    plan_windows,
    receptive_frames,
    stitch,
)


@st.composite
def shapes(draw: st.DrawFn) -> WindowShape:
    context, fade = draw(st.integers(0, 50)), draw(st.integers(0, 20))
    return WindowShape(2 * context + 3 * fade + draw(st.integers(1, 200)), context, fade)


@settings(deadline=None)
@given(st.integers(1, 5000), shapes())
def test_every_frame_is_kept_exactly_once(total: int, shape: WindowShape) -> None:
    plan = plan_windows(total, shape)
    assert [w.begin for w in plan] == [0, *(w.stop for w in plan[:-1])]
    assert plan[-1].stop == total
    assert all(w.begin < w.stop for w in plan)


@settings(deadline=None)
@given(st.integers(1, 5000), shapes())
def test_windows_have_one_length_and_stay_inside(total: int, shape: WindowShape) -> None:
    length = min(total, shape.window)
    for window in plan_windows(total, shape):
        assert 0 <= window.start and window.start + length <= total
        assert window.start <= window.begin and window.stop <= window.start + length


@settings(deadline=None)
@given(st.integers(1, 5000), shapes())
def test_every_inner_edge_has_its_context(total: int, shape: WindowShape) -> None:
    plan = plan_windows(total, shape)
    for left, right in zip(plan, plan[1:], strict=False):
        assert right.begin - right.start >= shape.context
        assert left.start + shape.window - (left.stop + shape.fade) >= shape.context


@settings(deadline=None)
@given(st.integers(1, 5000), shapes())
def test_a_fade_ends_before_the_next_one_begins(total: int, shape: WindowShape) -> None:
    plan = plan_windows(total, shape)
    if len(plan) > 1:
        assert all(window.stop - window.begin >= shape.fade for window in plan)


@settings(deadline=None)
@given(st.integers(1, 5000), shapes())
def test_no_window_is_wasted(total: int, shape: WindowShape) -> None:
    count = len(plan_windows(total, shape))
    assert count == 1 or (count - 1) * (shape.window - shape.overlap) + shape.overlap < total


def test_a_window_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="context"):
        WindowShape(window=20, context=10, fade=0)


def test_the_receptive_field_of_the_authors_network() -> None:
    config = MetaTasNetConfig()
    # Three stages of 3 (1 + 2 + 4 + 8 + 16 + 32) frames; 768 and twice 80 samples of 20 a frame.
    assert receptive_frames(config) == 3 * 189 + 39 + 8
    assert config.shortest_frames == 26


def test_the_default_window_ends_with_a_spectrogram_frame() -> None:
    config = MetaTasNetConfig()
    assert default_shape(config).window * config.W % config.stage(0).hop == 0


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([8, 10, 16, 20, 32]), st.integers(1, 8), st.integers(1, 4))
def test_any_network_has_a_default_window(stages: int, stride: int, layers: int, stack: int) -> None:
    config = MetaTasNetConfig(stages_num=stages, L=2 * stride, W=stride, layers=layers, stack=stack)
    shape = default_shape(config)
    assert shape.window >= shape.overlap + 2 * shape.fade + 1


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
