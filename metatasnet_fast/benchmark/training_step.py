"""The case of training: one step of the trainer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..backends import Backend, Choice
from ..backends.cache import prepare_all
from ..backends.watch import collect_parameters
from ..model import MultiTasNet
from ..model.engine import Engine
from ..precision import Precision
from ..training import Ranger
from ..training.parts import Items
from ..training.step import GradientStep
from . import roofline
from .cases import Call, Case, Participants, compiled, known
from .parity import GRADIENTS, Outputs
from .synthetic import mixtures, sources, varied
from .workloads import frames_of, implementations_of

__all__ = ["training_case"]

Wrap: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]


def training_case(network: MultiTasNet, participants: Participants, batch: int, seconds: float) -> Case:
    """Return the case of a training step as the trainer does it: forward, losses, backward, clipping of the gradients'
    norm, Ranger.

    The learning rate is 0: all of the arithmetic is done and the weights stay, so every round can be compared.
    """
    config, device = network.config, participants.device
    frames = frames_of(network, seconds)
    stems = [stem.float() for stem in sources(config, batch, frames * config.W, seed=4)]
    base = [*mixtures(stems), *stems]
    inputs = [x.to(device) for x in base]
    count = config.stages_num
    masks = torch.ones(batch, len(config.instruments), 1)

    def gradients(step: GradientStep, values: Sequence[Tensor]) -> Outputs:
        given = step(Items(values[:count], values[count:], [masks.to(values[0])] * count), 0)
        found = [p.grad for p in step.network.parameters() if p.grad is not None]
        # One number may be right by chance, so the loss is checked together with the statistics that it consists of.
        return {"loss and statistics": [torch.tensor([given.loss, *given.stats])], GRADIENTS: found}

    def expected(values: Sequence[Tensor]) -> Outputs:
        wide = copy.deepcopy(network).to(device, torch.float64)
        step = GradientStep(wide, Choice("reference", Precision.float64), recompute=True)
        found = gradients(step, [value.to(device, torch.float64) for value in values])
        return {name: [tensor.cpu() for tensor in tensors] for name, tensors in found.items()}

    def stepping(wrap: Wrap | None, backend: Backend, precision: Precision) -> Call:
        trained = copy.deepcopy(network).to(device)
        optimiser = Ranger(trained.parameters(), weight_decay=5e-4)
        optimiser.param_groups[0]["lr"] = 0.0
        if wrap or not known(backend.name):
            _serve(trained, backend, precision, wrap or (lambda loss: loss))
        step = GradientStep(trained, Choice(backend.name, precision))

        def call() -> Outputs:
            outputs = gradients(step, inputs)
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
        work=lambda precision: roofline.training_step(config, frames, batch, precision.storage.itemsize),
        implementations=implementations_of(
            network,
            participants,
            True,
            functools.partial(stepping, None),
            lambda backend, precision, mode: stepping(lambda loss: compiled(loss, mode), backend, precision),
        ),
    )


def _serve(network: MultiTasNet, backend: Backend, precision: Precision, wrap: Wrap) -> None:
    """Let the network compute its loss by a given function, such as a compiled one or a backend that is not registered."""
    stages = [(network.config.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]

    def loss(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        ready = Engine(network.config, backend, precision, prepare_all(backend, precision, stages))
        return ready.loss(*arguments, **options)

    served = SimpleNamespace(loss=wrap(loss))

    def engine(choice: Choice | None = None, training: bool | None = None) -> Any:
        return served

    network.engine = engine  # type: ignore[method-assign]
