"""Define Ranger (RAdam with Lookahead, which updates many tensors at once), and SGDR, a learning rate with warm
restarts.

Source: Liu et al. 2020 (RAdam), Zhang et al. 2019 (Lookahead), Loshchilov & Hutter 2017 (SGDR); original ``utility/ranger.py``
and ``utility/sgdr_learning_rate.py``. The state has the original's names and order, so that either program resumes the other's
training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import ConfigError

__all__ = ["SGDR", "Ranger"]


class Ranger(Optimizer):
    """RAdam with Lookahead. Every ``k`` steps, slow weights move towards the weights, and then replace the weights.

    The update of a tensor is, with bias-corrected moments ``m`` and ``v`` and the rectification of RAdam in ``s``::

        p <- p - lr weight_decay p
        p <- p - lr s m / (sqrt(v) + eps)       if the length of the approximated average exceeds ``N_sma_threshhold``
        p <- p - lr s m                         otherwise
        slow <- slow + alpha (p - slow), p <- slow          every k steps

    A parameter without gradient does not change, not even by weight decay. Moments and updates are float32, whatever
    the parameter's dtype, as in the original; the slow weights have the parameter's dtype. Tensors with the same step
    count, device and dtype are updated together, with one call for each operation.

    Args:
        params: parameters, or groups of parameters.
        lr: learning rate.
        alpha: share of the way to the weights by which the slow weights move.
        k: steps between moves of the slow weights.
        N_sma_threshhold: length above which the second moment is used. The spelling is the original's: checkpoints hold
            this name.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: share of a weight that a step subtracts, times the learning rate; it does not enter the moments.

    Raises:
        ConfigError: for a value out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        alpha: float = 0.5,
        k: int = 6,
        N_sma_threshhold: float = 5,  # noqa: N803
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= alpha <= 1 or k < 1 or lr <= 0 or eps <= 0 or weight_decay < 0:
            raise ConfigError(
                "Ranger needs 0 <= alpha <= 1, k >= 1, lr > 0, eps > 0 and weight_decay >= 0, "
                f"got alpha={alpha}, k={k}, lr={lr}, eps={eps}, weight_decay={weight_decay}."
            )
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "k": k,
            "step_counter": 0,
            "betas": betas,
            "N_sma_threshhold": N_sma_threshhold,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; return what ``closure`` returned, or None.

        Args:
            closure: function that evaluates the network and returns the loss; it is called first, with gradients
                enabled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[self._advance(p), p.device, p.dtype].append(p)
            for (step, _, _), tensors in alike.items():
                self._update(tensors, step, group)
        return loss

    def _advance(self, p: Tensor) -> int:
        """Count a step of a parameter and return the count; the first step creates the parameter's state."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.float32, memory_format=torch.preserve_format)
            state["slow_buffer"] = p.detach().clone()
        state["step"] += 1
        return int(state["step"])

    def _update(self, tensors: list[Tensor], step: int, group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        states = [self.state[p] for p in tensors]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        gradients = [p.grad.float() for p in tensors if p.grad is not None]
        weights = [p.detach().float() for p in tensors]
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1 - beta1)
        if group["weight_decay"]:
            torch._foreach_add_(weights, weights, alpha=-group["weight_decay"] * lr)
        size, rectified = _step_size(step, beta1, beta2, group["N_sma_threshhold"])
        if rectified:
            denominators = torch._foreach_sqrt(second)
            torch._foreach_add_(denominators, group["eps"])
            torch._foreach_addcdiv_(weights, first, denominators, -size * lr)
        else:
            torch._foreach_add_(weights, first, alpha=-size * lr)
        if tensors[0].dtype != torch.float32:
            torch._foreach_copy_(tensors, weights)
        if step % group["k"] == 0:
            slow = [s["slow_buffer"] for s in states]
            torch._foreach_lerp_(slow, tensors, group["alpha"])
            torch._foreach_copy_(tensors, slow)


def _step_size(step: int, beta1: float, beta2: float, threshold: float) -> tuple[float, bool]:
    """Return the step size relative to the learning rate, and whether the second moment is used.

    Source: Liu et al. 2020, algorithm 2.
    """
    power = beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * power / (1 - power)
    correction = 1 - beta1**step
    if length <= threshold:
        return 1 / correction, False
    rectification = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
    return math.sqrt((1 - power) * rectification) / correction, True


class SGDR:
    """Cosine schedule of the learning rate that restarts every ``period`` steps, each time ``decay`` times as high.

    ``lr = base decay^i (cos(pi x) + 1) / 2``, where ``i`` and ``x`` are the whole and fractional part of ``step / period``.

    Args:
        optimizer: the optimiser whose parameter groups get the learning rate.
        base: learning rate of the first step of the first period.
        period: steps between restarts.
        decay: factor between restarts.
    """

    def __init__(self, optimizer: Optimizer, base: float, period: int, decay: float = 1.0) -> None:
        if period < 1:
            raise ConfigError(f"The period must be at least one step, got {period}.")
        self.optimizer, self.base, self.period, self.decay = optimizer, base, period, decay

    def value(self, step: int) -> tuple[float, bool]:
        """Return the learning rate at a step, counted from 1, and whether the schedule restarts there."""
        restarts, x = int(step / self.period), step / self.period - int(step / self.period)
        return 0.5 * self.base * self.decay**restarts * (math.cos(math.pi * x) + 1), x == 0

    def __call__(self, step: int) -> bool:
        """Set the learning rate of a step; return True if the schedule restarts there.

        At a restart, the authors' program ends the epoch without a step of the optimiser.
        """
        rate, restart = self.value(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return restart
