"""The losses of the backend ``cpu``: parity, silence, shares of a batch, every instruction set, threads."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast.backends.cpu import ISA_VARIABLE
from metatasnet_fast.backends.cpu_training import Cosines
from metatasnet_fast.reference import LossWeights, loss_divisors, stage_loss
from tests.backends.cpu_support import CPU, EVERY_ISA, ISAS, MODULE, needs_the_module
from tests.ops import loss_cases as cases
from tests.support import golden, relative_error

pytestmark = needs_the_module


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_losses_equal_the_recorded_ones(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    cases.recorded(golden("loss"), torch.float32, 3e-6, how=CPU.stage_loss)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n=st.integers(2, 4), instruments=st.integers(1, 7), carried=st.integers(0, 1), frames=st.integers(1, 40),
    channels=st.integers(2, 70), silent=st.sets(st.tuples(st.integers(0, 0), st.integers(0, 6))), isa=st.sampled_from(ISAS),
)  # fmt: skip
def test_any_length_silence_and_instruments(
    n: int, instruments: int, carried: int, frames: int, channels: int, silent: set[tuple[int, int]], isa: str
) -> None:
    found = tuple((item, i % instruments) for item, i in silent)
    values = cases.inputs(n, instruments, carried, 100, frames, channels, silent=found)
    with mock.patch.dict("os.environ", {ISA_VARIABLE: isa}):
        cases.check(values, torch.float32, 3e-6, how=CPU.stage_loss)


@pytest.mark.parametrize("off", ["similarity", "dissimilarity", "reconstruction"])
def test_each_term_can_be_left_out(off: str) -> None:
    cases.check(cases.inputs(), torch.float32, 3e-6, how=CPU.stage_loss, **{off: -1.0})


@pytest.mark.parametrize("channels", [1, 24])
def test_an_item_alone_is_its_own_neighbour(channels: int) -> None:
    cases.check_what_cancels(cases.inputs(n=1, samples=100, channels=channels), torch.float32, 3e-6, how=CPU.stage_loss)


def test_shares_of_parts_add_up_to_the_batch() -> None:
    whole = cases.at(cases.inputs(n=4, instruments=3), torch.float32)
    expected = cases.results(CPU.stage_loss, whole)
    divisors, found = loss_divisors(whole["mask"]), torch.zeros_like(whole["latents"])
    losses = []
    for first in (0, 2):
        items, carried = [first, first + 1], [(first - 1) % 4, first, first + 1]
        rows = {k: carried if k in ("mask", "latents") else items for k in whole}
        part = {k: v.detach()[rows[k]].requires_grad_(v.requires_grad) for k, v in whole.items()}
        loss, _ = CPU.stage_loss(**part, weights=cases.weights_with(), divisors=divisors)
        losses.append(loss)
        found.index_add_(0, torch.tensor(carried), torch.autograd.grad(1.5 * loss, part["latents"])[0])
    assert torch.allclose(losses[0] + losses[1], expected["loss"])
    assert relative_error(found, expected["gradient of latents"]) < 3e-6


def latents_by_frames(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """As the backend stores them: padded channels, frames before channels."""
    values = cases.at(cases.inputs(n=3, frames=50, channels=40), torch.float32)
    stored = torch.full((3, 4, 50, 64), float("nan"), dtype=dtype)
    stored[..., :40] = values["latents"].detach()
    return values | {"latents": stored[..., :40].detach().requires_grad_()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_threads_change_no_bit(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    values, found = latents_by_frames(dtype), []
    for threads in (1, 2, 3, 20):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        loss, stats = CPU.stage_loss(**values, weights=cases.weights_with())
        found.append((loss, stats, torch.autograd.grad(loss, values["latents"])[0]))
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


def test_latents_in_bfloat16_lose_their_rounding_only() -> None:
    values = latents_by_frames(torch.bfloat16)
    exact = {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in values.items()}
    found, expected = cases.results(CPU.stage_loss, values), cases.results(stage_loss, exact)
    assert relative_error(found["loss"], expected["loss"]) < 3e-6
    assert found["gradient of latents"].dtype is torch.bfloat16
    assert relative_error(found["gradient of latents"], expected["gradient of latents"]) < 2**-8


@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-10, 1e15, 1e25])
def test_silent_and_loud_latents_have_the_gradients_of_the_reference(level: float) -> None:
    values = cases.at(cases.inputs(), torch.float32)
    values["latents"] = (values["latents"].detach() * level).requires_grad_()
    found, expected = cases.results(CPU.stage_loss, values), cases.results(stage_loss, values)
    for name, value in found.items():
        assert value.isfinite().all(), name
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-6 * float(expected[name].abs().max())), name


def test_without_cosine_weights_no_latents_are_read() -> None:
    values = cases.at(cases.inputs(), torch.float32) | {"latents": None}
    with mock.patch.object(Cosines, "apply", side_effect=AssertionError):
        loss, stats = CPU.stage_loss(**values, weights=LossWeights(0.0, -1.0, 0.05))  # type: ignore[arg-type]
    assert loss.isfinite() and not stats[-2:].any()


def test_the_compiled_module_checks_what_it_is_given() -> None:
    assert MODULE is not None
    sums: Any = MODULE.cpu_cosine_sums
    with pytest.raises(ValueError, match="mask must have shape"):
        sums("", torch.ones(2, 3, 4, 5), torch.ones(2, 4), 0, 1)
    with pytest.raises(ValueError, match="carried"):
        sums("", torch.ones(2, 3, 4, 5), torch.ones(2, 3), 2, 1)
    with pytest.raises(ValueError, match="empty"):
        sums("", torch.ones(0, 3, 4, 5), torch.ones(0, 3), 0, 1)
    with pytest.raises(ValueError, match="32 instruments"):
        sums("", torch.ones(2, 33, 4, 5), torch.ones(2, 33), 0, 1)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        sums("", torch.ones(2, 3, 4, 5).double(), torch.ones(2, 3), 0, 1)
