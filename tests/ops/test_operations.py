"""The public operations with the reference arithmetic: parity, registration, refusals."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast import ops
from metatasnet_fast.errors import MissingDependencyError, ShapeError
from metatasnet_fast.kernels.launch import column_tile
from metatasnet_fast.ops import GroupNorm, operator
from tests.ops import cases
from tests.support import assert_parity, golden

BLOCKS = ["blocks_generated", "blocks_independent", "blocks_residual_bias"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_block_equals_the_recorded_one(name: str, dtype: torch.dtype) -> None:
    cases.block(golden(name), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["mask", "mask_partial"])
@pytest.mark.parametrize("name", BLOCKS)
def test_masking_network_equals_the_recorded_one(name: str, part: str, dtype: torch.dtype) -> None:
    cases.network(golden(name), part, dtype)


@settings(max_examples=20, deadline=None)
@given(
    frames=st.integers(2, 300),
    dilation=st.integers(1, 40),
    offset=st.sampled_from([0.0, 1.0, -2.0]),
    seed=st.integers(0, 99),
)
def test_any_length_dilation_and_offset_in_float64(frames: int, dilation: int, offset: float, seed: int) -> None:
    case = cases.case(n=1, frames=frames, dilation=dilation, offset=offset, seed=seed)
    ours, plain = case.leaves(torch.float64), case.leaves(torch.float64)
    found, expected = cases.fused(ours, dilation), cases.plain(plain, dilation)
    for value, other in zip(found, expected, strict=True):
        assert_parity("output", value, other, 1e-9)
    wanted = cases.gradients(plain, expected)
    for name, value in cases.gradients(ours, found).items():
        assert_parity(f"gradient of {name}", value, wanted[name], 1e-7)


@settings(max_examples=10, deadline=None)
@given(frames=st.integers(2, 300), offset=st.sampled_from([0.0, 1.0, -2.0]))
def test_stored_norm_of_any_length_in_float64(frames: int, offset: float) -> None:
    case = cases.case(n=1, frames=frames, offset=offset)
    ours, plain = (cases.of_norm(case.leaves(torch.float64)) for _ in range(2))
    y, expected = cases.fused_norm(ours), cases.plain_norm(plain)
    assert_parity("y", y, expected, 1e-12)
    wanted = cases.gradients(plain, [expected])
    for name, value in cases.gradients(ours, [y]).items():
        assert_parity(f"gradient of {name}", value, wanted[name], 1e-9)


def sample_arguments(frames: int = 5) -> dict[str, tuple[object, ...]]:
    p = cases.case(n=1, frames=frames, inputs=16, outputs=8).leaves(torch.float32)
    statistics = ops.group_statistics(p["x"], p["slope"])
    y, statistics_2 = ops.pointwise(p["x"], p["weight"], next_slope=p["slope_2"])
    assert statistics_2 is not None
    whole = (
        p["x"],
        p["weight"],
        p["bias"],
        p["residual"],
        p["slope"],
        statistics,
        p["gamma"],
        p["beta"],
        p["slope_2"],
        False,
    )
    bare = (p["x"], p["weight"], *[None] * 7, False)
    taps = (
        y.detach().requires_grad_(),
        p["taps"],
        2,
        p["slope_2"],
        statistics_2,
        p["gamma_2"],
        p["beta_2"],
        p["slope_3"],
    )
    affine = (statistics, p["gamma"].detach(), p["beta"].detach(), frames)
    return {
        "pointwise": whole, "pointwise.bare": bare, "depthwise": taps, "group_affine": affine,
        "group_norm": (p["x"], p["slope"], statistics, p["gamma"], p["beta"]),
        "group_statistics": (p["x"].detach(), None),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["pointwise", "pointwise.bare", "depthwise", "group_norm", "group_affine", "group_statistics"]
)
def test_registration_is_what_torch_expects(name: str) -> None:
    operator = getattr(torch.ops.metatasnet_fast, name.partition(".")[0]).default
    torch.library.opcheck(operator, sample_arguments()[name])


def test_compiles_without_a_graph_break() -> None:
    case = cases.case(n=1, frames=9)
    leaves = case.leaves(torch.float32)
    compiled = torch.compile(cases.fused, backend="aot_eager", fullgraph=True)
    for value, expected in zip(compiled(leaves, 4), cases.fused(leaves, 4), strict=True):
        assert torch.equal(value, expected)


def test_second_derivative_is_refused() -> None:
    leaves = cases.case(n=1, frames=5).leaves(torch.float64)
    (first,) = torch.autograd.grad(cases.fused(leaves, 1)[0].sum(), [leaves["x"]], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(first.sum(), [leaves["x"]])


def test_statistics_carry_no_gradient() -> None:
    leaves = cases.case(n=1, frames=5).leaves(torch.float32)
    _, statistics = ops.pointwise(leaves["x"], leaves["weight"], next_slope=leaves["slope"])
    assert statistics is not None and not statistics.requires_grad
    assert not ops.group_statistics(leaves["x"], leaves["slope"]).requires_grad


def test_what_needs_no_gradient_gets_none() -> None:
    leaves = cases.case(n=1, frames=5).leaves(torch.float32)
    frozen = {name: value.detach() for name, value in leaves.items()} | {"x": leaves["x"]}
    cases.fused(frozen, 1)[1].sum().backward()
    assert leaves["x"].grad is not None
    assert all(value.grad is None for name, value in frozen.items() if name != "x")


def _refused(change: dict[str, Tensor | int | None]) -> None:
    p: dict[str, Tensor] = cases.case(n=1, frames=5).leaves(torch.float32)
    y, statistics = ops.pointwise(p["x"], p["weight"], next_slope=p["slope_2"])
    arguments = {"x": y, "weight": p["taps"], "dilation": 1, "slope": p["slope_2"], "next_slope": p["slope_3"]}
    arguments["norm"] = GroupNorm(change.pop("statistics", statistics), p["gamma_2"], p["beta_2"])  # type: ignore[arg-type]
    ops.depthwise(**{**arguments, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 3, 5)}, r"x must be \(n, instruments, frames, channels\)"),
        ({"x": torch.zeros(1, 3, 5, 16)}, r"weight must be .* \(3, 16, 3\)"),
        ({"x": torch.zeros(1, 4, 0, 16)}, "at least one of the last three"),
        ({"x": torch.zeros(1, 4, 5, 16, dtype=torch.int32)}, "floating point"),
        ({"x": torch.zeros(1, 4, 5, 12)}, r"weight must be .* \(4, 12, 3\)"),
        ({"x": torch.zeros(1, 4, 5, 12), "weight": torch.zeros(4, 12, 3)}, "multiple of 8 channels, got 12"),
        ({"dilation": 0}, "dilation must be at least 1, got 0"),
        ({"slope": torch.zeros(2)}, r"slope must be .*\(1,\)"),
        ({"statistics": torch.zeros(1, 4, 2, 2, 16)}, r"statistics must be .*\(1, 4, 1, 2, 16\)"),
        ({"statistics": torch.zeros(1, 4, 1, 2, 16, dtype=torch.float64)}, "must be torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value(change: dict[str, Tensor | int | None], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        _refused(dict(change))


def test_residual_of_another_dtype_or_shape_is_refused() -> None:
    x, weight = torch.zeros(1, 4, 5, 16), torch.zeros(4, 8, 16)
    with pytest.raises(ShapeError, match="residual must be torch.float32"):
        ops.pointwise(x, weight, residual=torch.zeros(1, 4, 5, 8, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"residual must be \(1, 4, 5, 8\)"):
        ops.pointwise(x, weight, residual=torch.zeros(1, 4, 6, 8))


def test_kernels_refuse_float64() -> None:
    with pytest.raises(ShapeError, match="not torch.float64"):
        operator.kernels("pointwise", torch.float64)


def test_without_triton_the_operations_import_and_run_and_the_kernels_say_what_to_install() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from metatasnet_fast import errors, ops; from metatasnet_fast.ops import operator\n"
        "ops.group_statistics(torch.ones(1, 4, 3, 8))\n"
        "try: operator.kernels('statistics', torch.float32)\n"
        "except errors.MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install triton" in done.stdout, done.stderr
    assert issubclass(MissingDependencyError, ImportError)


@pytest.mark.parametrize(("columns", "waste"), [(160, 0), (440, 0.02), (880, 0.02), (1540, 0.04), (1760, 0)])
def test_widths_of_the_network_waste_little(columns: int, waste: float) -> None:
    width = sum(column_tile(columns, torch.bfloat16))
    assert -(-columns // width) * width <= columns * (1 + waste)


def test_tile_width_is_never_less_than_the_tensor_cores_take() -> None:
    assert (
        min(column_tile(columns, dtype)[0] for columns in range(1, 300) for dtype in (torch.float32, torch.float16))
        >= 16
    )
