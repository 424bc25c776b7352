"""The masking network's operations with the reference arithmetic: gradients, registration, compilation, refusals."""

from __future__ import annotations

import pytest
import torch

from metatasnet_fast import ops
from metatasnet_fast.errors import ShapeError
from metatasnet_fast.ops import BlockParameters, Section
from tests.ops import mask_cases
from tests.ops.mask_cases import MaskCase, all_cases, blocks_case, generator_case, in_conv_case, mask_tail_case
from tests.support import assert_parity

SMALL = [
    in_conv_case(n=1, frames=3, first=8, second=8, outputs=3),
    in_conv_case(n=1, frames=3, first=8, second=0, outputs=3, shared=False),
    mask_tail_case(n=1, frames=3, channels=8),
    blocks_case(n=1, frames=4, width=8, hidden=8, layers=2, bias=True, keep=1),
    generator_case(e1=3, e2=2, rows=(5, 4)),
]


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: c.name)
def test_result_and_gradients_in_float64(case: MaskCase) -> None:
    expected = mask_cases.results(case, case.plain, torch.float64)
    for name, value in mask_cases.results(case, case.fused, torch.float64).items():
        assert_parity(name, value, expected[name], 1e-10)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_gradients_are_those_of_finite_differences(case: MaskCase) -> None:
    leaves = case.leaves(torch.float64)

    def run(*values: torch.Tensor) -> torch.Tensor:
        return case.fused(dict(zip(leaves, values, strict=True)))

    # The last block's residual weights do nothing, so their gradient is zero, as finite differences find.
    torch.autograd.gradcheck(run, list(leaves.values()), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_compiles_without_a_graph_break(case: MaskCase) -> None:
    leaves = case.leaves(torch.float32)
    compiled = torch.compile(case.fused, backend="aot_eager", fullgraph=True)
    y, expected = compiled(leaves), case.fused(leaves)
    assert torch.equal(y, expected)
    found = torch.autograd.grad(y.sum(), list(leaves.values()))
    for value, other in zip(found, torch.autograd.grad(expected.sum(), list(leaves.values())), strict=True):
        assert torch.equal(value, other)


def arguments() -> dict[str, tuple[object, ...]]:
    """What each operator is called with."""
    found: dict[str, tuple[object, ...]] = {}
    for case in SMALL:
        p = case.leaves(torch.float32)
        if case.name.startswith("in_conv"):
            norm = (p["gamma"], p["beta"])
            name = "in_conv" if "v" in p else "in_conv.alone"
            found[name] = (p["x"], p.get("v"), p["weight"], p["slope"], *norm, p["slope"].detach(), False)
        elif case.name.startswith("mask_tail"):
            statistics = ops.group_statistics(p["m"], p["slope"])
            latent = p["latent"].detach()[:, None].requires_grad_()
            found["mask_tail"] = (p["m"], latent, p["slope"], statistics, p["gamma"], p["beta"], p["m"].shape[1])
        elif case.name.startswith("blocks"):
            weights = [p.get(name) for name in BlockParameters._fields]
            for keep in (0, 1, 2):
                given = [v.detach() if keep == 0 and v is not None else v for v in (p["x"], *weights)]
                found[f"blocks.{keep}"] = (*given, torch.ones(1), [1, 2], keep, 1, False, keep == 0, *(None,) * 4)
        else:
            lists = [[p[f"{kind}{i}"] for i in range(2)] for kind in ("a", "bias", "k", "offset")]
            sections = [0, 0, 5, 0, 5, 1, 5, 4, 20, 4]
            found["generated"] = (p["embedding"], *lists, sections, 40)
    return found


@pytest.mark.parametrize(
    "name", ["in_conv", "in_conv.alone", "mask_tail", "blocks.0", "blocks.1", "blocks.2", "generated"]
)
def test_registration_is_what_torch_expects(name: str) -> None:
    operator = getattr(torch.ops.metatasnet_fast, name.partition(".")[0]).default
    torch.library.opcheck(operator, arguments()[name])


@pytest.mark.parametrize("case", all_cases(), ids=lambda c: c.name)
def test_fakes_have_the_strides_of_the_results(case: MaskCase) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    leaves = case.leaves(torch.float32)
    real = mask_cases.results(case, case.fused, torch.float32)
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(value) for name, value in leaves.items()}
        y = case.fused(fakes)
        found = torch.autograd.grad(y.sum(), list(fakes.values()))
    assert y.stride() == real["y"].stride()
    for name, value in zip(fakes, found, strict=True):
        expected = real[f"gradient of {name}"]
        assert (value.shape, value.dtype, value.stride()) == (expected.shape, expected.dtype, expected.stride()), name


