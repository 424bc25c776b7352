"""The masking network's kernels in the interpreter, forward and backward, on small shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops import mask_cases
from tests.ops.cases import gradients
from tests.ops.mask_cases import MaskCase, all_cases, blocks_case, generator_case, in_conv_case, mask_tail_case

ONE_OF_EACH = [
    in_conv_case(frames=19),
    mask_tail_case(frames=19),
    blocks_case(frames=19, hidden=16, layers=1, stacks=2, bias=True),
    generator_case(rows=(600, 9)),
]


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: c.name)
def test_result_and_gradients_equal_the_plain_layers(case: MaskCase) -> None:
    mask_cases.check(case, torch.float32)


@pytest.mark.parametrize(
    "case",
    [in_conv_case(n=1, frames=131, second=16), mask_tail_case(n=1, frames=131), blocks_case(n=1, frames=131, layers=1)],
    ids=lambda c: c.name,
)
def test_more_than_one_tile(case: MaskCase) -> None:
    mask_cases.check(case, torch.float32)


@pytest.mark.parametrize(
    "case",
    [
        in_conv_case(frames=9, instruments=1),
        in_conv_case(frames=9, instruments=3, shared=False),
        mask_tail_case(frames=9, instruments=1, softmax=0),
        mask_tail_case(frames=9, instruments=3),
        mask_tail_case(frames=9, instruments=6, softmax=4),
        blocks_case(n=1, frames=9, instruments=1),
        blocks_case(n=1, frames=9, instruments=5, layers=1, bias=True),
        generator_case(rows=(600, 9), instruments=3),
    ],
    ids=lambda c: c.name,
)
def test_any_number_of_instruments(case: MaskCase) -> None:
    mask_cases.check(case, torch.float32)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 257), seed=st.integers(0, 99))
def test_any_length(frames: int, seed: int) -> None:
    mask_cases.check(in_conv_case(n=1, frames=frames, seed=seed), torch.float32)
    mask_cases.check(mask_tail_case(n=1, frames=frames, seed=seed), torch.float32)
    mask_cases.check(blocks_case(n=1, frames=frames, layers=3, seed=seed), torch.float32)


def test_a_single_frame() -> None:
    mask_cases.check(in_conv_case(n=1, frames=1), torch.float32)
    mask_cases.check(mask_tail_case(n=1, frames=1), torch.float32)
    mask_cases.check(blocks_case(n=1, frames=1, layers=1), torch.float32)


@pytest.mark.parametrize(
    "case",
    [*ONE_OF_EACH[:3], in_conv_case(n=1, frames=3, outputs=160), blocks_case(n=1, frames=3, width=136, hidden=144)],
    ids=lambda c: c.name,
)
def test_bfloat16_is_as_good_as_pytorch_under_autocast(case: MaskCase) -> None:
    mask_cases.check(case, torch.bfloat16, own=mask_cases.autocast_errors(case))


@pytest.mark.parametrize("case", ONE_OF_EACH[:3], ids=lambda c: c.name)
def test_layout_changes_nothing(case: MaskCase) -> None:
    straight = case.leaves(torch.float32)
    others: dict[str, Tensor] = {}
    for name, value in straight.items():
        base = value.detach()
        if name in case.activations:
            wider = torch.full((*base.shape[:-2], 2 * base.shape[-2], base.shape[-1] + 9), float("nan"))
            others[name] = wider[..., ::2, 1 : 1 + base.shape[-1]].copy_(base)
        else:
            others[name] = base.movedim(0, -1).contiguous().movedim(-1, 0)
        others[name].requires_grad_()

    def run(leaves: dict[str, Tensor]) -> list[Tensor]:
        y = case.fused(leaves)
        dy = y.new_ones(()).expand(y.shape)
        return [y.detach(), *torch.autograd.grad([y], list(leaves.values()), [dy])]

    for value, expected in zip(run(others), run(straight), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda c: c.name)
def test_neighbours_in_the_batch_change_nothing_and_repetition_neither(case: MaskCase) -> None:
    leaves = case.leaves(torch.float32)
    y = case.fused(leaves)
    again = case.fused(leaves)
    assert torch.equal(y, again)
    first, second = gradients(leaves, [y]), gradients(leaves, [again])
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = {k: v.detach()[1:].requires_grad_() if k in case.activations else v for k, v in leaves.items()}
    if case.activations:
        assert torch.equal(case.fused(alone), y[1:])


@pytest.mark.parametrize("case", ONE_OF_EACH[:3], ids=lambda c: c.name)
def test_empty_batch_has_no_result_and_zero_gradients(case: MaskCase) -> None:
    leaves = case.leaves(torch.float32)
    empty = {k: v.detach()[:0].requires_grad_() if k in case.activations else v for k, v in leaves.items()}
    y = case.fused(empty)
    assert y.shape[0] == 0
    for name, value in gradients(empty, [y]).items():
        assert value.shape == empty[name].shape and not value.any()


def test_what_is_kept_and_how_many_items_go_at_a_time_change_nothing() -> None:
    found = []
    for keep, items in ((1, 0), (2, 1)):
        case = blocks_case(frames=5, hidden=16, layers=2, keep=keep, items=items)
        found.append(mask_cases.results(case, case.fused, torch.float32))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("width", "hidden", "dtype"), [(16, 24, torch.float32), (136, 144, torch.bfloat16)], ids=["products", "pair"]
)
def test_inference_gives_the_bits_of_training(width: int, hidden: int, dtype: torch.dtype) -> None:
    mask_cases.check_that_inference_gives_the_bits_of_training(width, hidden, dtype)


@pytest.mark.parametrize(
    ("width", "hidden", "dtype"),
    [(16, 24, torch.float32), (16, 24, torch.bfloat16), (136, 144, torch.bfloat16)],
    ids=["products", "narrow pair", "pair"],
)
def test_the_stream_may_start_by_a_norm(width: int, hidden: int, dtype: torch.dtype) -> None:
    mask_cases.check_that_the_stream_may_start_by_a_norm(width, hidden, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n": 1, "frames": 131, "inputs": 16},
        {"n": 1, "frames": 1},
        {"n": 1, "frames": 3, "inputs": 160, "channels": 64},
        {"n": 1, "frames": 3, "inputs": 168},
        {"n": 1, "frames": 9, "instruments": 1, "softmax": 0},
        {"n": 1, "frames": 9, "instruments": 3, "softmax": 2},
        {"n": 1, "frames": 9, "instruments": 6, "softmax": 4},
    ],
    ids=str,
)
def test_masks_that_are_never_stored_equal_those_that_are(sizes: dict[str, int], dtype: torch.dtype) -> None:
    mask_cases.check_masked_latent(dtype, **sizes)


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_constant_signal_stays_finite(value: float) -> None:
    for case in (
        in_conv_case(n=1, frames=3),
        mask_tail_case(n=1, frames=3),
        blocks_case(n=1, frames=3, hidden=16, layers=1),
    ):
        for name in case.activations:
            case.tensors[name] = torch.full_like(case.tensors[name], value)
        assert all(v.isfinite().all() for v in mask_cases.results(case, case.fused, torch.float32).values())
