"""From a cache and settings to a run: new, continued, or started from a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..backends import Choice, Request, resolve
from ..config import MetaTasNetConfig
from ..errors import CheckpointError, ConfigError, TrainingError
from ..model import MultiTasNet
from ..model.checkpoints import Checkpoint, config_of
from ..precision import Precision
from ..separation.devices import choose_device
from .average import WeightAverage
from .data import BatchSource, Cache
from .display import Display, Silence
from .distributed import World
from .folder import claim, notes_of, settings_of, write_settings
from .ranger import Ranger
from .saving import Progress, RunState, read_checkpoint
from .settings import TrainingSettings, split_settings
from .trainer import BEST, LAST, Trainer
from .validation import validation_tracks

__all__ = ["Plan", "Runtime", "plan_run", "train"]

CHANGEABLE = ("dropout", "similarity_loss_weight", "dissimilarity_loss_weight", "reconstruction_loss_weight")
"""Settings of the network that do not change its parameters."""


@dataclass(frozen=True)
class Plan:
    """What a run is to be."""

    config: MetaTasNetConfig
    settings: TrainingSettings
    checkpoint: Checkpoint | None = None
    """What it goes on from."""
    origin: Path | None = None
    """Where that was read."""
    started_from: Path | None = None
    """The checkpoint that the run was started from, also when it goes on from its own."""
    changes: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    """Settings that differ from those that the run or checkpoint had, and the cache: before and now."""
    resumed: bool = False
    """Whether the run goes on, instead of starting."""


@dataclass(frozen=True)
class Runtime:
    """What a run computes on."""

    device: torch.device
    backend: str
    precision: Precision
    world: World

    @classmethod
    def of(cls, settings: TrainingSettings, network: MultiTasNet, world: World) -> Runtime:
        """Choose device, precision and backend.

        Raises:
            ConfigError: for an unknown device or dtype.
            BackendUnavailableError: for a device that is absent, or a backend that cannot train on it.
        """
        wanted = settings.device
        if world.size > 1 and (wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())):
            wanted = f"cuda:{world.local_rank}"
        device = choose_device(wanted, network)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        precision = Precision.default(device) if settings.dtype == "auto" else Precision.parse(settings.dtype)
        Choice.parse(settings.backend, precision.value)
        backend = resolve(settings.backend, Request(device, precision, True, network.config)).name
        return cls(device, backend, precision, world)

    def describe(self) -> str:
        processes = f", {self.world.size} processes" if self.world.size > 1 else ""
        return f"backend {self.backend}, device {self.device}, {self.precision.value}{processes}"


def plan_run(
    out: Path, given: Mapping[str, Any], checkpoint: Path | None = None, cache: str | Path | None = None
) -> Plan:
    """Decide what ``out`` will hold: a run that is there goes on; else one starts, from ``checkpoint`` if there is one.

    Args:
        given: settings by name that the user gave; all others come from the run, from the checkpoint, or are the defaults.
        checkpoint: what to start from. A run that was started from it goes on from its own state.
        cache: what is to be trained on, to be compared with what the run was trained on.

    Raises:
        ConfigError: for settings that do not fit.
        CheckpointError: if a checkpoint cannot be read.
        TrainingError: if there is a run that was not started from ``checkpoint``, or whose settings cannot be read.
    """
    network, training = split_settings(given)
    changes: dict[str, tuple[Any, Any]] = {}
    resumed = (out / LAST).exists()
    if resumed:
        origin, notes = out / LAST, notes_of(out)
        started_from = Path(notes["checkpoint"]) if isinstance(notes.get("checkpoint"), str) else None
        if checkpoint is not None and (started_from is None or checkpoint.resolve() != started_from):
            raise TrainingError(f"{out} holds a run already: leave --checkpoint out to go on, or choose another --out.")
        trained_on = notes.get("cache")
        if cache is not None and isinstance(trained_on, str) and Path(trained_on).resolve() != Path(cache).resolve():
            changes["cache"] = trained_on, str(Path(cache).resolve())
        before = settings_of(out, origin)
        found = _last_state(out)
    elif checkpoint is not None:
        origin, started_from = checkpoint, checkpoint.resolve()
        found = read_checkpoint(checkpoint)
        before = _settings_of(found, checkpoint)
    else:
        return Plan(MetaTasNetConfig.from_dict(network), TrainingSettings(**training))
    fixed = [name for name, value in network.items() if name not in CHANGEABLE and before[0].get(name) != value]
    if fixed:
        was = ", ".join(f"{name}={before[0].get(name)}" for name in fixed)
        raise ConfigError(f"The network in {origin} has {was}: leave {', '.join(fixed)} out, or start a new run.")
    known = {**before[0], **before[1]}
    for name, value in given.items():
        # Checkpoints do not tell all settings: what was not known is not changed.
        if (resumed or name in known) and known.get(name) != value:
            changes[name] = known.get(name), value
    return Plan(
        MetaTasNetConfig.from_dict({**before[0], **network}),
        TrainingSettings(**{**before[1], **training}),
        found,
        origin,
        started_from,
        changes,
        resumed,
    )


def _last_state(out: Path) -> Checkpoint:
    """The state that a run goes on from."""
    try:
        return read_checkpoint(out / LAST)
    except CheckpointError as error:
        best = out / BEST
        use = (
            f"start another run from the best state with --checkpoint {best} and a new --out, or "
            if best.exists()
            else ""
        )
        raise CheckpointError(
            f"The run in {out} cannot go on, because its {LAST} is damaged: {use}move {out / LAST} away to start anew."
        ) from error


def _settings_of(checkpoint: Checkpoint, origin: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the network, and those of the training that the authors' arguments hold."""
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    training = {name: value for name, value in vars(checkpoint.args).items() if name in names and value is not None}
    return config_of(checkpoint, origin).to_dict(), training


