"""The cases of the interpreter on a GPU, in every precision; and what only a GPU can show: streams, graphs, sizes, races."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from metatasnet_fast import ops
from metatasnet_fast.ops import GroupNorm
from tests.ops import cases, mask_cases
from tests.ops.mask_cases import MaskCase, all_cases, blocks_case, generator_case, in_conv_case, mask_tail_case
from tests.support import assert_parity, golden, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]

LARGE = [
    in_conv_case(n=2, frames=257, first=440, second=224, outputs=160),
    in_conv_case(n=2, frames=130, first=440, second=0, outputs=160),
    mask_tail_case(n=2, frames=257, channels=440),
    blocks_case(n=2, frames=300, width=160, hidden=160, layers=6, bias=True, keep=2),
    blocks_case(n=3, frames=300, width=160, hidden=160, layers=2, stacks=2, keep=1, items=2),
    generator_case(rows=(25600, 480, 320)),
]


@pytest.fixture
def tf32() -> Iterator[None]:
    """Eager PyTorch multiplies in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("case", [*all_cases(), *all_cases(131), *LARGE], ids=lambda c: c.name)
def test_float32_equals_the_plain_layers(case: MaskCase) -> None:
    mask_cases.check(case, torch.float32, "cuda")


@pytest.mark.parametrize(
    "case", [*all_cases(131, tf32=True)[:3], *all_cases(131, tf32=True)[5:7]], ids=lambda c: c.name
)
def test_tf32_is_as_good_as_pytorch_in_tf32(case: MaskCase, tf32: None) -> None:
    expected = mask_cases.results(case, case.plain, torch.float64)
    eager = mask_cases.results(case, case.plain, torch.float32, "cuda")
    own = {name: relative_error(value.cpu(), expected[name]) for name, value in eager.items()}
    for name, value in mask_cases.results(case, case.fused, torch.float32, "cuda").items():
        if value.numel() > 4:
            assert_parity(f"{case.name}: {name}", value.cpu(), expected[name], 1.5 * own[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_that_are_never_stored_equal_those_that_are(dtype: torch.dtype) -> None:
    mask_cases.check_masked_latent(dtype, frames=257, inputs=160, channels=440, device="cuda")


@pytest.mark.parametrize("case", [*all_cases(131)[:7], *LARGE[:5]], ids=lambda c: c.name)
def test_bfloat16_is_as_good_as_pytorch_under_autocast(case: MaskCase) -> None:
    mask_cases.check(case, torch.bfloat16, "cuda", mask_cases.autocast_errors(case, "cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frames", [1, 37, 300])
def test_single_operations_equal_the_plain_layers(frames: int, dtype: torch.dtype) -> None:
    case = cases.case(frames=frames, inputs=160, outputs=160)
    leaves = {name: v.detach().cuda().requires_grad_() for name, v in case.leaves(dtype).items()}
    found, plain = cases.fused(leaves, 4), case.leaves(torch.float64)
    expected = cases.plain(plain, 4)
    wanted = cases.gradients(plain, expected)
    same = case.leaves(dtype)
    reference = cases.fused(same, 4)
    close = cases.gradients(same, reference)
    own = cases.gradients(leaves, found)
    least = 6e-6 if dtype == torch.float32 else 1e-3
    for value, other, truth in zip(found, reference, expected, strict=True):
        assert_parity("output", value.cpu(), truth, 5 * relative_error(other, truth) + least)
    for name, value in own.items():
        if value.numel() > 1:
            limit = 5 * relative_error(close[name], wanted[name]) + least
            assert_parity(f"gradient of {name}", value.cpu(), wanted[name], limit)


@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.name)
def test_fifty_repetitions_give_the_same_bits_and_neighbours_change_nothing(case: MaskCase) -> None:
    first = mask_cases.results(case, case.fused, torch.bfloat16, "cuda")
    for _ in range(50):
        again = mask_cases.results(case, case.fused, torch.bfloat16, "cuda")
        assert all(torch.equal(value, again[name]) for name, value in first.items())
    leaves = case.leaves(torch.bfloat16, "cuda")
    if case.activations:
        alone = {k: v.detach()[1:] if k in case.activations else v.detach() for k, v in leaves.items()}
        assert torch.equal(case.fused(alone), first["y"][1:])


@pytest.mark.parametrize("case", LARGE[:4], ids=lambda c: c.name)
def test_captured_in_a_graph_and_on_another_stream(case: MaskCase) -> None:
    with torch.no_grad():
        leaves = {name: value.detach() for name, value in case.leaves(torch.bfloat16, "cuda").items()}
        expected = case.fused(leaves)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            assert torch.equal(case.fused(leaves), expected)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = case.fused(leaves)
        graph.replay()
        assert torch.equal(captured, expected)
        for name in case.activations & leaves.keys():
            leaves[name].mul_(-0.5)
        graph.replay()
        assert torch.equal(captured, case.fused(leaves))


def test_compiled_and_not_compiled_are_equal() -> None:
    case = blocks_case(frames=70)
    leaves = case.leaves(torch.bfloat16, "cuda")
    assert torch.equal(torch.compile(case.fused, fullgraph=True)(leaves), case.fused(leaves))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_tensors_of_another_device_than_the_current() -> None:
    case = blocks_case(frames=70)
    y = case.fused(case.leaves(torch.bfloat16, "cuda:1"))
    assert torch.equal(y.cpu(), case.fused(case.leaves(torch.bfloat16, "cuda:0")).cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["blocks_generated", "blocks_independent", "blocks_residual_bias"])
def test_block_equals_the_recorded_one(name: str, dtype: torch.dtype) -> None:
    cases.block(golden(name), dtype, "cuda")


def _beyond(make: Callable[[Tensor], Tensor], channels: int, frames: int = 3200) -> None:
    """More than 2^31 elements: the last item's result is that of the item alone."""
    items = 2**31 // (4 * frames * channels) + 2
    if torch.cuda.get_device_properties(0).total_memory < 6 * 2 * 2**31:
        pytest.skip("the GPU has too little memory")
    x = torch.empty(items, 4, frames, channels, dtype=torch.bfloat16, device="cuda").normal_()
    assert x.numel() > 2**31
    assert torch.equal(make(x)[-1:], make(x[-1:]))


def test_more_than_two_to_the_31_elements() -> None:
    r = torch.Generator().manual_seed(0)
    weight, one = torch.randn(4, 160, 160, generator=r).cuda() / 12, torch.full((1,), 0.25).cuda()
    ones = torch.ones(4, 160).cuda()

    def product(x: Tensor) -> Tensor:
        return ops.pointwise(x, weight, residual=x, next_slope=one)[0]

    def tail(x: Tensor) -> Tensor:
        return ops.mask_tail(x, x[:, 0], one, GroupNorm(ops.group_statistics(x, one), ones, 0 * ones))

    _beyond(product, 160)
    _beyond(tail, 160)
