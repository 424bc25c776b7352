"""Checkpoints of the authors' program, read without running any code in them.

Source: original ``train.py``: a dict with ``state_dict``, ``args``, and in training ``optimizer``, ``epoch``, ``steps``.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._io import describe_os_error, writing
from ..config import MetaTasNetConfig
from ..errors import CheckpointError, ConfigError

__all__ = ["Checkpoint", "load_state", "read_original", "write_original"]


@dataclass
class Checkpoint:
    """A network's weights with what was stored with them.

    ``args`` holds all of the authors' arguments, the training ones too; ``optimizer`` is a torch optimiser's state dict.
    """

    state_dict: dict[str, Tensor]
    args: argparse.Namespace
    optimizer: dict[str, Any] | None = None
    epoch: int | None = None
    steps: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> MetaTasNetConfig:
        return MetaTasNetConfig.from_namespace(self.args)


def read_original(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a ``.pt`` file of the authors' program, in torch's zip container or the one before torch 1.6.

    Only tensors, plain containers and ``argparse.Namespace`` are allowed inside: an untrusted file cannot run code.

    Raises:
        CheckpointError: if the file is missing, damaged, holds anything else, or is not a Meta-TasNet.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}: check the path.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can make the unpickler raise any type
        reason = ": ".join([type(error).__name__, *_reasons(error)[:1]])
        raise CheckpointError(
            f"{path} is no checkpoint that can be loaded safely ({reason}); "
            "it must hold tensors, plain containers and an argparse.Namespace only."
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content or "args" not in content:
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} is no Meta-TasNet checkpoint: it needs state_dict and args, and holds {found}.")
    state = content.pop("state_dict")
    args = content.pop("args")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} is no Meta-TasNet checkpoint: its state_dict does not map names to tensors.")
    if isinstance(args, dict) and not all(isinstance(name, str) for name in args):
        raise CheckpointError(f"{path} is no Meta-TasNet checkpoint: its args do not map names to values.")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return Checkpoint(
        state_dict=dict(state),
        args=argparse.Namespace(**args) if isinstance(args, dict) else args,
        optimizer=content.pop("optimizer", None),
        epoch=content.pop("epoch", None),
        steps=content.pop("steps", None),
        extra=content,
    )


def write_original(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a file that the authors' program reads; it appears whole or not at all, also if the machine fails.

    Raises:
        CheckpointError: if it cannot be written; a full disk is named.
    """
    path = Path(path)
    content: dict[str, Any] = {"state_dict": checkpoint.state_dict, "args": checkpoint.args, **checkpoint.extra}
    for name in ("optimizer", "epoch", "steps"):
        if getattr(checkpoint, name) is not None:
            content[name] = getattr(checkpoint, name)
    try:
        with writing(path) as file:  # torch's writer would not say why it fails if it opened the path itself
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({describe_os_error(error)}): make room, or choose a folder that is writable."
        ) from error


def load_state(network: nn.Module, state: Mapping[str, Tensor], origin: object) -> None:
    """Load weights strictly.

    Raises:
        CheckpointError: for missing, unknown or misshapen weights, or values that are no finite numbers; with their names.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise CheckpointError(
            f"{origin} holds another network: {len(missing)} weights are missing{_examples(missing)} and "
            f"{len(unknown)} are unknown{_examples(unknown)}."
        )
    misshapen = [name for name, value in state.items() if value.shape != expected[name].shape]
    if misshapen:
        name = misshapen[0]
        raise CheckpointError(
            f"{origin} does not fit its own settings: {name} is {tuple(state[name].shape)} instead of "
            f"{tuple(expected[name].shape)}{_examples(misshapen[1:], ', and so')}."
        )
    # A copy would silently round weights to integers, or drop the imaginary part of complex numbers.
    strange = [name for name, value in state.items() if not _is_plain(value)]
    if strange:
        raise CheckpointError(
            f"{origin} holds weights that are no plain floating-point numbers: {strange[0]} is {state[strange[0]].dtype}, "
            f"{state[strange[0]].layout} on {state[strange[0]].device}{_examples(strange[1:], ', and so')}."
        )
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{origin} is damaged: {len(broken)} weights are not finite{_examples(broken)}.")
    network.load_state_dict(dict(state), strict=True)


def _is_plain(value: Tensor) -> bool:
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


def config_of(checkpoint: Checkpoint, origin: object) -> MetaTasNetConfig:
    """Return the checkpoint's settings; raise :class:`CheckpointError` with the file's name if it has no valid ones."""
    try:
        return checkpoint.config
    except ConfigError as error:
        raise CheckpointError(f"{origin} does not describe a Meta-TasNet: {error}") from error


def _examples(names: list[str], lead: str = "") -> str:
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{lead} ({', '.join(names[:2])}{more})"


def _reasons(error: Exception) -> list[str]:
    """Return the lines of an error of torch without its advice to run what is in the file."""
    mark = "WeightsUnpickler error: "
    lines = (line.partition(mark)[2] if mark in line else line for line in str(error).splitlines())
    reasons = (line.strip().partition(" Please ")[0].rstrip(".") for line in lines)
    return [line for line in reasons if line and not re.search("weights_only|torch.load|Weights only", line)]