def train(
    cache_path: str | Path,
    out: Path,
    plan: Plan,
    *,
    tensorboard: bool = False,
    display: Display | None = None,
    command: str = "",
) -> int | None:
    """Carry out a plan.

    Args:
        cache_path: what ``metatasnet-fast prepare`` made.
        out: the run's folder; it is made.
        tensorboard: also write TensorBoard's files.
        display: shows the run.
        command: what was typed, to be stored with the run.

    Returns:
        the signal that interrupted the run, after its state was saved; None at the end.

    Raises:
        MetaTasNetError: if it cannot be carried out.
    """
    world, display = World.from_environment(), display or Silence()
    config, settings = plan.config, plan.settings
    cache = Cache.open(cache_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = MultiTasNet(config)
    runtime = Runtime.of(settings, network, world)
    network.to(runtime.device)
    share = world.share(settings.batch_size)
    batches = _batches(cache, config, settings, runtime, world)
    tracks = validation_tracks(cache.tracks("valid"), config) if settings.validate_every else []
    with contextlib.ExitStack() as stack:
        if world.first:
            stack.enter_context(claim(out, display.note))
            display.note(f"{runtime.describe()}; {share} items a process, {settings.workers} workers")
            write_settings(out, _description(plan, runtime, cache_path, command))
        stack.enter_context(world.joined(runtime.device))
        if plan.checkpoint is None and world.first:
            display.note(f"computing the statistics of the spectrograms from {settings.stats_items} items")
            network.compute_stats(_mixtures(_batches(cache, config, settings, runtime, World()), settings.stats_items))
        world.take_over(list(network.state_dict().values()))
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = Ranger(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        average = None if settings.ema is None else WeightAverage(network, settings.ema)
        state = RunState(network, optimizer, average)
        if plan.checkpoint is not None:
            assert plan.origin is not None
            state.load(plan.checkpoint, plan.origin)
            if not plan.resumed:  # clock and scores belong to the run that the checkpoint is of
                state.progress = Progress(step=state.progress.step)
            for group in optimizer.param_groups:
                group["weight_decay"] = settings.weight_decay
        return Trainer(
            state,
            settings,
            batches,
            tracks,
            out,
            settings.to_namespace(config, str(cache_path), str(out)),
            backend=runtime.backend,
            precision=runtime.precision,
            world=world,
            tensorboard=tensorboard,
            display=display if world.first else None,
        ).run()


def _batches(
    cache: Cache, config: MetaTasNetConfig, settings: TrainingSettings, runtime: Runtime, world: World
) -> BatchSource:
    return BatchSource(
        cache,
        config,
        items=settings.batch_size,
        seconds=settings.time_length,
        seed=settings.seed,
        augmentation=settings.augmentation,
        shuffle_p=settings.shuffle_p,
        device=runtime.device,
        rank=world.rank,
        world=world.size,
        workers=settings.workers,
    )


def _mixtures(batches: BatchSource, items: int) -> Iterator[tuple[list[Tensor]]]:
    """Mixtures of about ``items`` items."""
    for number in range(-(-items // batches.items)):
        yield (batches.batch(number).mixes(),)


def _description(plan: Plan, runtime: Runtime, cache: str | Path, command: str) -> dict[str, Any]:
    """What ``settings.json`` holds."""
    cuda = runtime.device.type == "cuda"
    return {
        "network": plan.config.to_dict(),
        "training": plan.settings.to_dict(),
        "run": {
            "cache": str(Path(cache).resolve()),
            "checkpoint": None if plan.started_from is None else str(plan.started_from),
            "command": command,
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": str(runtime.device),
            "device_name": torch.cuda.get_device_name(runtime.device) if cuda else platform.machine(),
            "backend": runtime.backend,
            "precision": runtime.precision.value,
            "processes": runtime.world.size,
            "versions": {
                "metatasnet-fast": __version__,
                "torch": torch.__version__,
                "python": sys.version.split()[0],
            },
        },
    }
