"""Settings of a run, and the part of them that decides the results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .song import safe_name

if TYPE_CHECKING:
    from ..separation.result import Recipe

__all__ = ["Identity", "Settings"]

FORMATS = ("flac", "ogg", "wav", "mp3")

MOST = {"threads": 4096, "batch_size": 65536, "songs_in_flight": 4096, "attempts": 1000}
"""Larger numbers are slips of the keyboard, and threads and lists would be made of them."""


@dataclass(frozen=True)
class Settings:
    """All options of a run that its workers need. It travels to other processes and machines."""

    model: str
    """A checkpoint file or folder, a bundled model's name or a hub id."""
    revision: str | None = None
    offline: bool = False
    stems: dict[str, tuple[str, ...]] | None = None
    """Every output with the stems that are summed in it; None for each of the model's."""
    format: str = "flac"
    subtype: str | None = None
    """Sample depth as ``AudioWriter`` names it; None is the format's default."""
    mixture_consistency: bool = False
    dtype: str = "auto"

    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    """Cores that a worker may use; None for all of this process's."""
    batch_size: int | None = None
    """Windows in one batch; None chooses by the free memory. Halved, for good, when memory runs out."""
    songs_in_flight: int | None = None
    """Songs that a worker has open at once; None chooses by cores and batch size."""
    memory: int | None = None
    """Bytes that the signals of all songs in flight of a worker may take together; what exceeds them waits in TMPDIR. None is a
    quarter of what is free."""
    max_hours: float = 12.0
    """Longer recordings fail as too long."""
    attempts: int = 3
    """Tries of a song whose failure may be passing."""
    overwrite: bool = False
    """Separate also what is done."""
    retry_failed: bool = False
    """Try also what failed before for a lasting reason."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"Unknown format {self.format!r}; choose one of {', '.join(FORMATS)}.")
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
            if value is not None and value > most:
                raise ConfigError(f"{name} must be at most {most}, got {value}.")
        if not 0 < self.max_hours < math.inf:
            raise ConfigError(f"max_hours must be a number above 0, got {self.max_hours}.")
        if (self.memory or 0) < 0:
            raise ConfigError(f"memory must not be negative, got {self.memory}.")
        for stem in self.stems or ():
            if safe_name(stem) != stem:
                raise ConfigError(f"The stem {stem!r} cannot name a file: use letters, digits, dots, - and _.")

    def of_model(self, instruments: Sequence[str]) -> Settings:
        """The same with every stem named; raises :class:`UnknownStemError` for one that the model does not produce."""
        from ..separation.result import parse_stems

        named: Settings = replace(self, stems=parse_stems(self.stems, instruments))
        return named

    @property
    def recipe(self) -> Recipe:
        """Every output with the stems that are summed in it, once :meth:`of_model` has named them."""
        assert self.stems is not None
        return self.stems


@dataclass(frozen=True)
class Identity:
    """Everything but the input's content that decides the outputs: a song is done for one identity.

    Device, backend and batch size are not in it: they change results within the precision's tolerance only.
    """

    model_name: str
    model_sha256: str
    """Checksum of the weights and the configuration, see ``model_checksum``."""
    settings: dict[str, Any]
    """``mode``, ``window`` (latent frames), ``precision``, ``stems``, ``format``, ``subtype``, ``mixture_consistency``."""

    @property
    def settings_sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @property
    def key(self) -> str:
        """32 hexadecimal digits, different for different models and settings."""
        return hashlib.sha256(f"{self.model_sha256} {self.settings_sha256}".encode()).hexdigest()[:32]
