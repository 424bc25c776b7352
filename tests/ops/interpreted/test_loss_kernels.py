"""The numbers of the losses' kernels, forward and backward, on small shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast.ops import stage_loss
from tests.ops import loss_cases as cases
from tests.support import golden

FLOAT32 = 3e-6


def test_losses_equal_the_recorded_ones() -> None:
    cases.recorded(golden("loss"), torch.float32, FLOAT32)


@settings(max_examples=5, deadline=None)
@given(
    n=st.integers(2, 3), instruments=st.integers(1, 6), carried=st.integers(0, 1), samples=st.integers(2, 257),
    frames=st.integers(1, 9), silent=st.sets(st.tuples(st.integers(0, 0), st.integers(0, 5))),
    noise=st.sampled_from([1e-3, 1.0, 30.0]),
)  # fmt: skip
def test_any_length_silence_quality_and_instruments(
    n: int, instruments: int, carried: int, samples: int, frames: int, silent: set[tuple[int, int]], noise: float
) -> None:
    found = tuple((item, i % instruments) for item, i in silent)
    values = cases.inputs(n, instruments, carried, samples, frames, silent=found, noise=noise)
    cases.check(values, torch.float32, FLOAT32)


def test_latents_shorter_than_the_floor_are_divided_by_it() -> None:
    values = cases.inputs(frames=3)
    values["latents"][:, :, ::2] *= 1e-10
    cases.check(values, torch.float32, FLOAT32)


@settings(max_examples=3, deadline=None)
@given(n=st.integers(1, 2), samples=st.integers(1, 2), seed=st.integers(0, 999))
def test_gradients_that_cancel_stay_small(n: int, samples: int, seed: int) -> None:
    cases.check_what_cancels(cases.inputs(n, samples=samples, frames=1, seed=seed), torch.float32, FLOAT32)


def test_sources_as_quiet_as_the_floor() -> None:
    """Energies about 1e-8, where the floor of the projection has a share in every gradient."""
    values = cases.inputs(n=2, samples=100, frames=3, silent=())
    for name in ("estimate", "target", "mix_estimate", "mix"):
        values[name] = (values[name] * 2e-5).float().double()
    cases.check(values, torch.float32, FLOAT32)


def test_more_than_one_tile_of_samples_and_channels() -> None:
    cases.check(cases.inputs(n=2, samples=9000, frames=5, channels=150), torch.float32, FLOAT32)


@pytest.mark.parametrize("off", cases.WEIGHTS)
def test_a_weight_of_zero_switches_its_term_off(off: str) -> None:
    cases.check(cases.inputs(samples=50, frames=5), torch.float32, FLOAT32, **{off: 0.0})


def test_two_bytes_are_rounded_once() -> None:
    rounded = {k: v.bfloat16().double() for k, v in cases.inputs(samples=50, frames=5).items()}
    expected = cases.results(stage_loss, cases.at(rounded, torch.float32))
    found = cases.results(stage_loss, cases.at(rounded, torch.bfloat16))
    for name, value in found.items():
        limit = 4e-3 if "gradient" in name else 1e-6
        assert (value.double() - expected[name]).norm() <= limit * expected[name].norm(), name


def test_silence_everywhere_is_finite() -> None:
    values = {k: torch.zeros_like(v) for k, v in cases.at(cases.inputs(samples=20, frames=3), torch.float32).items()}
    values = {k: v.requires_grad_() if k in cases.LEAVES else v for k, v in values.items()}
    found = cases.results(stage_loss, values)
    assert all(value.isfinite().all() for value in found.values())
    assert not any(value.any() for name, value in found.items() if "gradient" in name)


@pytest.mark.parametrize("layout", ["expanded", "strided", "transposed"])
def test_layout_changes_nothing(layout: str) -> None:
    values = cases.at(cases.inputs(samples=37, frames=6), torch.float32)

    def laid_out(x: torch.Tensor) -> torch.Tensor:
        if layout == "expanded":
            return x[:1].expand_as(x)
        if layout == "strided":
            shape = (2 * x.shape[0], *x.shape[1:-1], x.shape[-1] + 9)
            return torch.full(shape, float("nan"))[::2, ..., 3 : 3 + x.shape[-1]].copy_(x)
        return x.transpose(0, -1).contiguous().transpose(0, -1)

    strange = {k: laid_out(v.detach()).requires_grad_(v.requires_grad) for k, v in values.items()}
    plain = {k: v.detach().contiguous().requires_grad_(v.requires_grad) for k, v in strange.items()}
    found, expected = cases.results(stage_loss, strange), cases.results(stage_loss, plain)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_repetition_changes_nothing() -> None:
    values = cases.at(cases.inputs(samples=50, frames=5), torch.float32)
    first, second = cases.results(stage_loss, values), cases.results(stage_loss, values)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
