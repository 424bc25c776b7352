"""Windows cover a recording exactly once, with the context they promise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.separation.fast_mode import (
    WindowShape,
    default_shape,
    plan_windows,
    receptive_frames,
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
