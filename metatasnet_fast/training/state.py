"""Save and load the state of a run (network, optimiser, average, progress); add instruments to a trained network.

Checkpoints are files of the authors' format, with everything that an exact continuation needs:

    epoch, state_dict, optimizer, steps, args       as the authors' program writes and reads them
    metatasnet_fast                                 progress of the run; with an average, also the trained weights

``state_dict`` holds the weights to separate with: the average, if there is one.

An added instrument is one more embedding, from which the generator makes the instrument's layers. The masks of the old
instruments stay what they were, bit for bit: their softmax leaves out the new instrument, whose mask is a sigmoid.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim

from ..backends import use_backend
from ..config import MetaTasNetConfig
from ..errors import CheckpointError, ConfigError
from ..model import MultiTasNet
from ..model.checkpoints import Checkpoint, load_state, write_original
from ..precision import Precision
from .data import BatchSource

__all__ = [
    "EMBEDDING", "KeptRows", "Progress", "RunState", "WeightAverage", "add_instrument", "freeze", "start_near_another",
    "what_was_trained",
]  # fmt: skip

OURS = "metatasnet_fast"


def what_was_trained(checkpoint: Checkpoint) -> str:
    """Return the value of ``unfreeze`` with which a checkpoint was trained; the authors' program trains everything."""
    return str(checkpoint.extra.get(OURS, {}).get("unfreeze", "all"))


@dataclass
class Progress:
    """The progress of a run. No state of a random generator is needed: batches and dropout are functions of seed and
    step."""

    step: int = 0
    """Steps done."""
    elapsed: float = 0.0
    """Seconds spent on the steps and on validation."""
    validated: int = 0
    """The step of the last validation."""
    best: float | None = None
    """Best score so far, in dB."""
    best_step: int = 0
    """The step of the best score."""
    rule: str | None = None
    """The rule of the best score, see :meth:`ValidationScore.total`."""


class WeightAverage:
    """Exponential average of a network's weights.

    After every step ``average <- d average + (1 - d) weights``, with ``d = min(decay, (1 + step) / (10 + step))``. In
    the first steps d is smaller, so that the average forgets the random initial weights.
    """

    def __init__(self, network: MultiTasNet, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        """The network with averaged weights."""

    @torch.no_grad()
    def update(self, network: MultiTasNet, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), weight)


class RunState:
    """Everything that changes in the course of a run."""

    def __init__(
        self, network: MultiTasNet, optimizer: optim.Optimizer, average: WeightAverage | None, unfreeze: str = "all"
    ) -> None:
        self.network, self.optimizer, self.average, self.unfreeze = network, optimizer, average, unfreeze
        self.kept_rows: KeptRows | None = None
        """Rows of parameters that no step may change."""
        self.progress = Progress()

    @property
    def usable(self) -> MultiTasNet:
        """The network to validate and to separate with."""
        return self.network if self.average is None else self.average.network

    def write(self, path: Path, args: argparse.Namespace, steps_per_epoch: int) -> None:
        """Write a checkpoint; if that fails, an older file at ``path`` stays as it was.

        Args:
            args: the authors' arguments, stored in the checkpoint.
            steps_per_epoch: number of steps that the authors' program calls an epoch.

        Raises:
            CheckpointError: if the checkpoint cannot be written, as on a full disk.
        """
        ours: dict[str, Any] = {"progress": dataclasses.asdict(self.progress), "unfreeze": self.unfreeze}
        if self.average is not None:
            ours["trained"] = self.network.state_dict()
        checkpoint = Checkpoint(
            state_dict=self.usable.state_dict(),
            args=args,
            optimizer=self.optimizer.state_dict(),
            epoch=self.progress.step // steps_per_epoch,
            steps=self.progress.step,
            extra={OURS: ours},
        )
        write_original(checkpoint, path)

    def load(self, checkpoint: Checkpoint, origin: Path) -> None:
        """Continue from a checkpoint of a run or of the authors' program; if it has no optimiser, load only the
        weights.

        Raises:
            CheckpointError: if the checkpoint is of another network, or its optimiser is not Ranger.
        """
        ours: dict[str, Any] = checkpoint.extra.get(OURS, {})
        trained: dict[str, Tensor] = ours.get("trained", checkpoint.state_dict)
        load_state(self.network, trained, origin)
        if self.average is not None:
            load_state(self.average.network, checkpoint.state_dict, origin)
        if checkpoint.optimizer is None:
            return
        expected = set(self.optimizer.state_dict()["param_groups"][0])
        try:
            found = set(checkpoint.optimizer["param_groups"][0])
            if found != expected:
                raise ValueError(f"its settings are {', '.join(sorted(map(str, found)))}")
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{origin} was not trained with Ranger on this network ({error}): convert it without its optimiser."
            ) from error
        self.progress = Progress(**ours["progress"]) if "progress" in ours else Progress(step=checkpoint.steps or 0)


