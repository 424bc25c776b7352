"""The case of training: one step of the authors' recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..backends import Backend
from ..backends.cache import prepare_all
from ..backends.reference import ReferenceBackend
from ..backends.watch import collect_parameters
from ..model import MultiTasNet
from ..model.engine import Engine
from ..precision import Precision
from ..training import Ranger
from . import costs
from .cases import Call, Case
from .contenders import Entrants, compiled
from .draws import varied
from .parity import GRADIENTS, Outputs
from .recipe import mixtures, sources
from .workloads import contenders_of, frames_of

__all__ = ["training_case"]

CLIP = 5.0
"""Norm that the authors clip gradients to."""


class Recomputing(ReferenceBackend):
    """Plain PyTorch that keeps nothing between forward and backward but the jobs' outputs, to fit float64 into memory."""

    def encode(self, prepared: Any, signal: Tensor) -> Tensor:
        return _recomputed(super().encode, prepared, signal)

    def mask(self, prepared: Any, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None) -> Tensor:
        return _recomputed(super().mask, prepared, latent, partial, dropout)

    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        return _recomputed(super().decode, prepared, latent)


def _recomputed(job: Callable[..., Tensor], *arguments: Any) -> Tensor:
    result: Tensor = checkpoint(job, *arguments, use_reentrant=False)
    return result


def training_case(network: MultiTasNet, entrants: Entrants, batch: int, seconds: float) -> Case:
    """A training step: forward, losses, backward, clipping to norm 5, Ranger.

    The learning rate is 0: all of the arithmetic is done and the weights stay, so every round can be compared.
    """
    config, device = network.config, entrants.device
    frames = frames_of(network, seconds)
    stems = [stem.float() for stem in sources(config, batch, frames * config.W, seed=4)]
    base = [*mixtures(stems), *stems]
    inputs = [x.to(device) for x in base]
    count = config.stages_num
    sounds = [torch.ones(batch, 4, 1) for _ in range(count)]

    def step(trained: MultiTasNet, forward: Callable[..., tuple[Tensor, Tensor]], values: Sequence[Tensor]) -> Outputs:
        trained.zero_grad(set_to_none=True)
        masks = [mask.to(values[0].device, values[0].dtype) for mask in sounds]
        loss, stats = forward(values[:count], values[count:], masks)
        loss.sum().backward()
        nn.utils.clip_grad_norm_(trained.parameters(), CLIP)
        gradients = [p.grad for p in trained.parameters() if p.grad is not None]
        # One number may be right by luck: the loss is judged together with the statistics that it is made of.
        return {"loss and statistics": [loss.detach(), stats.detach()], GRADIENTS: gradients}

    def expected(values: Sequence[Tensor]) -> Outputs:
        double = copy.deepcopy(network).to(device, torch.float64)
        forward = _forward(double, Recomputing(), Precision.float64)
        found = step(double, forward, [value.to(device, torch.float64) for value in values])
        return {name: [tensor.cpu() for tensor in tensors] for name, tensors in found.items()}

    def stepping(backend: Backend, precision: Precision, compile_it: bool) -> Call:
        trained = copy.deepcopy(network).to(device)
        optimiser = Ranger(trained.parameters(), weight_decay=5e-4)
        optimiser.param_groups[0]["lr"] = 0.0
        forward = _forward(trained, backend, precision)
        forward = compiled(forward) if compile_it else forward

        def call() -> Outputs:
            outputs = step(trained, forward, inputs)
            optimiser.step()
            return outputs

        return call

    duration = frames * config.W / config.sampling_rate
    return Case(
        name=f"training step {batch}x{duration:g}s",
        job="training step",
        sizes={"batch": batch, "seconds": duration, "frames": frames, "stages": count},
        audio_seconds=batch * duration,
        inputs=inputs,
        draw=varied(base, [2**s for s in range(count)] * 2),
        expected=expected,
        work=lambda precision: costs.training_step(config, frames, batch, precision.storage.itemsize),
        contenders=contenders_of(
            network,
            entrants,
            True,
            lambda backend, precision: stepping(backend, precision, False),
            lambda backend, precision: stepping(backend, precision, True),
        ),
    )


def _forward(
    network: MultiTasNet, backend: Backend, precision: Precision
) -> Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]:
    config = network.config
    stages = [(config.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]

    def forward(mixes: Sequence[Tensor], stems: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        ready = Engine(config, backend, precision, prepare_all(backend, precision, stages))
        return ready.loss(mixes, stems, masks)

    return forward
