"""Stochastic gradient descent with warm restarts.

Source: Loshchilov & Hutter 2017; original ``utility/sgdr_learning_rate.py``.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from ..errors import ConfigError

__all__ = ["SGDR"]


class SGDR:
    """Anneals by a cosine that restarts every ``period`` steps, each time from ``decay`` times the rate before.

    ``lr = base decay^i (cos(pi x) + 1) / 2``, where ``i`` and ``x`` are the whole and fractional part of ``step / period``.

    Args:
        optimizer: its parameter groups get the rate.
        base: learning rate of the first step of the first period.
        period: steps between restarts.
        decay: factor between restarts.
    """

    def __init__(self, optimizer: Optimizer, base: float, period: int, decay: float = 1.0) -> None:
        if period < 1:
            raise ConfigError(f"The period must be at least one step, got {period}.")
        self.optimizer, self.base, self.period, self.decay = optimizer, base, period, decay

    def value(self, step: int) -> tuple[float, bool]:
        """Return the rate at a step, counted from 1, and whether a period starts there."""
        restarts, x = int(step / self.period), step / self.period - int(step / self.period)
        return 0.5 * self.base * self.decay**restarts * (math.cos(math.pi * x) + 1), x == 0

    def __call__(self, step: int) -> bool:
        """Set the rate of a step; True where a period starts (the authors end the epoch there, without taking the step)."""
        rate, restart = self.value(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return restart
