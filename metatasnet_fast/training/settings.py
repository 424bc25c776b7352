"""Define the settings of a training run: the authors' hyperparameters under the authors' names, and this library's own.

Source: the argument parser of the authors' ``train.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._extras import require
from .._io import reporting_write_errors, write_atomically
from ..config import MetaTasNetConfig
from ..errors import ConfigError, TrainingError

__all__ = ["TrainingSettings", "notes_of", "read_settings_file", "settings_of", "split_settings", "write_settings"]

EPOCH_SECONDS = 40 * 3000
"""Seconds of audio that the authors call an epoch."""

AUGMENTATIONS = ("same", "original", "none")
FILE = "settings.json"
"""Name of the file in a run's folder that describes the run."""

UNFREEZE = ("all", "generator", "embedding")
BEST_RULES = ("all", "original")


def _setting(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of training; the defaults are the authors'.

    Raises:
        ConfigError: for a value that cannot be trained with.
    """

    batch_size: int = _setting(12, "items in a batch, over all processes together")
    time_length: float = _setting(8.0, "seconds of an item")
    epochs: int = _setting(250, "length of the training; an epoch is 120,000 s of audio")
    learning_rate: float = _setting(1e-3, "of the first step")
    weight_decay: float = _setting(5e-4, "decoupled from the gradient")
    clip_gradient: float = _setting(5.0, "global norm that gradients are cut down to")
    sgdr_period: int = _setting(200_000, "steps between warm restarts of the learning rate")
    sgdr_decay: float = _setting(0.85, "factor between the learning rates of two restarts")
    shuffle_p: float = _setting(0.5, "part of the batch whose stems come from several tracks")
    seed: int = _setting(42, "of the weights, the batches and the dropout")
    threads: int = _setting(10, "workers that prepare batches; at most the number of cores is used")
    steps: int | None = _setting(None, "length of the training in steps, instead of --epochs")
    minutes: float | None = _setting(
        None, "end this long after the first step began; the learning rate falls to 0 over it instead of SGDR's"
    )
    augmentation: str = _setting("same", "same at every rate, original (drawn per rate), or none")
    speed: float = _setting(
        0.0, "largest relative change of an item's speed, pitch and tempo together: 0.1 for 0.91 to 1.1"
    )
    balance: float = _setting(0.0, "standard deviation in dB of each stem's level in an item")
    level: float = _setting(0.0, "largest change in dB of an item's level")
    tone: float = _setting(0.0, "standard deviation in dB of the filters through which half of the stems go")
    rests: float = _setting(0.0, "probability that a stem rests, or is quieter, in a part of an item")
    least_share: float = _setting(0.0, "share of an item's energy that a stem, and the others together, need to count")
    codec_steps: int = _setting(
        0, "steps that teach encoder and decoder alone first, which then begin as filters in pairs of either sign"
    )
    unfreeze: str = _setting(
        "all", "what is trained: all, generator (the masking networks'), or embedding (of added instruments)"
    )
    micro_batch: int | None = _setting(None, "items computed at once, to save memory; the result stays exact")
    recompute: bool = _setting(False, "keep less between forward and backward, and compute it twice")
    ema: float | None = _setting(None, "validate and keep an exponential average of the weights with this decay")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:1")
    backend: str = _setting("auto", "auto, or a name that `info` lists")
    dtype: str = _setting("auto", "auto, float64, float32, tf32 or bfloat16")
    validate_every: int = _setting(1250, "steps between validations, 0 for none")
    best: str = _setting("all", "what the best checkpoint is judged by: all, or original (see docs/training.md)")
    save_every: int = _setting(500, "steps between checkpoints")
    log_every: int = _setting(50, "steps that a line of the log is the mean of")
    stats_items: int = _setting(5000, "training items that the spectrograms' statistics are computed from")
    max_loss: float | None = _setting(
        None, "stop when the loss exceeds it, none for 250/3 an instrument and stage; an estimate at -80 dB costs 80"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind = str(field.type).removesuffix(" | None")
            if value is None and kind != field.type:
                continue
            expected = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind]
            if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
                raise ConfigError(f"{field.name} must be of type {kind}, got {value!r}.")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{field.name} must be finite, got {value!r}.")
        counts = ("batch_size", "epochs", "sgdr_period", "threads", "steps", "micro_batch", "save_every", "log_every")
        least = dict.fromkeys((*counts, "stats_items"), 1)
        least |= dict.fromkeys(("validate_every", "weight_decay", "seed", "codec_steps"), 0)
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} must be at least {lowest}, got {value}.")
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be less than 2^63, got {self.seed}.")
        for name in ("time_length", "learning_rate", "clip_gradient", "sgdr_decay", "minutes", "max_loss"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be positive, got {value}.")
        for name in ("shuffle_p", "rests"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        for name, limit in (("speed", 1.0), ("least_share", 0.5), ("balance", 60.0), ("level", 60.0), ("tone", 60.0)):
            if not 0 <= getattr(self, name) < limit:
                raise ConfigError(f"{name} must lie between 0 and {limit:g}, got {getattr(self, name)}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema must lie between 0 and 1, such as 0.999, got {self.ema}.")
        for name, choices in (("augmentation", AUGMENTATIONS), ("best", BEST_RULES), ("unfreeze", UNFREEZE)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.dtype == "float16":
            raise ConfigError("Training in float16 would need loss scaling: choose bfloat16 or float32.")

    @property
    def steps_per_epoch(self) -> int:
        return max(1, int(EPOCH_SECONDS // self.time_length) // self.batch_size)

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole training; None if only the clock ends it."""
        if self.steps is not None:
            return self.steps
        return None if self.minutes is not None else self.epochs * self.steps_per_epoch

    @property
    def workers(self) -> int:
        return min(self.threads, os.cpu_count() or 1)

    def lighter(self, processes: int) -> str:
        """Return options that save memory in a step without changing its result, joined by ``or``.

        If all of these are in use, return ``a shorter --time_length``, which does change the result.

        Args:
            processes: number of processes that share a batch.
        """
        share = self.batch_size // processes
        at_once = min(self.micro_batch or share, share)
        flags = [f"--micro_batch {at_once // 2}"] if at_once > 1 else []
        flags += [] if self.recompute else ["--recompute"]
        return " or ".join(flags) or "a shorter --time_length"

    def largest_loss(self, config: MetaTasNetConfig) -> float:
        """Return the loss above which training stops: ``max_loss``, or 250/3 for each instrument and stage."""
        if self.max_loss is not None:
            return self.max_loss
        return 1000 * len(config.instruments) * config.stages_num / 12

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_namespace(self, config: MetaTasNetConfig, cache: str, directory: str) -> argparse.Namespace:
        """Return all arguments of the authors' program, for a checkpoint from which that program can resume.

        Args:
            cache: path of the training data.
            directory: path of the run.
        """
        names = (
            "batch_size",
            "clip_gradient",
            "epochs",
            "learning_rate",
            "seed",
            "sgdr_period",
            "shuffle_p",
            "threads",
        )
        length = int(self.time_length) if self.time_length == int(self.time_length) else self.time_length
        return config.to_namespace(
            **{name: getattr(self, name) for name in (*names, "weight_decay")},
            time_length=length,
            base_directory=".",
            directory=directory,
            train_data=cache,
            validation_data=cache,
            checkpoint=None,
            debug=False,
        )


def split_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide settings by name into those of the network and those of the training, and return both.

    Raises:
        ConfigError: for an unknown name.
    """
    network_names = {field.name for field in dataclasses.fields(MetaTasNetConfig)}
    training_names = {field.name for field in dataclasses.fields(TrainingSettings)}
    unknown = sorted(set(values) - network_names - training_names)
    if unknown:
        raise ConfigError(
            f"Unknown settings {', '.join(unknown)}; known are {', '.join(sorted(network_names | training_names))}."
        )
    network = {name: value for name, value in values.items() if name in network_names}
    return network, {name: value for name, value in values.items() if name in training_names}


def read_settings_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read settings by name from a JSON or TOML file.

    Settings stand at the top level, or under ``network`` and ``training`` as in the ``settings.json`` of a run.

    Raises:
        ConfigError: if the file cannot be read, is neither JSON nor TOML, or does not hold settings by name.
        MissingDependencyError: for TOML before Python 3.11 without tomli.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        values = _parse_toml(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as settings ({error}): give a JSON or TOML file.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold an object with settings by name, got {type(values).__name__}.")
    values.pop("run", None)  # a run's notes about itself are no settings
    for section in ("network", "training"):
        found = values.pop(section, {})
        if not isinstance(found, dict):
            raise ConfigError(f"{section} in {path} must hold settings by name, got {found!r}.")
        values.update(found)
    return values


def _parse_toml(text: str) -> Any:
    module = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    return require(module, "Reading TOML with Python 3.10").loads(text)


def write_settings(out: Path, content: Mapping[str, Any]) -> None:
    """Write ``settings.json`` into the run's folder ``out``; the file appears whole, or stays as it was.

    ``content`` has the keys ``network``, ``training`` and ``run``.

    Raises:
        TrainingError: if the file cannot be written.
    """
    with reporting_write_errors(out / FILE, TrainingError):
        write_atomically(out / FILE, json.dumps(content, indent=2) + "\n")


def settings_of(out: Path, state: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a run: those of the network, and those of the training.

    Args:
        state: path of the run's state, for the advice in the error.

    Raises:
        TrainingError: if the settings are missing or damaged.
    """
    try:
        network, training = split_settings(read_settings_file(out / FILE))
        if not network or not training:
            raise ConfigError(f"{out / FILE} does not describe a run.")
        return MetaTasNetConfig.from_dict(network).to_dict(), TrainingSettings(**training).to_dict()
    except ConfigError as error:
        raise TrainingError(
            f"{out} holds a run whose {FILE} is missing or damaged: start another run from its state with "
            f"--checkpoint {state} and a new --out."
        ) from error


def notes_of(out: Path) -> dict[str, Any]:
    """Return what ``settings.json`` says of a run apart from its settings, under ``run``; {} if this cannot be read."""
    try:
        notes = json.loads((out / FILE).read_text("utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return notes if isinstance(notes, dict) else {}
