"""The folder of a run and its checkpoints. One process writes into it at a time; ``settings.json`` says what the run is.

Checkpoints are files of the authors' format, with everything that an exact continuation needs:

    epoch, state_dict, optimizer, steps, args       as the authors' program writes and reads them
    metatasnet_fast                                 progress of the run; with an average, the weights as they were trained

``state_dict`` holds the weights to be used: the average, if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim

from .._io import claiming, reporting_write_errors, write_atomically
from ..config import MetaTasNetConfig
from ..errors import CheckpointError, ConfigError, TrainingError
from ..model import MultiTasNet
from ..model.checkpoints import Checkpoint, load_state, write_original
from .adding import KeptRows
from .settings import TrainingSettings, read_settings_file, split_settings

__all__ = [
    "Progress", "RunState", "WeightAverage", "claim", "notes_of", "settings_of", "what_was_trained",
    "write_settings",
]  # fmt: skip

SETTINGS = "settings.json"


@contextlib.contextmanager
def claim(out: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Claim the folder of a run; call ``note`` if its file system has no locks.

    Raises:
        TrainingError: if another run is at work there, or nothing can be written.
    """
    busy = f"Another process is training in {out}: wait for it to end, or choose another folder with --out."
    with claiming(out, TrainingError, busy) as locked:
        if not locked:
            note(f"{out} cannot be locked on this file system: make sure that no other run writes there")
        yield


def write_settings(out: Path, content: Mapping[str, Any]) -> None:
    """Write ``network``, ``training`` and ``run``; the file appears whole or stays as it was.

    Raises:
        TrainingError: if it cannot be written.
    """
    with reporting_write_errors(out / SETTINGS, TrainingError):
        write_atomically(out / SETTINGS, json.dumps(content, indent=2) + "\n")


def settings_of(out: Path, state: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a run: those of the network, and those of the training.

    Args:
        state: where the run's state is, for the advice.

    Raises:
        TrainingError: if they are missing or damaged.
    """
    try:
        network, training = split_settings(read_settings_file(out / SETTINGS))
        if not network or not training:
            raise ConfigError(f"{out / SETTINGS} does not describe a run.")
        return MetaTasNetConfig.from_dict(network).to_dict(), TrainingSettings(**training).to_dict()
    except ConfigError as error:
        raise TrainingError(
            f"{out} holds a run whose {SETTINGS} is missing or damaged: start another run from its state with "
            f"--checkpoint {state} and a new --out."
        ) from error


def notes_of(out: Path) -> dict[str, Any]:
    """Return what ``settings.json`` says about a run besides its settings; empty if it cannot be read."""
    try:
        notes = json.loads((out / SETTINGS).read_text("utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return notes if isinstance(notes, dict) else {}


OURS = "metatasnet_fast"


def what_was_trained(checkpoint: Checkpoint) -> str:
    """Return the value of ``unfreeze`` with which a checkpoint was trained; the authors' program trains everything."""
    return str(checkpoint.extra.get(OURS, {}).get("unfreeze", "all"))


@dataclass
class Progress:
    """Position of a run. It holds no state of a random generator, as batches and dropout are functions of seed and step."""

    step: int = 0
    """Steps done."""
    elapsed: float = 0.0
    """Seconds spent on the steps, validation included."""
    validated: int = 0
    """The step of the last validation."""
    best: float | None = None
    """Best score so far."""
    best_step: int = 0
    rule: str | None = None
    """Rule by which the best score was chosen."""


class WeightAverage:
    """``average <- d average + (1 - d) weights`` after every step, with ``d = min(decay, (1 + step) / (10 + step))``.

    The smaller decay of the first steps lets the average forget the random weights it starts from.
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
        """Write a checkpoint; it appears whole, or what was there stays.

        Raises:
            CheckpointError: if it cannot be written, as on a full disk.
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
        """Continue from a checkpoint of a run or of the authors' program; one without optimiser gives only its weights.

        Raises:
            CheckpointError: if it is of another network, or its optimiser of another program.
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
