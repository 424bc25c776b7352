"""Plan a run: a new one, one that starts from a checkpoint, or one that continues from its own state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import EXTENSIONS, MetaTasNetConfig
from ..errors import CheckpointError, ConfigError, TrainingError
from ..model.checkpoints import Checkpoint, config_of, read_original
from ..model.pretrained import locate, read_checkpoint
from .data import Cache
from .settings import TrainingSettings, notes_of, settings_of, split_settings
from .state import add_instrument as extend
from .state import what_was_trained
from .trainer import BEST, LAST

__all__ = ["Plan", "plan_run", "refuse_overtaken"]

CHANGEABLE = ("dropout", "similarity_loss_weight", "dissimilarity_loss_weight", "reconstruction_loss_weight")
"""Settings of the network that do not change its parameters."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    config: MetaTasNetConfig
    settings: TrainingSettings
    checkpoint: Checkpoint | None = None
    """The checkpoint from which the run continues."""
    origin: Path | None = None
    """File of that checkpoint."""
    started_from: Path | None = None
    """The checkpoint that the run was started from, also if the run now continues from its own state."""
    changes: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    """Settings (and the cache) that differ from those of the run or checkpoint: old value and new value."""
    resumed: bool = False
    """Set if the run continues instead of starting."""
    added: str | None = None
    """An instrument that is added to the checkpoint's network now."""
    seen: tuple[int, int] | None = None
    """Modification time and size of the run's own state when it was read; None if there was none."""


def plan_run(
    out: Path,
    given: Mapping[str, Any],
    checkpoint: Path | None = None,
    cache: str | Path | None = None,
    add_instrument: str | None = None,
) -> Plan:
    """Plan the run in ``out``: if a run is there, continue it; else start a run, from ``checkpoint`` if that is given.

    Args:
        given: settings by name that the user gave; all others come from the run, from the checkpoint, or are the defaults.
        checkpoint: checkpoint to start from. A run that was started from this checkpoint continues from its own state.
        cache: the training data; if the run had other data, this is listed as a change. A new network gets the cache's
            instruments, unless ``given`` names instruments.
        add_instrument: name of an instrument to add to the checkpoint's network; only its embedding is trained, unless
            ``unfreeze`` is given. To continue such a run, this argument is not needed.

    Raises:
        ConfigError: for settings that do not fit.
        CheckpointError: if a checkpoint cannot be read.
        TrainingError: if there is a run that was not started from ``checkpoint``, whose settings cannot be read, or of which
            only the best state is left.
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
    """Raise :class:`TrainingError` if the run's state was written since the plan was made, as by a process that was ending."""
    if _stamp(out) != plan.seen:
        raise TrainingError(
            f"{out / LAST} was written while this process was starting: give the same command again to go on from it."
        )


def _is_start(checkpoint: Path, started_from: Path | None) -> bool:
    """Return whether a run was started from ``checkpoint``, which may be gone by now."""
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
    """Return the state from which a run continues."""
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
    """Return the settings of the network and of the training that a checkpoint's arguments contain."""
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    training = {name: value for name, value in vars(checkpoint.args).items() if name in names and value is not None}
    return config_of(checkpoint, origin).to_dict(), {**training, "unfreeze": what_was_trained(checkpoint)}