def test_the_last_blocks_unused_residual_has_a_zero_gradient_and_no_influence() -> None:
    case = blocks_case(stacks=2)
    leaves = case.leaves(torch.float64)
    before = case.fused(leaves)
    (gradient,) = torch.autograd.grad(before.sum(), [leaves["out"]])
    assert not gradient[-1, :, :16].any() and gradient[-1, :, 16:].any()
    leaves["out"].data[-1, :, :16] = float("inf")
    assert torch.equal(case.fused(leaves), before)


def test_what_backward_needs_must_have_been_kept() -> None:
    leaves = blocks_case(keep=0).leaves(torch.float32)
    y = blocks_case(keep=0).fused(leaves)
    with pytest.raises(ShapeError, match="keep=0"):
        y.sum().backward()


def test_inference_gives_the_bits_of_training() -> None:
    mask_cases.check_that_inference_gives_the_bits_of_training(16, 24, torch.bfloat16)


def test_the_stream_may_start_by_a_norm() -> None:
    mask_cases.check_that_the_stream_may_start_by_a_norm(16, 24, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masks_that_are_never_stored_equal_those_that_are(dtype: torch.dtype) -> None:
    mask_cases.check_masked_latent(dtype, bits=False)


def test_what_is_for_inference_has_no_gradient() -> None:
    p = blocks_case(n=1, bias=True).leaves(torch.float32)
    parameters = BlockParameters(*(p[name] for name in BlockParameters._fields))
    with pytest.raises(ShapeError, match="no gradient"):
        ops.blocks(p["x"], parameters, (1, 2), torch.ones(1), activated=True)
    norm = ops.GroupNorm(ops.group_statistics(p["x"]), torch.ones(4, 16), torch.zeros(4, 16))
    with pytest.raises(ShapeError, match="norm at the start has no gradient"):
        ops.blocks(p["x"], parameters, (1, 2), torch.ones(1), start=(torch.ones(1), norm))


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_ambient_autocast_changes_nothing(case: MaskCase) -> None:
    alone = mask_cases.results(case, case.fused, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = mask_cases.results(case, case.fused, torch.float32)
    assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_nothing_is_kept_without_gradients() -> None:
    kept = []
    case = blocks_case()
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        case.fused(case.leaves(torch.float32))
    assert not kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": 8, "second": 4}, "multiple of 8 channels, got 12"),
        ({"outputs": 0}, "weight must be"),
    ],
)
def test_in_conv_refuses_what_does_not_fit(change: dict[str, int], message: str) -> None:
    case = in_conv_case(n=1, frames=3, **change)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=message):
        case.fused(case.leaves(torch.float32))


def test_other_operations_refuse_what_does_not_fit() -> None:
    tail, stack, job = mask_tail_case(n=1), blocks_case(n=1), generator_case()
    leaves = tail.leaves(torch.float32)
    leaves["latent"] = leaves["latent"][:, 1:]
    with pytest.raises(ShapeError, match=r"latent must be .*\(1, 37, 24\)"):
        tail.fused(leaves)
    leaves = stack.leaves(torch.float32)
    leaves["taps"] = leaves["taps"][..., :2]
    with pytest.raises(ShapeError, match=r"taps must be .*\(2, 4, 24, 3\)"):
        stack.fused(leaves)
    p = job.leaves(torch.float32)
    with pytest.raises(ShapeError, match="lies outside"):
        ops.generated_parameters(p["embedding"], [p["a0"]], [p["bias0"]], [p["k0"]], [p["offset0"]], [Section(0, 1, 600, 0, 600)], 2400)  # fmt: skip  # noqa: E501
