"""Read and write checkpoints: files of the authors' program, and folders of this library. Code in a file is never run.

A file holds a dict with ``state_dict`` and ``args``; a training also writes ``optimizer``, ``epoch`` and ``steps``. A
folder holds ``model.safetensors`` and ``config.json``, and optionally ``optimizer.safetensors``. ``config.json`` has
the network's settings, the other arguments of its training, and the SHA-256 of the weights. Source: original
``train.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import require
from .._io import describe_os_error, sha256_file, writing
from ..config import MetaTasNetConfig
from ..errors import CheckpointError, ConfigError

__all__ = [
    "Checkpoint", "check_sha256", "load_state", "read_folder", "read_original", "write_folder", "write_original",
]  # fmt: skip


@dataclass
class Checkpoint:
    """A checkpoint: a network's weights, and what was stored with the weights.

    ``args`` holds all arguments of the authors' program, also those of the training. ``optimizer`` is the state dict of
    a torch optimiser. ``extra`` holds what else is in a file, by name.
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
    """Read a ``.pt`` file of the authors' program, in torch's zip format or in the format before torch 1.6.

    The file may hold only tensors, plain containers and ``argparse.Namespace``: an untrusted file cannot run code.

    Raises:
        CheckpointError: if the file is missing or damaged, holds anything else, or is not a Meta-TasNet.
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
    """Write a file that the authors' program reads. The file appears whole or not at all, even if the power fails.

    Raises:
        CheckpointError: if the file cannot be written; the message names a full disk.
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
    """Load weights into a network, which must have exactly these names and shapes.

    Raises:
        CheckpointError: if weights are missing, unknown or of another shape (the message names them), if they are no
            plain floating-point numbers, or if values are not finite.
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
    strange = [
        name
        for name, value in state.items()
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta
    ]
    if strange:
        raise CheckpointError(
            f"{origin} holds weights that are no plain floating-point numbers: {strange[0]} is {state[strange[0]].dtype}, "
            f"{state[strange[0]].layout} on {state[strange[0]].device}{_examples(strange[1:], ', and so')}."
        )
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{origin} is damaged: {len(broken)} weights are not finite{_examples(broken)}.")
    network.load_state_dict(dict(state), strict=True)


def config_of(checkpoint: Checkpoint, origin: object) -> MetaTasNetConfig:
    """Return the settings of a checkpoint's network. Raise :class:`CheckpointError`, which names the file ``origin``,
    if they are not valid."""
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
    """Return the lines of a torch error, without torch's advice to allow the code in the file."""
    mark = "WeightsUnpickler error: "
    lines = (line.partition(mark)[2] if mark in line else line for line in str(error).splitlines())
    reasons = (line.strip().partition(" Please ")[0].rstrip(".") for line in lines)
    return [line for line in reasons if line and not re.search("weights_only|torch.load|Weights only", line)]


WEIGHTS = "model.safetensors"
SETTINGS = "config.json"
OPTIMIZER = "optimizer.safetensors"
FORMAT_VERSION = 1
FIXED = ("window", "mean", "std")
"""Last parts of the names of weights that stay in float32 when the others are stored in float16."""


