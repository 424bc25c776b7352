"""The optimiser and its schedule follow the recorded trajectory, and resume the authors' training."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metatasnet_fast import MultiTasNet
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.model.checkpoints import read_original
from metatasnet_fast.training import SGDR, Ranger
from tests.support import GOLDEN, TINY, golden, relative_error


def trajectory(dtype: torch.dtype) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Steps from 1 with the weights found and recorded; restarts and learning rates are compared on the way."""
    recording = golden("optimizer")
    meta = recording.meta
    start = recording["start"].to(dtype)
    w, b = nn.Parameter(start[:35].view(7, 5).clone()), nn.Parameter(start[35:].clone())
    optimizer = Ranger([w, b], lr=meta["lr"], weight_decay=meta["weight_decay"])
    schedule = SGDR(optimizer, meta["lr"], meta["t_0"], meta["mul"])
    for step, gradient in enumerate(recording["grads"].to(dtype), start=1):
        restart = schedule(step)
        assert restart == bool(recording["resets"][step - 1])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(recording["learning_rates"][step - 1].item(), rel=1e-14)
        w.grad, b.grad = gradient[:35].view(7, 5), gradient[35:]
        optimizer.step()
        yield step, torch.cat([w.detach().flatten(), b.detach()]), recording["trajectory"][step - 1]


def test_sixty_steps_equal_the_recorded_ones_in_float64() -> None:
    # Moments and steps are float32 in the original, too, and the last bit of MKL's square root differs from processor to
    # processor. So one of the 40 weights may be two of float32's units away; the others are equal to 1e-12.
    for step, found, expected in trajectory(torch.float64):
        unit = 2.0 ** (expected.abs().log2().floor() - 23)
        error = (found - expected).abs()
        assert (error <= 2 * unit).all(), step
        equal = error <= 1e-12 * expected.abs()
        assert equal.sum() >= len(expected) - 1, step
        assert relative_error(found[equal], expected[equal]) < 1e-12, step


def test_sixty_steps_equal_the_recorded_ones_in_float32() -> None:
    for step, found, expected in trajectory(torch.float32):
        assert relative_error(found, expected) < 1e-6, step


def test_many_tensors_at_once_are_the_originals_steps_one_by_one() -> None:
    torch.manual_seed(1)
    together = [nn.Parameter(torch.randn(shape)) for shape in ((7, 5), (5,), (33, 17), (1,))]
    slow = [p.detach().clone() for p in together]
    alone = [p.clone() for p in slow]
    first, second = ([torch.zeros_like(p) for p in alone] for _ in range(2))
    optimizer = Ranger(together, lr=1e-2, weight_decay=0.1)
    for step in range(1, 31):
        power, longest = 0.999**step, 2 / (1 - 0.999) - 1
        length = longest - 2 * step * power / (1 - power)
        size = 1 / (1 - 0.95**step)
        if length > 5:
            size *= math.sqrt(
                (1 - power) * (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
            )
        for i, p in enumerate(together):
            gradient = p.grad = torch.randn(p.shape)
            second[i].mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            first[i].mul_(0.95).add_(gradient, alpha=1 - 0.95)
            alone[i].add_(alone[i], alpha=-0.1 * 1e-2)
            if length > 5:
                alone[i].addcdiv_(first[i], second[i].sqrt().add_(1e-5), value=-size * 1e-2)
            else:
                alone[i].add_(first[i], alpha=-size * 1e-2)
            if step % 6 == 0:
                slow[i].add_(alone[i] - slow[i], alpha=0.5)
                alone[i].copy_(slow[i])
        optimizer.step()
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=2e-7, atol=1e-9)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Ranger([used, unused], weight_decay=0.1)
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert unused not in optimizer.state
    assert not torch.equal(used, torch.ones(3))


def test_parameters_with_different_step_counts_do_not_disturb_each_other() -> None:
    def train(together: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        early, late = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        optimizers = [Ranger([early, late])] if together else [Ranger([early]), Ranger([late])]
        for step in range(20):
            early.grad = torch.cos(early.detach() * step)
            late.grad = torch.sin(late.detach() * step) if step >= 5 else None
            for optimizer in optimizers:
                optimizer.step()
        return [early.detach(), late.detach()]

    for a, b in zip(train(True), train(False), strict=True):
        assert torch.equal(a, b)


class Calls(TorchDispatchMode):
    """Operators that touch memory: on a GPU each is a launch, or a few for a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", [2, 6])
def test_a_step_over_all_tensors_of_the_network_is_a_handful_of_operators(step: int) -> None:
    """1,530 tensors at the default depth; the sixth step moves the slow weights too."""
    network = MultiTasNet(dataclasses.replace(TINY, layers=6, stack=3))
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = Ranger(parameters, weight_decay=5e-4)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    for _ in range(step - 1):
        optimizer.step()  # the first makes the state
    with Calls() as calls:
        optimizer.step()
    assert len(parameters) == 1530
    assert len(calls.names) <= 12, calls.names
    assert all(name.startswith("aten._foreach_") for name in calls.names), calls.names


def test_resuming_the_authors_training_goes_on_where_it_stopped() -> None:
    checkpoint = read_original(GOLDEN / "original_checkpoint.pt")
    network = MultiTasNet(checkpoint.args)
    network.load_state_dict(checkpoint.state_dict)
    optimizer = Ranger([p for p in network.parameters() if p.requires_grad], weight_decay=5e-4)
    optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))  # type: ignore[arg-type]
    steps = {state["step"] for state in optimizer.state.values()}
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3) if parameter in optimizer.state else None
    optimizer.step()
    assert {state["step"] for state in optimizer.state.values()} == {s + 1 for s in steps}
    saved = optimizer.state_dict()
    assert checkpoint.optimizer is not None
    assert saved["param_groups"][0].keys() == checkpoint.optimizer["param_groups"][0].keys()
    assert saved["state"][0].keys() == checkpoint.optimizer["state"][0].keys()


def test_bfloat16_parameters_keep_float32_moments() -> None:
    parameter = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    optimizer = Ranger([parameter], lr=0.1)
    for _ in range(12):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32
    assert parameter.isfinite().all() and not torch.equal(parameter, torch.ones_like(parameter))


def test_a_closure_is_evaluated_with_gradients() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = Ranger([parameter])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert not np.allclose(parameter.detach().numpy(), 1.0, atol=1e-9)


@pytest.mark.parametrize("settings", [{"alpha": 1.5}, {"k": 0}, {"lr": 0.0}, {"eps": 0.0}, {"weight_decay": -1.0}])
def test_values_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Ranger([nn.Parameter(torch.ones(1))], **settings)  # type: ignore[arg-type]
