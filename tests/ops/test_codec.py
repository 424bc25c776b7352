"""The codec's operations with the reference arithmetic: parity with PyTorch and the recordings, registration, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast import ops
from metatasnet_fast.errors import ShapeError
from metatasnet_fast.kernels.bottleneck import BLOCK_K, product_tile
from metatasnet_fast.kernels.launch import TILE
from metatasnet_fast.kernels.overlap_add import sample_tile
from metatasnet_fast.ops.bottleneck import rectified_bottleneck
from metatasnet_fast.precision import Precision
from tests.ops import codec_cases as cases
from tests.support import golden


@pytest.mark.parametrize("precision", [Precision.float64, Precision.float32, Precision.bfloat16])
@pytest.mark.parametrize(("name", "job"), cases.RECORDED)
def test_codec_equals_the_recorded_one(name: str, job: str, precision: Precision) -> None:
    cases.recorded_job(golden(name), job, precision)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 257), rows=st.integers(1, 30))
def test_any_length_in_float64(length: int, rows: int) -> None:
    cases.check(cases.bottleneck_case(n=1, frames=length, rows=rows), torch.float64, 1e-12)
    cases.check(cases.overlap_add_case(n=1, frames=length), torch.float64, 1e-12)
    cases.check(cases.filter_bank_case(n=1, samples=max(length, 5)), torch.float64, 1e-12)
    cases.check(cases.log_power_case(n=1, samples=max(length, 17)), torch.float64, 1e-9)


def arguments() -> dict[str, tuple[object, ...]]:
    b, f, o, p = (
        make().leaves(torch.float32) for make in (cases.bottleneck_case, cases.filter_bank_case,
                                                   cases.overlap_add_case, cases.log_power_case)
    )  # fmt: skip
    return {
        "bottleneck": (b["x"], b["weight"], b["bias"], b["share"], True, False, False, False),
        "bottleneck.bare": (b["x"], b["weight"], None, None, False, False, True, False),
        "filter_bank": (f["signal"], f["bank"], 5, 4, 0, 0, True, False, False),
        "overlap_add": (o["x"], o["bank"], 5, 4, 8, 5, False, False),
        "log_power": (p["signal"], torch.hann_window(32), torch.zeros(17), 8),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck.bare", "filter_bank", "overlap_add", "log_power"])
def test_registration_is_what_torch_expects(name: str) -> None:
    operator = getattr(torch.ops.metatasnet_fast, name.partition(".")[0]).default
    torch.library.opcheck(operator, arguments()[name])


@pytest.mark.parametrize("name", cases.CASES)
def test_gradients_are_those_of_the_function(name: str) -> None:
    sizes = {"log power": {"samples": 40}, "filter bank": {"samples": 23}}.get(name, {"frames": 5})
    case = cases.CASES[name](n=1, **sizes)
    leaves = case.leaves(torch.float64)

    def function(*values: Tensor) -> Tensor:
        return case.fused(dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("name", cases.CASES)
def test_compiles_without_a_graph_break(name: str) -> None:
    case = cases.CASES[name]()
    leaves = case.leaves(torch.float32)
    compiled = torch.compile(case.fused, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(leaves), case.fused(leaves))


@pytest.mark.parametrize("name", cases.CASES)
def test_second_derivative_is_refused(name: str) -> None:
    case = cases.CASES[name](n=1)
    leaves = case.leaves(torch.float64)
    first = torch.autograd.grad(case.fused(leaves).square().sum(), list(leaves.values()), create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(sum(g.sum() for g in first), list(leaves.values()))


X, W = torch.zeros(1, 5, 8), torch.zeros(6, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.bottleneck(X[0], W), r"x must be floating point \(n, frames, channels\)"),
        (lambda: ops.bottleneck(X[:, :0], W), "at least one frame"),
        (lambda: ops.bottleneck(X, W[:, :7]), r"weight must be .*\(6, 8\)"),
        (lambda: ops.bottleneck(X, W, share=torch.zeros(1, 2, 5)), r"share must be .*\(1, 2, 6\)"),
        (lambda: ops.bottleneck(X.bfloat16(), W, share=torch.zeros(1, 2, 6).bfloat16()), "share must be torch.float32"),
        (lambda: ops.filter_bank(X, W, 2, 0), r"signal must be \(n, samples\)"),
        (lambda: ops.filter_bank(X[0], W, 0, 0), "stride must be at least 1"),
        (lambda: ops.filter_bank(X[0, :, :3], W, 2, 1), "hold no frame of 8"),
        (lambda: ops.overlap_add(X, W, 2, 0), r"bank must be .*\(8, 8\)"),
        (lambda: ops.overlap_add(X, W.T, 2, 3), "padding below half of 6 taps"),
        (lambda: ops.log_power(X[0], torch.zeros(12), torch.zeros(7), 4), "a multiple of 8"),
        (lambda: ops.log_power(X[0], torch.zeros(16), torch.zeros(9), 4), "8 samples are too few"),
        (lambda: ops.log_power(X[0], torch.zeros(8), torch.zeros(5), 9), "hop must be between 1 and n_fft=8"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value(call: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("columns", [336, 392, 440, 664, 776, 880, 1320, 1544, 1760, 256])
def test_products_of_the_network_read_and_waste_little(columns: int) -> None:
    width = sum(product_tile(columns, torch.bfloat16))
    blocks = -(-columns // width)
    assert blocks * width <= 1.23 * columns
    assert blocks * (TILE + width) <= 2.3 * columns  # 160 columns, none idle: 1.8; 64 columns: 3
    if columns >= 330:
        assert -(-columns // BLOCK_K) * BLOCK_K <= 1.09 * columns


@pytest.mark.parametrize(("stride", "waste"), [(20, 0.2), (40, 0), (80, 0)])
def test_overlap_add_wastes_little(stride: int, waste: float) -> None:
    width = sum(sample_tile(stride, narrowest=8))
    assert -(-stride // width) * width <= (1 + waste) * stride


@pytest.mark.parametrize("stride", [4, 20, 40, 80])
@pytest.mark.parametrize("widest", [20, 40, 80])
def test_overlap_add_has_no_product_below_the_narrowest_that_triton_compiles(stride: int, widest: int) -> None:
    main, tail = sample_tile(stride, widest, narrowest=16)
    assert main >= 16
    assert tail == 0 or tail >= 16
    assert main + tail <= widest


def test_a_relu_that_leaves_its_gradient_to_its_reader_has_the_same_gradients() -> None:
    p = cases.normal(3, x=(2, 9, 8), weight=(16, 8), bank=(16, 13))
    p = {name: value.requires_grad_() for name, value in p.items()}
    plain = ops.overlap_add(ops.bottleneck(p["x"], p["weight"], relu=True), p["bank"], cases.STRIDE, cases.PADDING)
    left = ops.overlap_add(rectified_bottleneck(p["x"], p["weight"]), p["bank"], cases.STRIDE, cases.PADDING)
    expected, found = (torch.autograd.grad(y.square().sum(), list(p.values())) for y in (plain, left))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    with pytest.raises(AttributeError):  # an operation that knows only tensors refuses it
        ops.group_statistics(rectified_bottleneck(p["x"], p["weight"]))  # type: ignore[arg-type]
