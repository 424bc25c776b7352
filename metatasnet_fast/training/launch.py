"""Plan a run (a new one, one that starts from a checkpoint, or one that continues from its own state), and start it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from .._io import claiming
from ..config import EXTENSIONS, MetaTasNetConfig
from ..errors import CheckpointError, ConfigError, TrainingError
from ..model import MultiTasNet
from ..model.checkpoints import Checkpoint, config_of, read_original
from ..model.pretrained import locate, read_checkpoint
from ..separation.devices import reporting_memory
from .codec import check_codec, learn_codec
from .data import BatchSource, Cache
from .data.crops import Variety
from .journal import Display
from .optimizer import Ranger
from .runtime import Runtime, World
from .settings import TrainingSettings, notes_of, settings_of, split_settings, write_settings
from .state import KeptRows, Progress, RunState, WeightAverage, freeze, start_near_another, what_was_trained
from .state import add_instrument as extend
from .trainer import BEST, LAST, Trainer
from .validation import validation_tracks

__all__ = ["Plan", "claim", "plan_run", "refuse_overtaken", "train"]

CHANGEABLE = ("dropout", "similarity_loss_weight", "dissimilarity_loss_weight", "reconstruction_loss_weight")
"""Settings of the network that may differ from those of a checkpoint: they do not change the parameters."""


@dataclass(frozen=True)
class Plan:
    """A plan: the settings of a run, and the checkpoint from which it continues or starts."""

    config: MetaTasNetConfig
    settings: TrainingSettings
    checkpoint: Checkpoint | None = None
    """The checkpoint to load; None for a new network."""
    origin: Path | None = None
    """File of that checkpoint."""
    started_from: Path | None = None
    """The checkpoint that the run was started from, also if the run now continues from its own state."""
    changes: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    """Old and new value of the settings (and the cache) that differ from those of the run or checkpoint, by name."""
    resumed: bool = False
    """True if the run continues from its own state, False if it starts."""
    added: str | None = None
    """An instrument that is added to the checkpoint's network now."""
    seen: tuple[int, int] | None = None
    """Modification time in nanoseconds and size in bytes of the file of the run's own state when the plan was made;
    None if there was no such file."""


def plan_run(
    out: Path,
    given: Mapping[str, Any],
    checkpoint: Path | None = None,
    cache: str | Path | None = None,
    add_instrument: str | None = None,
) -> Plan:
    """Plan the run in ``out``: continue the run that is there, else start a run, from ``checkpoint`` if that is given.

    Args:
        given: settings by name that the user gave. All others come from the run or the checkpoint, or are the defaults.
        checkpoint: checkpoint to start from. A run in ``out`` that was started from it continues from its own state.
        cache: the training data; if the run had other data, this is listed as a change. A new network gets the cache's
            instruments, unless ``given`` names instruments.
        add_instrument: name of an instrument to add to the checkpoint's network; only its embedding is trained, unless
            ``unfreeze`` is given. To continue such a run, this argument is not needed.

    Raises:
        ConfigError: for settings that are not valid, or that do not fit the run or checkpoint.
        CheckpointError: if a checkpoint cannot be read.
        TrainingError: if the run in ``out`` was not started from ``checkpoint``, if its settings cannot be read, or if
            only its best state is left.
    """
    network, training = split_settings(given)
    changes: dict[str, tuple[Any, Any]] = {}
    seen = _stamp(out)  # before the state is read, so that a write in the meantime is noticed
    resumed = seen is not None
    if not resumed and (out / BEST).exists():
        raise TrainingError(
            f"{out} holds a {BEST}, but no {LAST} to go on from: start another run from it with --checkpoint {out / BEST} and "
            "a new --out, or move it away to start again."
        )
    if resumed:
        origin, notes = out / LAST, notes_of(out)
        started_from = Path(notes["checkpoint"]) if isinstance(notes.get("checkpoint"), str) else None
        if checkpoint is not None and not _is_start(checkpoint, started_from):
            raise TrainingError(f"{out} holds a run already: leave --checkpoint out to go on, or choose another --out.")
        trained_on = notes.get("cache")
        if cache is not None and isinstance(trained_on, str) and Path(trained_on).resolve() != Path(cache).resolve():
            changes["cache"] = trained_on, str(Path(cache).resolve())
        before = settings_of(out, origin)
        found = _last_state(out)
    elif checkpoint is not None:
        found, origin = read_checkpoint(checkpoint)
        started_from = origin.resolve()
        before = _settings_of(found, origin)
    else:
        if add_instrument is not None:
            raise ConfigError("An instrument is added to a trained network: name its checkpoint with --checkpoint.")
        if "instruments" not in network and cache is not None:
            network["instruments"] = Cache.open(cache).instruments
        return Plan(MetaTasNetConfig.from_dict(network), TrainingSettings(**training))
    if add_instrument is not None and not resumed:
        config, state = extend(MetaTasNetConfig.from_dict(before[0]), found.state_dict, add_instrument)
        before = config.to_dict(), {"unfreeze": "embedding"}
        found = dataclasses.replace(found, state_dict=state, optimizer=None, epoch=None, steps=None, extra={})
    elif training.get("unfreeze", before[1]["unfreeze"]) != before[1]["unfreeze"]:
        if resumed:
            raise ConfigError(
                f"{out} holds a run that trains the parameters of --unfreeze {before[1]['unfreeze']}: to train others, start "
                f"another run with --from {out / LAST} and a new --out."
            )
        # The optimiser's averages and steps belong to other parameters.
        found = dataclasses.replace(found, optimizer=None, epoch=None, steps=None, extra={})
    if add_instrument is not None and resumed and add_instrument not in before[0].get("instruments", ()):
        raise ConfigError(f"{out} holds a run without {add_instrument}: choose another --out.")
    network = {name: list(value) if isinstance(value, tuple) else value for name, value in network.items()}
    fixed = [
        name
        for name, value in network.items()
        if name not in CHANGEABLE and before[0].get(name, EXTENSIONS.get(name)) != value
    ]
    if fixed:
        was = ", ".join(f"{name}={before[0].get(name, EXTENSIONS.get(name))}" for name in fixed)
        raise ConfigError(f"The network in {origin} has {was}: leave {', '.join(fixed)} out, or start a new run.")
    known = {**before[0], **before[1]}
    for name, value in given.items():
        # Checkpoints do not hold all settings: a setting with no known old value is not listed as changed.
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
        None if resumed else add_instrument,
        seen,
    )