def read_folder(folder: str | os.PathLike[str], sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint folder and verify the checksum of its weights.

    Args:
        folder: folder with ``config.json`` and ``model.safetensors``.
        sha256: the SHA-256 that the weights must have; by default the one in ``config.json``.

    Raises:
        CheckpointError: if a file is missing, damaged or of a newer format.
        MissingDependencyError: without safetensors.
    """
    folder = Path(folder)
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no checkpoint folder: it lacks {name}.")
    try:
        settings = json.loads((folder / SETTINGS).read_text("utf-8"))
        version = settings["format_version"]
        newer = version > FORMAT_VERSION
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _no_settings(folder, error) from error
    if newer:
        raise CheckpointError(f"{folder} has format {version}, this library reads up to {FORMAT_VERSION}: upgrade it.")
    try:
        config = MetaTasNetConfig.from_dict(settings["config"])
        training = settings.get("training", {})
        epoch, steps = training.get("epoch"), training.get("steps")
        args = config.to_namespace(**training.get("args", {}))
    except (AttributeError, KeyError, TypeError, ConfigError) as error:
        raise _no_settings(folder, error) from error
    expected = sha256 or settings.get("sha256")
    if expected:
        check_sha256(folder / WEIGHTS, expected)
    optimizer = None
    if (folder / OPTIMIZER).is_file():
        tensors = _load(folder / OPTIMIZER)
        try:
            optimizer = _join_optimizer(tensors, settings["optimizer"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / SETTINGS} does not fit {OPTIMIZER} ({error}): take that file away to go without."
            ) from error
    return Checkpoint(
        state_dict={
            name: value.float() if value.dtype == torch.float16 else value
            for name, value in _load(folder / WEIGHTS).items()
        },
        args=args,
        optimizer=optimizer,
        epoch=epoch,
        steps=steps,
    )


def _no_settings(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder / SETTINGS} does not describe a Meta-TasNet ({error}).")


def write_folder(checkpoint: Checkpoint, folder: str | os.PathLike[str], half: bool = False) -> None:
    """Write a checkpoint folder. All files are written into a temporary folder first, then each is moved into its
    place.

    So an error while files are written leaves an older folder as it was.

    Args:
        half: store the learned weights in float16. When they are read, they become float32 again.

    Raises:
        CheckpointError: if the folder cannot be written, an argument cannot be stored as JSON, or a weight is too large
            for float16.
        MissingDependencyError: without safetensors.
    """
    folder = Path(folder)
    config = config_of(checkpoint, "the checkpoint")
    others = {name: value for name, value in vars(checkpoint.args).items() if name not in config.to_dict()}
    state = {name: _stored(name, value, half) for name, value in checkpoint.state_dict.items()}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    settings: dict[str, Any] = {
        "format": "metatasnet-fast",
        "format_version": FORMAT_VERSION,
        "config": config.to_dict(),
        "training": {"args": others, "epoch": checkpoint.epoch, "steps": checkpoint.steps},
    }
    try:
        temporary.mkdir(parents=True)
        _save(state, temporary / WEIGHTS)
        settings["sha256"] = sha256_file(temporary / WEIGHTS)
        if checkpoint.optimizer is not None:
            tensors, settings["optimizer"] = _split_optimizer(checkpoint.optimizer)
            _save(tensors, temporary / OPTIMIZER)
        (temporary / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        folder.mkdir(exist_ok=True)
        for name in (WEIGHTS, OPTIMIZER, SETTINGS):
            if (temporary / name).exists():
                os.replace(temporary / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except (OSError, TypeError) as error:
        raise CheckpointError(
            f"{folder} cannot be written ({describe_os_error(error)}): make room or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stored(name: str, value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    if not half or name.rsplit(".", 1)[-1] in FIXED:
        return value.clone()
    if value.isfinite().all() and not value.half().isfinite().all():
        raise CheckpointError(f"{name} exceeds the range of half precision: store it in full.")
    return value.half()


def _split_optimizer(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an optimiser's state under the names ``index.name``, and everything else in a form for
    JSON."""
    tensors, scalars = {}, {}
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous().clone()
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, {"scalars": scalars, "param_groups": optimizer["param_groups"]}


def _join_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**rest["scalars"], **tensors}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    # JSON has no tuples; the betas are a tuple in every torch optimiser.
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in rest["param_groups"]]
    return {"state": state, "param_groups": groups}


def check_sha256(path: Path, expected: str) -> None:
    """Raise :class:`CheckpointError` unless the file has the expected SHA-256."""
    digest = sha256_file(path)
    if digest != expected:
        raise CheckpointError(f"{path} is damaged or another file: SHA-256 {digest}, expected {expected}.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _safetensors() -> Any:
    return require("safetensors.torch", "Reading and writing checkpoint folders")


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    _safetensors().save_file(tensors, path)
    path.chmod(0o666 & ~_umask())  # safetensors creates files that only their owner can read


def _load(path: Path) -> dict[str, Tensor]:
    safetensors = _safetensors()
    try:
        loaded: dict[str, Tensor] = safetensors.load_file(path)
    except Exception as error:  # safetensors raises its own type, which cannot be imported without it
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    return loaded