EMBEDDING = "instrument_embedding.weight"
"""Name of a stage's parameter with the embeddings, one row for each instrument."""


def add_instrument(
    config: MetaTasNetConfig, state: Mapping[str, Tensor], name: str
) -> tuple[MetaTasNetConfig, dict[str, Tensor]]:
    """Extend a network's configuration and weights by an instrument.

    Args:
        config: configuration of the trained network.
        state: weights of the trained network by name.
        name: name of the new instrument, which comes last. In each stage, its embedding is the mean of the others.

    Returns:
        the configuration and weights of the larger network.

    Raises:
        ConfigError: if the network's parameters are not generated, or the name is taken or impossible.
    """
    if config.independent_params:
        raise ConfigError(
            "This network has parameters of its own for each instrument: no embedding can be added to it."
        )
    if name in config.instruments:
        raise ConfigError(f"The network has an instrument {name!r} already: choose another name.")
    larger = dataclasses.replace(
        config, instruments=(*config.instruments, name), added_instruments=config.added_instruments + 1
    )
    extended = dict(state)
    for key, value in state.items():
        if key.endswith(EMBEDDING):
            extended[key] = torch.cat([value, value.mean(0, keepdim=True)])
    return larger, extended


def freeze(network: MultiTasNet, unfreeze: str) -> None:
    """Choose which parameters are trained.

    Args:
        network: the network; ``requires_grad`` of its parameters is changed.
        unfreeze: ``all`` to train every parameter, ``generator`` to train the masking networks' generator and the
            embeddings, ``embedding`` to train the embeddings alone.
    """
    if unfreeze == "all":
        return
    for name, parameter in network.named_parameters():
        trained = name.endswith(EMBEDDING) or (unfreeze == "generator" and ".mask." in name)
        parameter.requires_grad_(trained and parameter.requires_grad)


class KeptRows:
    """Copies of the first rows of some parameters, to write them back after each step.

    Weight decay and the optimiser's averages change every row of a parameter, also rows without a gradient.
    """

    def __init__(self, parameters: list[nn.Parameter], rows: int) -> None:
        self._kept: list[tuple[nn.Parameter, Tensor]] = [(p, p.detach()[:rows].clone()) for p in parameters]

    @classmethod
    def of(cls, network: MultiTasNet, unfreeze: str) -> KeptRows | None:
        """Return an object that keeps the embeddings of a network's old instruments; None unless only the embeddings of
        added instruments are trained."""
        added = network.config.added_instruments
        if unfreeze != "embedding" or not added:
            return None
        return cls(_embeddings(network), len(network.config.instruments) - added)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the kept rows back into their parameters."""
        for parameter, rows in self._kept:
            parameter[: len(rows)].copy_(rows)


@torch.no_grad()
def start_near_another(network: MultiTasNet, batches: BatchSource, precision: Precision, backend: str) -> str:
    """Give the last instrument the embedding of another instrument, the one that separates it best; return the other's
    name.

    The embedding of every other instrument is tried on the first batch. The best embedding gives the last instrument
    the highest SI-SDR in the last stage.
    """
    config, batch = network.config, batches.batch(0)
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    mixes, sources, masks = ([x.to(dtype) for x in values] for values in (batch.mixes, batch.sources, batch.masks()))
    embeddings = _embeddings(network)
    instruments, training = len(config.instruments), network.training
    best, chosen = -math.inf, 0
    network.eval()
    for candidate in range(instruments - 1):
        for embedding in embeddings:
            embedding[-1].copy_(embedding[candidate])
        with use_backend(backend, precision.value):
            _, stats = network(mixes, sources, masks)
        value = float(stats[0, instruments * config.stages_num - 1])
        if value > best:
            best, chosen = value, candidate
    for embedding in embeddings:
        embedding[-1].copy_(embedding[chosen])
    network.train(training)
    return config.instruments[chosen]


def _embeddings(network: MultiTasNet) -> list[nn.Parameter]:
    return [p for name, p in network.named_parameters() if name.endswith(EMBEDDING)]