def refuse_overtaken(out: Path, plan: Plan) -> None:
    """Raise :class:`TrainingError` if the file of the run's state was written since the plan was made, as by a process
    that was ending."""
    if _stamp(out) != plan.seen:
        raise TrainingError(
            f"{out / LAST} was written while this process was starting: give the same command again to go on from it."
        )


def _is_start(checkpoint: Path, started_from: Path | None) -> bool:
    """Return whether ``checkpoint``, which may be gone by now, is the one that a run was started from."""
    return started_from is not None and (
        checkpoint.resolve() == started_from or locate(checkpoint).resolve() == started_from
    )


def _stamp(out: Path) -> tuple[int, int] | None:
    try:
        found = (out / LAST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size


def _last_state(out: Path) -> Checkpoint:
    """Return the state from which the run in ``out`` continues.

    Raises:
        CheckpointError: if the file of the state is damaged; the message says what the user can do.
    """
    try:
        return read_original(out / LAST)
    except CheckpointError as error:
        best = out / BEST
        advice = f"move {out / LAST} away to start again"
        if best.exists():
            advice = (
                f"start another run from the best state with --checkpoint {best} and a new --out, or move {out / LAST} and "
                f"{BEST} away to start again"
            )
        raise CheckpointError(f"The run in {out} cannot go on, because its {LAST} is damaged: {advice}.") from error


def _settings_of(checkpoint: Checkpoint, origin: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the network, and those of the training, that a checkpoint's arguments contain."""
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    training = {name: value for name, value in vars(checkpoint.args).items() if name in names and value is not None}
    return config_of(checkpoint, origin).to_dict(), {**training, "unfreeze": what_was_trained(checkpoint)}


@contextlib.contextmanager
def claim(out: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Claim the folder of a run for the block; call ``note`` with a warning if its file system has no locks.

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
    """Carry out a plan: start or continue the run that it describes.

    Args:
        cache_path: the folder that ``metatasnet-fast prepare`` made.
        out: the run's folder; it is created if it is missing.
        plan: what :func:`plan_run` returned for ``out``.
        tensorboard: also write TensorBoard's files.
        display: object that shows the run to the user; None to show nothing.
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
    """Yield batches of mixtures, ``items`` items or somewhat more in all, and display the progress."""
    count = -(-items // batches.items)
    for number in range(count):
        yield (batches.batch(number).mixes,)
        display.preparing("statistics", (number + 1) * batches.items, count * batches.items, "items")


def _description(plan: Plan, runtime: Runtime, cache: str | Path, command: str) -> dict[str, Any]:
    """Return the content of the run's ``settings.json``: its settings, and what it runs on."""
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
