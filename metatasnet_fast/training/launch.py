"""Start a run from a cache and a plan."""

from __future__ import annotations

import contextlib
import datetime
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from .._io import claiming
from ..backends import Choice, Request, resolve
from ..config import MetaTasNetConfig
from ..errors import TrainingError
from ..model import MultiTasNet
from ..precision import Precision
from ..separation.devices import choose_device, reporting_memory
from .codec import check_codec, learn_codec
from .data import BatchSource, Cache
from .data.crops import Variety
from .distributed import World
from .journal import Display
from .optimizer import Ranger
from .plan import Plan, plan_run, refuse_overtaken
from .settings import TrainingSettings, write_settings
from .state import KeptRows, Progress, RunState, WeightAverage, freeze, start_near_another
from .trainer import Trainer
from .validation import validation_tracks

__all__ = ["Plan", "Runtime", "claim", "plan_run", "train"]


@dataclass(frozen=True)
class Runtime:
    """Device, backend and precision of a run."""

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


@contextlib.contextmanager
def claim(out: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Claim the folder of a run; call ``note`` if its file system has no locks.

    Raises:
        TrainingError: if another process is training there, or the folder cannot be written.
    """
    busy = f"Another process is training in {out}: wait for it to end, or choose another folder with --out."
    with claiming(out, TrainingError, busy) as locked:
        if not locked:
            note(f"{out} cannot be locked on this file system: make sure that no other run writes there")
        yield


def train(
    cache_path: str | Path,
    out: Path,
    plan: Plan,
    *,
    tensorboard: bool = False,
    display: Display | None = None,
    command: str = "",
) -> int | None:
    """Train as a plan says.

    Args:
        cache_path: the folder that ``metatasnet-fast prepare`` made.
        out: the run's folder; it is created if it is missing.
        tensorboard: also write TensorBoard's files.
        display: shows the run.
        command: the command line, to be stored with the run.

    Returns:
        the signal that interrupted the run, whose state is saved; None if the training reached its end.

    Raises:
        TrainingError: if another process continued the run since the plan was made, or memory does not suffice.
        MetaTasNetError: if the plan cannot be carried out for another reason.
    """
    world = World.from_environment()
    advice = f"Memory does not suffice for this training: train with {plan.settings.lighter(world.size)}."
    with reporting_memory(lambda: advice, TrainingError):
        return _carry_out(cache_path, out, plan, world, tensorboard, display or Display(), command)


def _carry_out(
    cache_path: str | Path, out: Path, plan: Plan, world: World, tensorboard: bool, display: Display, command: str
) -> int | None:
    config, settings = plan.config, plan.settings
    if settings.codec_steps and plan.checkpoint is None:
        check_codec(config)
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
            refuse_overtaken(out, plan)
            display.note(f"{runtime.describe()}; {share} items a process, {settings.workers} workers")
            write_settings(out, _description(plan, runtime, cache_path, command))
        stack.enter_context(world.joined(runtime.device))
        refuse_overtaken(out, plan)  # every process made its own plan; by now the first one holds the folder
        if plan.checkpoint is None and world.first:
            display.note(f"computing the statistics of the spectrograms from {settings.stats_items} items")
            whole = _batches(cache, config, settings, runtime, World())
            network.compute_stats(_mixtures(whole, settings.stats_items, display))
            if steps := settings.codec_steps:
                display.note(f"teaching encoder and decoder alone for {steps} steps")
                quality = learn_codec(
                    network,
                    whole,
                    steps,
                    settings.backend,
                    runtime.precision,
                    report=lambda done: display.preparing("encoder and decoder", done, steps, "steps"),
                )
                display.note(f"they return tilted mixtures with an SI-SDR of {quality:.1f} dB")
        world.take_over(list(network.state_dict().values()))
        freeze(network, settings.unfreeze)
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = Ranger(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        average = None if settings.ema is None else WeightAverage(network, settings.ema)
        state = RunState(network, optimizer, average, settings.unfreeze)
        if plan.checkpoint is not None:
            assert plan.origin is not None
            state.load(plan.checkpoint, plan.origin)
            if not plan.resumed:  # clock and scores belong to the earlier run that wrote the checkpoint
                # A network with an added instrument is validated before the first step, too.
                state.progress = Progress(step=state.progress.step, validated=-1 if config.added_instruments else 0)
            for group in optimizer.param_groups:
                group["weight_decay"] = settings.weight_decay
            if plan.added is not None:
                nearest = start_near_another(network, batches, runtime.precision, settings.backend)
                if average is not None:
                    average.network.load_state_dict(network.state_dict())
                display.note(f"{plan.added} is added, and starts with the embedding of {nearest}, which fits it best")
        state.kept_rows = KeptRows.of(network, settings.unfreeze)
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
        variety=Variety(settings.speed, settings.balance, settings.level, settings.tone, settings.rests),
        least_share=settings.least_share,
        device=runtime.device,
        rank=world.rank,
        world=world.size,
        workers=settings.workers,
    )


def _mixtures(batches: BatchSource, items: int, display: Display) -> Iterator[tuple[list[Tensor]]]:
    """Yield mixtures of about ``items`` items, and display the progress."""
    count = -(-items // batches.items)
    for number in range(count):
        yield (batches.batch(number).mixes,)
        display.preparing("statistics", (number + 1) * batches.items, count * batches.items, "items")


def _description(plan: Plan, runtime: Runtime, cache: str | Path, command: str) -> dict[str, Any]:
    """Return the content of ``settings.json``."""
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
