"""The library's own checkpoint folder: ``model.safetensors`` and ``config.json``, and optionally ``optimizer.safetensors``.

``config.json`` holds the network's settings, the other arguments it was trained with, and the SHA-256 of the weights.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from .._io import describe_os_error, sha256_file
from ..config import MetaTasNetConfig
from ..errors import CheckpointError, ConfigError
from .checkpoints import Checkpoint, config_of

__all__ = ["check_sha256", "read_folder", "write_folder"]

WEIGHTS = "model.safetensors"
SETTINGS = "config.json"
OPTIMIZER = "optimizer.safetensors"
FORMAT_VERSION = 1
FIXED = ("window", "mean", "std")
"""Weights kept in float32 when the rest is stored in half precision."""


def read_folder(folder: str | os.PathLike[str], sha256: str | None = None) -> Checkpoint:
    """Read a checkpoint folder and verify the checksum of its weights.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
        sha256: the checksum the weights must have; by default the one in ``config.json``.

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
    """Write a checkpoint folder; it appears whole, or the one that was there stays.

    Args:
        half: store the learned weights in float16. Reading gives float32 again.

    Raises:
        CheckpointError: if it cannot be written, or an argument cannot be kept as JSON.
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
    """Return the tensors under ``index.name``, and the rest as JSON."""
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
    """Raise :class:`CheckpointError` if the checksum of the file differs."""
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
