"""Samples, spreads, memory, inputs: the parts that numbers are made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metatasnet_fast import MetaTasNetConfig, native
from metatasnet_fast.backends.cpu import give_back_memory
from metatasnet_fast.benchmark import Participants, synthetic
from metatasnet_fast.benchmark.cases import GRADIENTS
from metatasnet_fast.benchmark.machine import HostTimer, Spread, peak_memory, resident
from metatasnet_fast.benchmark.measure import NORM, errors_of, limit, relative_error, verdict
from metatasnet_fast.benchmark.suite import TINY
from metatasnet_fast.benchmark.synthetic import varied
from metatasnet_fast.benchmark.workloads import inference_case
from metatasnet_fast.precision import Precision
from tests.support import recipe_state

CPU = torch.device("cpu")


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_a_spread_is_in_order_and_within_the_samples(samples: list[float]) -> None:
    spread = Spread.of(samples)
    slack = 1e-12 * max(samples)
    assert (
        min(samples) - slack
        <= spread.p20
        <= spread.median + slack
        <= spread.p80 + 2 * slack
        <= max(samples) + 3 * slack
    )
    assert spread.count == len(samples)


def test_no_samples_have_no_spread() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Spread.of([])


def test_the_host_timer_returns_what_was_computed() -> None:
    seconds, value = HostTimer()(lambda: 42)
    assert value == 42 and 0 <= seconds < 1


def test_peak_memory_sees_what_is_freed_before_the_call_ends() -> None:
    size, method = peak_memory(lambda: torch.ones(16 << 20).sum(), CPU)
    assert size is not None and method
    assert 60 << 20 <= size <= 100 << 20


@pytest.mark.skipif(native.load() is None, reason=str(native.reason()))
def test_the_backend_cpu_gives_back_the_memory_that_it_keeps() -> None:
    case = inference_case(
        synthetic.network(TINY), Participants(CPU, (Precision.float32,), ["cpu"], compiled=False), 1, 60.0
    )
    (implementation,) = (each for each in case.implementations if each.name == "cpu")
    call = implementation.make()
    call()
    before = resident("VmRSS")
    give_back_memory()
    assert before - resident("VmRSS") > 50 << 20


def test_kept_memory_is_given_back_before_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setitem(peak_memory.__globals__, "give_back_memory", lambda: order.append("given back"))
    peak_memory(lambda: order.append("called"), CPU)
    assert order == ["given back", "called"]


def test_no_two_rounds_get_the_same_inputs() -> None:
    draw = varied([torch.randn(2, 1, 1000)], [1])
    values = [draw(number)[0] for number in range(40)]
    for i, a in enumerate(values):
        assert all(relative_error([a], [b]) > 0.1 for b in values[:i])


def test_rates_of_one_recording_stay_together() -> None:
    draw = varied([torch.arange(1.0, 101), torch.arange(1.0, 101).repeat_interleave(2)], [1, 2])
    slow, fast = draw(3)
    assert torch.equal(fast[::2], slow)


@pytest.mark.parametrize("change", [{}, {"independent_params": True}, {"residual_bias": True}])
def test_recipe_weights_are_those_of_the_recordings(change: dict[str, bool]) -> None:
    config = MetaTasNetConfig.from_dict({**TINY.to_dict(), **change})
    expected, found = recipe_state(config, 7), synthetic.network(config, 7).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_nan_another_shape_and_a_missing_output_are_infinitely_wrong() -> None:
    right = {"estimate": [torch.ones(3)]}
    for wrong in ({"estimate": [torch.full((3,), float("nan"))]}, {"estimate": [torch.ones(2)]}, {"estimate": []}, {}):
        errors = errors_of(wrong, right, Precision.float32)
        assert errors == {"estimate": float("inf")}
        assert verdict(errors, {"estimate": 1.0}) is not None


@pytest.mark.parametrize(
    ("values", "error"), [([0.0], 1.0), ([4.0], 0.5), ([-2.0], 0.0), ([float("nan")], float("inf"))]
)
def test_of_noisy_gradients_only_the_norm_is_judged(values: list[float], error: float) -> None:
    found = errors_of({GRADIENTS: [torch.tensor(values)]}, {GRADIENTS: [torch.tensor([2.0])]}, Precision.bfloat16)
    assert found == {NORM: error}
    assert (error <= limit(NORM, Precision.bfloat16, 0.0)) is (error < 0.9)


def test_a_broken_eager_cannot_allow_zeros() -> None:
    for precision in Precision:
        for name in ("estimate", GRADIENTS):
            for degenerate in (False, True):
                assert limit(name, precision, 100.0, degenerate) < 1.0
