"""The losses with the reference arithmetic: parity, gradients, silence, registration, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast.errors import ShapeError
from metatasnet_fast.ops import stage_loss
from metatasnet_fast.reference import LossWeights, loss_divisors
from tests.ops import loss_cases as cases
from tests.support import golden


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-6), (torch.float32, 3e-6)])
def test_losses_equal_the_recorded_ones(dtype: torch.dtype, limit: float) -> None:
    cases.recorded(golden("loss"), dtype, limit)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(2, 4), instruments=st.integers(1, 7), carried=st.integers(0, 1), samples=st.integers(2, 257),
    frames=st.integers(1, 20), silent=st.sets(st.tuples(st.integers(0, 0), st.integers(0, 6))),
    noise=st.sampled_from([1e-3, 1.0, 30.0]),
)  # fmt: skip
def test_any_length_silence_quality_and_instruments_in_float64(
    n: int, instruments: int, carried: int, samples: int, frames: int, silent: set[tuple[int, int]], noise: float
) -> None:
    found = tuple((item, i % instruments) for item, i in silent)
    values = cases.inputs(n, instruments, carried, samples, frames, silent=found, noise=noise)
    cases.check(values, torch.float64, 1e-9)


def test_shares_of_parts_add_up_to_the_batch() -> None:
    """Each part is given the whole batch's divisors and the item before its first."""
    whole = cases.at(cases.inputs(n=4, instruments=3), torch.float64)
    loss, stats = stage_loss(**whole, weights=cases.weights_with())
    expected = torch.autograd.grad(loss, [whole[k] for k in cases.LEAVES])
    divisors, shares, found = loss_divisors(whole["mask"]), [], {k: torch.zeros_like(whole[k]) for k in cases.LEAVES}
    for first in (0, 2):
        items, carried = [first, first + 1], [(first - 1) % 4, first, first + 1]
        rows = {k: carried if k in ("mask", "latents") else items for k in whole}
        part = {k: v.detach()[rows[k]].requires_grad_(v.requires_grad) for k, v in whole.items()}
        shares.append(stage_loss(**part, weights=cases.weights_with(), divisors=divisors))
        for name, gradient in zip(
            cases.LEAVES, torch.autograd.grad(shares[-1][0], [part[k] for k in cases.LEAVES]), strict=True
        ):
            found[name] = found[name].index_add(0, torch.tensor(rows[name]), gradient)
    assert torch.allclose(shares[0][0] + shares[1][0], loss, rtol=1e-12)
    assert torch.allclose(shares[0][1] + shares[1][1], stats, rtol=1e-12)
    for name, gradient in zip(cases.LEAVES, expected, strict=True):
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-12), name


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 2), samples=st.integers(1, 2), silent=st.sets(st.tuples(st.integers(0, 0), st.integers(0, 3))),
    noise=st.sampled_from([1e-3, 1.0, 30.0]), seed=st.integers(0, 999),
)  # fmt: skip
def test_gradients_that_cancel_stay_small(
    n: int, samples: int, silent: set[tuple[int, int]], noise: float, seed: int
) -> None:
    values = cases.inputs(n, samples=samples, frames=1, silent=tuple(silent), noise=noise, seed=seed)
    cases.check_what_cancels(values, torch.float64, 1e-9)


def test_latents_shorter_than_the_floor_are_divided_by_it() -> None:
    values = cases.inputs()
    values["latents"][:, :, ::2] *= 1e-10
    cases.check(values, torch.float64, 1e-9)


def test_gradients_are_those_of_the_function() -> None:
    values = cases.at(cases.inputs(n=2, samples=9, frames=3, channels=5), torch.float64)

    def function(*leaves: Tensor) -> Tensor:
        return stage_loss(**{**values, **dict(zip(cases.LEAVES, leaves, strict=True))}, weights=cases.weights_with())[0]

    assert torch.autograd.gradcheck(function, tuple(values[k] for k in cases.LEAVES))


@pytest.mark.parametrize("off", cases.WEIGHTS)
def test_a_weight_of_zero_switches_its_term_off(off: str) -> None:
    cases.check(cases.inputs(), torch.float64, 1e-9, **{off: 0.0})


def test_what_is_switched_off_need_not_be_there() -> None:
    values = {**cases.at(cases.inputs(), torch.float32), "latents": None, "mix_estimate": None}
    loss, stats = stage_loss(**values, weights=LossWeights(0.0, -1.0, 0.0))
    loss.backward()
    assert stats[4:].tolist() == [0, 0, 0]
    assert torch.allclose(loss, -stats[:4].sum())


def test_statistics_carry_no_gradient() -> None:
    _, stats = stage_loss(**cases.at(cases.inputs(), torch.float32), weights=cases.weights_with())
    assert not stats.requires_grad


def test_registration_is_what_torch_expects() -> None:
    values = cases.at(cases.inputs(n=2, samples=20, frames=3), torch.float32)
    names = ("estimate", "target", "mask", "latents", "mix_estimate", "mix")
    operator = torch.ops.metatasnet_fast.stage_loss.default
    estimate, target, mask = values["estimate"][:, :, 0], values["target"][:, :, 0], values["mask"][..., 0]
    divisors = loss_divisors(values["mask"])
    others = [values[k] for k in names[3:]]
    torch.library.opcheck(operator, (estimate, target, mask, *others, divisors, [2.0, 3.0, 0.05]))
    torch.library.opcheck(operator, (estimate, target, mask, None, None, None, divisors, [0.0, 0.0, 0.0]))


def test_compiles_without_a_graph_break() -> None:
    values = cases.at(cases.inputs(), torch.float32)
    compiled = torch.compile(
        lambda v: stage_loss(**v, weights=cases.weights_with()), backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(values)[0], stage_loss(**values, weights=cases.weights_with())[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimate": torch.zeros(2, 4, 1, 0)}, "at least one sample"),
        ({"estimate": torch.zeros(0, 4, 1, 5)}, r"estimate must be .*\(b, I, 1, T\)"),
        ({"target": torch.zeros(3, 4, 1, 299)}, r"target must be .*\(3, 4, 1, 300\)"),
        ({"mask": torch.zeros(3, 4)}, r"mask must be \(3 or 4, 4, 1\)"),
        ({"latents": None}, "latents are missing"),
        ({"mix_estimate": None}, "mix_estimate is missing"),
        ({"latents": torch.zeros(2, 4, 13, 24)}, r"latents must be .*\(3, 4, 13, 24\)"),
        ({"mix": torch.zeros(3, 1, 300, requires_grad=True)}, "detach them"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value(change: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        stage_loss(**{**cases.at(cases.inputs(), torch.float32), **change}, weights=cases.weights_with())
