"""The folder of a run: one process writes into it at a time, and ``settings.json`` says what the run is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .._io import claiming, reporting_write_errors, write_atomically
from ..config import MetaTasNetConfig
from ..errors import ConfigError, TrainingError
from .settings import TrainingSettings, read_settings_file, split_settings

__all__ = ["SETTINGS", "claim", "notes_of", "settings_of", "write_settings"]

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
