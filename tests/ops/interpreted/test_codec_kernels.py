"""The numbers of the codec's kernels, forward and backward, on small shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast.ops import bottleneck, log_power
from metatasnet_fast.precision import Precision
from tests.ops import codec_cases as cases
from tests.support import golden

EDGES = {
    "bottleneck": [
        {"frames": 1, "rows": 3}, {"frames": 131, "rows": 12}, {"frames": 9, "rows": 1}, {"frames": 4, "rows": 9},
        {"n": 1, "frames": 5, "inputs": 40, "outputs": 80}, {"n": 0},
    ],
    "filter bank": [
        {"samples": 5}, {"samples": 700, "n": 1}, {"taps": 9, "outputs": 50}, {"relu": False}, {"n": 0},
        {"samples": 300, "taps": 205, "outputs": 200, "narrow": (170, 65)},
    ],
    "overlap-add": [
        {"frames": 1}, {"frames": 140, "n": 1}, {"taps": 9, "channels": 70}, {"n": 0},
        {"taps": 205, "channels": 70, "narrow": (68, 65)},
    ],
    "log power": [
        {"samples": 17}, {"samples": 520, "n": 1}, {"n_fft": 16, "hop": 4}, {"n_fft": 24, "hop": 5},
        {"n_fft": 8, "hop": 8}, {"n": 0},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "sizes"), [(name, sizes) for name, edges in EDGES.items() for sizes in edges])
def test_equals_pytorchs_layers(name: str, sizes: dict[str, int]) -> None:
    if sizes.get("n") == 0:
        leaves = cases.CASES[name](**sizes).leaves(torch.float32)
        found = cases.results(cases.CASES[name](**sizes).fused, leaves)
        assert not any(value.any() for value in found.values())
        assert all(value.shape == leaves[key.rpartition(" ")[2]].shape for key, value in found.items() if key != "y")
    else:
        cases.check(cases.CASES[name](**sizes))


@settings(max_examples=4, deadline=None)
@given(length=st.integers(1, 257), rows=st.integers(1, 20))
def test_any_length(length: int, rows: int) -> None:
    cases.check(cases.bottleneck_case(n=1, frames=length, rows=rows))
    cases.check(cases.overlap_add_case(n=1, frames=length))
    cases.check(cases.filter_bank_case(n=1, samples=max(length, 5)))
    cases.check(cases.log_power_case(n=1, samples=max(length, 17)))


@pytest.mark.parametrize(("name", "job"), [("codec_8k", "encoder"), ("codec_8k", "decoder"), ("codec_32k", "decoder")])
@pytest.mark.parametrize("precision", [Precision.float32, Precision.bfloat16])
def test_codec_equals_the_recorded_one(name: str, job: str, precision: Precision) -> None:
    cases.recorded_job(golden(name), job, precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.float32, Precision.bfloat16])
def test_encoder_at_the_highest_rate_equals_the_recorded_one(precision: Precision) -> None:
    cases.recorded_job(golden("codec_32k"), "encoder", precision)


@pytest.mark.parametrize("name", ["bottleneck", "filter bank", "overlap-add"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_bytes_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    cases.check(cases.CASES[name](), dtype, {torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype])


@pytest.mark.parametrize("layout", ["expanded", "strided", "transposed"])
@pytest.mark.parametrize("name", cases.CASES)
def test_layout_changes_nothing(name: str, layout: str) -> None:
    case = cases.CASES[name]()
    key = next(iter(case.tensors))

    def laid_out(x: Tensor) -> Tensor:
        if layout == "expanded":
            return x[:1].expand_as(x)
        if layout == "strided":
            shape = [2 * x.shape[0], *x.shape[1:-1], x.shape[-1] + 9]
            return torch.full(shape, float("nan"))[::2, ..., 3 : 3 + x.shape[-1]].copy_(x)
        return x.transpose(0, -1).contiguous().transpose(0, -1)

    leaves = case.leaves(torch.float32)
    strange = {**leaves, key: laid_out(leaves[key].detach()).requires_grad_()}
    plain = {**leaves, key: strange[key].detach().contiguous().requires_grad_()}
    given = laid_out(torch.randn(case.fused(leaves).shape, generator=torch.Generator().manual_seed(2)))
    found, expected = cases.results(case.fused, strange, given), cases.results(case.fused, plain, given.contiguous())
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("name", cases.CASES)
def test_neighbours_in_the_batch_change_nothing_and_repetition_neither(name: str) -> None:
    case = cases.CASES[name]()
    both = case.leaves(torch.float32)
    alone = {k: v.detach()[1:].requires_grad_() if k in ("x", "share", "signal") else v for k, v in both.items()}
    given = torch.randn(case.fused(both).shape, generator=torch.Generator().manual_seed(2))
    found, again = (cases.results(case.fused, both, given) for _ in range(2))
    single = cases.results(case.fused, alone, given[1:])
    assert all(torch.equal(value, again[key]) for key, value in found.items())
    for key in ("y", *(f"gradient of {k}" for k in alone if k in ("x", "share", "signal"))):
        assert torch.equal(found[key][1:], single[key])


@pytest.mark.parametrize("name", ["bottleneck", "filter bank"])
def test_a_frozen_input_changes_no_other_gradient(name: str) -> None:
    case = cases.CASES[name](n=1)
    leaves = case.leaves(torch.float32)
    key, *others = leaves
    given = torch.ones_like(case.fused(leaves))
    expected = torch.autograd.grad(case.fused(leaves), [leaves[k] for k in others], given)
    frozen = {**leaves, key: leaves[key].detach()}
    found = torch.autograd.grad(case.fused(frozen), [leaves[k] for k in others], given)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_frames_between_samples_of_zero_and_one_are_exact() -> None:
    signal = torch.zeros(1, 61).index_fill_(1, torch.tensor([0, 30, 60]), 1.0)
    case = cases.filter_bank_case(n=1)
    leaves = {**case.leaves(torch.float32), "signal": signal.requires_grad_()}
    assert torch.equal(case.fused(leaves), case.plain(leaves))


@pytest.mark.parametrize("level", [0.0, 1e-7, 1e-5])
def test_silence_comes_out_right_to_the_last_digit(level: float) -> None:
    case = cases.log_power_case(n=1)
    signal = level * case.tensors["signal"].float()
    window, mean = torch.hann_window(32), torch.full((17,), -8.0)
    expected = cases.log_power_case(n=1).plain({"signal": signal.double()})
    found = log_power(signal, window, mean, 8)
    offset = torch.randn(17, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float().double() + 8
    assert (found - expected - offset).abs().max() <= (0 if level == 0 else 3e-7)


def test_nothing_becomes_of_nan_but_nan() -> None:
    x = torch.ones(1, 3, 8).index_fill_(1, torch.tensor([1]), float("nan"))
    found = bottleneck(x, torch.ones(4, 8), relu=True)
    assert found[:, 1].isnan().all() and found[:, ::2].isfinite().all()


def test_items_further_apart_than_two_billion_values(tmp_path: Path) -> None:
    far = 2**31 + 64
    sparse = torch.from_file(str(tmp_path / "sparse"), shared=True, size=far + 200, dtype=torch.bfloat16)
    x = sparse.as_strided((2, 5, 40), (far, 40, 1))
    x[1] = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).bfloat16()
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(bottleneck(x, weight)[1:], bottleneck(x[1:].clone(), weight))


def test_a_row_of_the_share_reaches_only_the_frames_beside_it() -> None:
    """Frames 0 to 130 lie at rows 0 to 4: row 2 is at frame 65, its neighbours at 32.5 and 97.5."""
    share = torch.zeros(1, 5, 16)
    share[:, 2] = float("nan")
    y = bottleneck(torch.ones(1, 131, 8), torch.ones(16, 8), share=share, relu=True)
    reached = y.isnan().all(2)[0]
    assert torch.equal(reached, y.isnan().any(2)[0])
    assert reached.nonzero().flatten().tolist() == list(range(33, 98))


def test_a_share_that_is_not_a_number_leaves_the_other_items_as_they_are() -> None:
    share = torch.zeros(3, 5, 16)
    share[1] = float("nan")
    y = bottleneck(torch.ones(3, 131, 8), torch.ones(16, 8), share=share, relu=True)
    assert y[1].isnan().all() and not y[::2].isnan().any()
