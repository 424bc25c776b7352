"""Inputs for the losses and the recorded ones, for the reference arithmetic and for the kernels alike, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from metatasnet_fast import reference
from metatasnet_fast.ops import stage_loss
from metatasnet_fast.reference import LossWeights
from tests.support import Golden, assert_parity, half_a_unit_away, relative_error

WEIGHTS = {"similarity": 2.0, "dissimilarity": 3.0, "reconstruction": 0.05}
LEAVES = ("estimate", "latents", "mix_estimate")
Inputs = dict[str, Tensor]
Loss = Callable[..., tuple[Tensor, Tensor]]


def inputs(
    n: int = 3, instruments: int = 4, carried: int = 0, samples: int = 300, frames: int = 13, channels: int = 24,
    silent: tuple[tuple[int, int], ...] = ((0, 1),), noise: float = 1.0, seed: int = 0,
) -> Inputs:  # fmt: skip
    """Sources and estimates that resemble them, rounded to float32; ``silent`` are (item, instrument)."""
    r = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=r, dtype=torch.float64).float().double()

    target, mask = normal(n, instruments, 1, samples), torch.ones(carried + n, instruments, 1, dtype=torch.float64)
    for item, instrument in silent:
        target[item, instrument] = 0
        mask[carried + item, instrument] = 0
    mix = target.sum(1)
    return {
        "estimate": (target + noise * normal(n, instruments, 1, samples)).float().double(), "target": target,
        "mask": mask,
        "latents": normal(carried + n, instruments, frames, channels),
        "mix_estimate": (mix + noise * normal(n, 1, samples)).float().double(),
        "mix": mix.float().double(),
    }  # fmt: skip


def weights_with(**weights: float) -> LossWeights:
    """The usual weights, some of them changed."""
    return LossWeights(**{**WEIGHTS, **weights})


def at(values: Inputs, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    """Copies in a dtype; what the network made are leaves."""
    copies = {k: v.to(device, dtype, copy=True) for k, v in values.items()}
    return {k: v.requires_grad_() if k in LEAVES else v for k, v in copies.items()}


def results(how: Loss, values: Inputs, **weights: float) -> dict[str, Tensor]:
    """Loss, statistics and the gradients of one and a half times the loss."""
    loss, stats = how(**values, weights=weights_with(**weights))
    found = torch.autograd.grad(loss * 1.5, [values[k] for k in LEAVES], allow_unused=True)
    gradients = {f"gradient of {k}": v for k, v in zip(LEAVES, found, strict=True) if v is not None}
    return {"loss": loss.detach(), "stats": stats.detach(), **gradients}


def check(
    values: Inputs, dtype: torch.dtype, limit: float, device: str = "cpu", how: Loss = stage_loss, **weights: float
) -> None:
    """As close to the reference in float64 as ``limit``, or in float32 three times what float32 cannot tell apart: the larger
    of the reference's own error in it and of what inputs half a unit in the last place away change in float64."""
    exact = at(values, torch.float64)
    expected = results(reference.stage_loss, exact, **weights)
    others = [results(reference.stage_loss, at(values, dtype), **weights)]
    if dtype == torch.float32:
        others += [results(reference.stage_loss, half_a_unit_away(exact, seed), **weights) for seed in range(4)]
    found = results(how, at(values, dtype, device), **weights)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.isfinite().all(), name
        if expected[name].any():
            own = max(relative_error(other[name], expected[name]) for other in others)
            assert_parity(name, value.cpu(), expected[name], max(limit, 3 * own))
        else:
            assert not value.any()


def check_what_cancels(
    values: Inputs, dtype: torch.dtype, limit: float, device: str = "cpu", how: Loss = stage_loss
) -> None:
    """Gradients whose terms may cancel down to rounding errors: an estimate of one sample is a multiple of its target, and an
    item alone is its own neighbour. They are judged by the steepest slope: of the logarithms at their floor of 1e-8, of the
    cosines of the shortest latent."""
    expected = results(reference.stage_loss, at(values, torch.float64))
    found = results(how, at(values, dtype, device))
    steepest = dict.fromkeys(LEAVES, 20 / math.log(10) / math.sqrt(1e-8))
    steepest["latents"] = 5 / float(values["latents"].norm(dim=-1).min())
    for leaf, slope in steepest.items():
        error = (found[f"gradient of {leaf}"].cpu().double() - expected[f"gradient of {leaf}"]).abs().max()
        assert error <= limit * slope, f"{leaf}: error {float(error):.2e}, allowed {limit * slope:.2e}"


def recorded(recording: Golden, dtype: torch.dtype, limit: float, device: str = "cpu", how: Loss = stage_loss) -> None:
    """The recorded losses and gradients; asserts parity."""
    values = at({k: recording[k].double() for k in (*LEAVES, "target", "mask", "mix")}, dtype, device)
    weights = LossWeights(**{k: recording.meta[f"{k}_loss_weight"] for k in WEIGHTS})
    loss, stats = how(**values, weights=weights)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_parity("loss", loss.detach().cpu(), recording["loss"], limit)
    assert_parity("stats", stats.cpu(), recording["stats"], limit)
    for name in LEAVES:
        gradient = values[name].grad
        assert gradient is not None
        assert_parity(f"gradient of {name}", gradient.cpu(), recording[f"grad_{name}"], limit)
