"""The optimiser and its schedule follow the recorded trajectory, and resume the authors' training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from metatasnet_fast import MultiTasNet
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.model.checkpoints import read_original
from metatasnet_fast.training import SGDR, Ranger
from tests.support import GOLDEN, golden, relative_error


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_sixty_steps_equal_the_recorded_ones(dtype: torch.dtype, limit: float) -> None:
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
        found = torch.cat([w.detach().flatten(), b.detach()])
        assert relative_error(found, recording["trajectory"][step - 1]) < limit, step


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
