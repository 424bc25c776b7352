"""The kernels' numbers, forward and backward, on small shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast.kernels.block_pair import block_pair
from metatasnet_fast.kernels.statistics import MERGED_TILES
from metatasnet_fast.ops import GroupNorm, depthwise, group_affine, group_statistics, pointwise
from metatasnet_fast.ops.statistics import activation, tile_statistics
from tests.ops import cases
from tests.support import assert_parity, golden, relative_error

FLOAT32 = 3e-6
SLOPES = 2e-5  # one number out of thousands of terms of both signs


def check(case: cases.Case) -> None:
    """As close to float64 as three roundings, or five times PyTorch's own float32 error where the case is ill-conditioned."""

    def run(how: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = case.leaves(dtype)
        found = how(leaves, case.dilation)
        named = {f"gradient of {name}": value for name, value in cases.gradients(leaves, found).items()}
        return {"y": found[0], "depthwise": found[1], **named}

    expected, eager = run(cases.plain, torch.float64), run(cases.plain, torch.float32)
    for name, value in run(cases.fused, torch.float32).items():
        least = SLOPES if "slope" in name else 2 * FLOAT32
        assert_parity(name, value, expected[name], max(least, 5 * relative_error(eager[name], expected[name])))


@pytest.mark.parametrize(
    ("name", "dtype"), [("blocks_generated", torch.float32), ("blocks_residual_bias", torch.bfloat16)]
)
def test_block_equals_the_recorded_one(name: str, dtype: torch.dtype) -> None:
    cases.block(golden(name), dtype)


def test_more_than_one_tile_and_both_accumulators() -> None:
    check(cases.case(n=1, frames=131, inputs=16, outputs=160, dilation=32))


@pytest.mark.parametrize("frames", [271, 272, 287, 288])
def test_tiles_whose_neighbours_are_all_inside_the_signal(frames: int) -> None:
    """Of dilation 16 the middle one of three tiles needs 272 frames in the forward, 288 in the backward."""
    check(cases.case(n=1, frames=frames, inputs=16, outputs=32, dilation=16, instruments=1))


@pytest.mark.parametrize("instruments", [1, 3, 6])
def test_any_number_of_instruments(instruments: int) -> None:
    check(cases.case(n=2, frames=19, inputs=16, outputs=24, dilation=2, instruments=instruments))


def test_width_that_is_no_power_of_two() -> None:
    check(cases.case(n=1, frames=9, inputs=72, outputs=40, dilation=1))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(frames=st.integers(1, 70), dilation=st.sampled_from([1, 2, 4, 8, 16, 32]), seed=st.integers(0, 99))
def test_any_length_and_dilation(frames: int, dilation: int, seed: int) -> None:
    check(cases.case(n=1, frames=frames, inputs=40, outputs=24, dilation=dilation, seed=seed))


def test_bfloat16_is_as_good_as_the_reference_arithmetic_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.case(frames=70, offset=10.0)
    expected = case.leaves(torch.float64)
    results = cases.plain(expected, case.dilation)
    wanted = cases.gradients(expected, results)

    def run() -> dict[str, Tensor]:
        leaves = case.leaves(torch.bfloat16)
        found = cases.fused(leaves, case.dilation)
        return {**dict(zip(("y", "depthwise"), found, strict=True)), **cases.gradients(leaves, found)}

    kernels = run()
    monkeypatch.delenv("TRITON_INTERPRET")
    reference = run()
    for name, value in {**dict(zip(("y", "depthwise"), results, strict=True)), **wanted}.items():
        if "slope" not in name:
            assert_parity(name, kernels[name], value, 1.5 * relative_error(reference[name], value) + 1e-3)


@pytest.mark.parametrize("frames", [3, 131])
def test_stored_norm_equals_the_reference(frames: int) -> None:
    case = cases.case(n=1, frames=frames, inputs=40)
    ours, plain = (cases.of_norm(case.leaves(dtype)) for dtype in (torch.float32, torch.float64))
    y, expected = cases.fused_norm(ours), cases.plain_norm(plain)
    assert_parity("y", y, expected, FLOAT32)
    wanted = cases.gradients(plain, [expected])
    for name, value in cases.gradients(ours, [y]).items():
        assert_parity(f"gradient of {name}", value, wanted[name], SLOPES if name == "slope" else 2 * FLOAT32)


@pytest.mark.parametrize("layout", ["expanded", "strided", "transposed"])
def test_layout_changes_nothing(layout: str) -> None:
    p = cases.case(n=1, frames=21, inputs=16).leaves(torch.float32)
    base = p["x"].detach()
    if layout == "expanded":
        x = base[:, :1].clone().expand(-1, 4, -1, -1)
    elif layout == "strided":
        x = torch.full((1, 4, 42, 25), float("nan"))[:, :, ::2, 3:19].copy_(base)
    else:
        x = base.transpose(2, 3).contiguous().transpose(2, 3)
    assert not x.is_contiguous()

    def run(x: Tensor, dy: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        norm = GroupNorm(group_statistics(x, p["slope"]), p["gamma"], p["beta"])
        y, _ = pointwise(x, p["weight"], norm=norm, slope=p["slope"])
        z, _ = depthwise(
            x, p["weight"][:, :3].transpose(1, 2).contiguous(), 2, p["slope"],
            GroupNorm(norm.statistics, p["gamma"], p["beta"]), p["slope_2"],
        )  # fmt: skip
        return [y.detach(), z.detach(), *torch.autograd.grad([y, z], [x, p["weight"], p["gamma"]], [dy, dy])]

    dy = base.new_ones(()).expand(1, 4, 21, 16)
    for value, expected in zip(run(x, dy), run(x.contiguous(), dy.contiguous()), strict=True):
        assert torch.equal(value, expected)


def test_neighbours_in_the_batch_change_nothing_and_repetition_neither() -> None:
    case = cases.case(n=2, frames=19)
    both = case.leaves(torch.float32)
    alone = {k: v.detach()[1:].requires_grad_() if k in ("x", "residual") else v for k, v in both.items()}
    found, again, single = cases.fused(both, 4), cases.fused(both, 4), cases.fused(alone, 4)
    for value, repeated, one in zip(found, again, single, strict=True):
        assert torch.equal(value, repeated)
        assert torch.equal(value[1:], one)
    first, second = cases.gradients(both, found), cases.gradients(both, again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_empty_batch_has_no_result_and_zero_gradients() -> None:
    leaves = cases.case(n=0).leaves(torch.float32)
    found = cases.fused(leaves, 4)
    assert [tuple(y.shape) for y in found] == [(0, 4, 37, 16)] * 2
    for name, value in cases.gradients(leaves, found).items():
        assert value.shape == leaves[name].shape and not value.any()


@pytest.mark.parametrize("value", [0.0, -3.7, 1e4])
def test_constant_signal_stays_finite(value: float) -> None:
    case = cases.case(n=1, frames=11)
    case.tensors["x"].fill_(value)
    leaves = case.leaves(torch.float32)
    found = cases.fused(leaves, 4)
    gradients = cases.gradients(leaves, found)
    assert all(v.isfinite().all() for v in (*found, *gradients.values()))
    if value == 0:
        beta = (leaves["weight"] @ leaves["beta"][..., None])[..., 0] + leaves["bias"]
        assert_parity("y", found[0] - leaves["residual"], beta[None, :, None].expand_as(found[0]), FLOAT32)


@pytest.mark.parametrize("value", [-3.703125, -1.0078125])
def test_constant_in_two_bytes_leaves_beta_alone(value: float) -> None:
    """The statistics are of the rounded values that the product sees: its norm would make thousands of any difference."""
    r = torch.Generator().manual_seed(4)
    x = torch.full((1, 4, 11, 16), value, dtype=torch.bfloat16)
    weight, gamma, beta = (torch.randn(shape, generator=r) for shape in ((4, 24, 16), (4, 16), (4, 16)))
    slope = torch.tensor([0.3])
    norm = GroupNorm(group_statistics(x, slope), gamma, beta)
    y, _ = pointwise(x, weight, torch.zeros(4, 24), norm=norm, slope=slope)
    expected = (weight @ beta[..., None])[None, :, :, 0][:, :, None].expand(1, 4, 11, 24)
    assert (y.float() - expected).abs().max() < 1.0


@pytest.mark.parametrize("frames", [1, 5, 128, 300])
def test_statistics_keep_their_digits_under_an_offset_of_a_thousand_deviations(frames: int) -> None:
    x = torch.randn(1, 4, frames, 40, generator=torch.Generator().manual_seed(3)) + 1000
    ones = torch.ones(4, 40)
    affine = group_affine(GroupNorm(group_statistics(x), ones, 0 * ones), frames)
    groups = x.double().unflatten(3, (8, 5))
    variance = groups.var((2, 4), unbiased=False)
    assert_parity("rstd", affine[:, :, 3, ::5], variance.rsqrt(), 2e-5)
    assert (affine[:, :, 2, ::5] - groups.mean((2, 4))).abs().max() < 3e-4  # five units in the last place of a thousand


def test_statistics_of_many_tiles_keep_the_distance_of_their_means() -> None:
    """More tiles than are merged at once, louder and louder."""
    frames = 128 * (MERGED_TILES + 3) + 5
    x = torch.linspace(-2, 3, frames)[None, None, :, None] * torch.ones(1, 4, 1, 8)
    ones = torch.ones(4, 8)
    affine = group_affine(GroupNorm(group_statistics(x), ones, 0 * ones), frames)
    assert_parity("rstd", affine[0, :, 3], x[0, 0, :, 0].double().var(unbiased=False).rsqrt().expand(4, 8), 2e-5)


def test_statistics_are_those_of_the_reference() -> None:
    x = torch.randn(2, 4, 140, 24, generator=torch.Generator().manual_seed(4))
    slope = torch.tensor([0.3])
    expected = tile_statistics(activation(x, slope).double())
    assert_parity("statistics", group_statistics(x, slope), expected, 1e-6)


@pytest.mark.parametrize("dilation", [1, 3, 16, 32])
def test_depthwise_measures_the_values_that_it_stores(dilation: int) -> None:
    """Of all rows, whether the dilation divides a tile into rows of many steps, of few, or of one."""
    r = torch.Generator().manual_seed(6)
    x, taps, slope, ones = (torch.randn(shape, generator=r) for shape in ((1, 1, 300, 16), (1, 16, 3), (1,), (1, 16)))
    norm = GroupNorm(group_statistics(x, slope), ones, ones)
    y, statistics = depthwise(x, taps, dilation, slope, norm, slope)
    assert_parity("statistics", statistics, tile_statistics(y.double()), 1e-6)


def test_a_pair_of_products_measures_the_rounded_values_that_it_stores() -> None:
    r = torch.Generator().manual_seed(5)
    x = torch.full((1, 1, 5, 16), 3.703125, dtype=torch.bfloat16)
    nothing, bias = torch.zeros(1, 1, 16, 16, dtype=torch.bfloat16), torch.zeros(1, 1, 8, 16)
    conv1d, slope = torch.randn(1, 16, 16, generator=r).bfloat16(), torch.tensor([0.3])
    new, c, statistics = block_pair(torch.zeros_like(x), nothing, bias, x, conv1d, slope)
    assert torch.equal(new, x)
    assert_parity("statistics", statistics, group_statistics(c, slope), 1e-6)
