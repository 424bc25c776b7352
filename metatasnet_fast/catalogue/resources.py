"""What all songs of a worker share: network, batches, places in the stages, memory, and the destination."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch

from .._io import model_checksum
from ..backends import Choice
from ..config import MetaTasNetConfig
from ..errors import OutputError
from ..model import load_checkpoint
from ..model.engine import Engine
from ..precision import Precision
from ..separation import Separator
from ..separation.batches import automatic_batch_size
from ..separation.recording import Budget, Recording
from ..separation.result import parse_stems
from ..separation.windows import default_shape
from .batcher import Batcher, DeviceEngine
from .cores import CorePlan, Stage, available_memory
from .destination import Destination
from .settings import Identity, Settings
from .staging import Contents, Staging

__all__ = ["Resources", "SongBudget", "find_identity"]

BYTES_PER_SAMPLE = 28
"""Bytes of a recording on the GPU, per sample and channel: itself, its resampled forms (about twice that), the stems."""

WINDOW_COPIES = 3
"""Bytes of a window's stems, in float32: as stitched, with what the resampler holds back, and as resampled."""


def find_identity(settings: Settings) -> Identity:
    """Load the model, and return what the outputs of these settings depend on, without taking hold of the device.

    Raises:
        MetaTasNetError: if the model cannot be loaded, or has no such stems.
        ConfigError: for an unknown precision.
    """
    network = load_checkpoint(settings.model, revision=settings.revision, offline=settings.offline)
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    automatic = settings.dtype == "auto"
    precision = Precision.default(torch.device(device)) if automatic else Precision.parse(settings.dtype)
    return _identity(settings, network.config, model_checksum(network.config, network.state_dict()), precision)


def _identity(settings: Settings, config: MetaTasNetConfig, checksum: str, precision: Precision) -> Identity:
    """Return what decides the outputs; the name that people give the model decides nothing."""
    window, recipe = default_shape(config), parse_stems(settings.stems, config.instruments)
    name = Path(settings.model).name if os.path.exists(settings.model) else settings.model
    values = {
        "mode": "fast",
        "window": [window.window, window.context, window.fade],
        "precision": precision.value,
        "stems": {output: list(parts) for output, parts in recipe.items()},
        "format": settings.format,
        "subtype": settings.subtype,
        "mixture_consistency": settings.mixture_consistency,
    }
    return Identity(name, checksum, values)


class SongBudget(Budget):
    """One song's part of a budget shared by songs; ``close`` gives back what the song, however it ended, did not."""

    def __init__(self, shared: Budget) -> None:
        super().__init__(None)
        self._shared = shared
        self._taken = 0

    def take(self, size: int) -> bool:
        fits = self._shared.take(size)
        self._taken += size if fits else 0
        return fits

    def give_back(self, size: int) -> None:
        self._taken -= size
        self._shared.give_back(size)

    def close(self) -> None:
        self.give_back(self._taken)


class Resources:
    """Loaded once, used by all songs.

    Args:
        engine: takes the network's place, on the CPU; for tests of everything around it.
        warn: is called with sentences that a person should read.
        cores: how the cores are shared; None: as suits the device.
        contents: what is done at the destination, see :class:`Contents`.

    Raises:
        MetaTasNetError: as ``Separator``.
        OutputError: if nothing can be written to the destination.
    """

    def __init__(
        self,
        settings: Settings,
        destination: Destination,
        engine: DeviceEngine | None,
        warn: Callable[[str], object],
        cores: CorePlan | None,
        contents: Mapping[str, str],
    ) -> None:
        self.settings, self.destination, self.contents = settings, destination, Contents(contents)
        try:
            self.staging = Staging(destination.storage)
        except OSError as error:
            raise OutputError(
                f"Nothing can be written to {destination.uri} ({error.strerror or error}): "
                "choose another destination, or change its permissions."
            ) from error
        try:
            self._load(engine, warn, cores)
        except BaseException:
            self.staging.close()
            raise

    def _load(self, engine: DeviceEngine | None, warn: Callable[[str], object], cores: CorePlan | None) -> None:
        settings = self.settings
        if engine is None:
            network = load_checkpoint(settings.model, revision=settings.revision, offline=settings.offline)
            separator = Separator(network, settings.device, settings.backend, settings.dtype)
            backend, self.device, precision = separator.backend, separator.device, separator.precision
            checksum = model_checksum(network.config, separator.network.state_dict())
            engine = separator.network.engine(Choice.parse(backend, precision.value))
        else:
            backend, self.device, precision = type(engine).__name__, torch.device("cpu"), Precision.float32
            checksum = hashlib.sha256(f"{backend} {json.dumps(engine.config.to_dict())}".encode()).hexdigest()
        self.made_by = {"backend": backend, "device": str(self.device), "precision": precision.value}
        self.recipe = parse_stems(settings.stems, engine.config.instruments)
        self.identity = _identity(settings, engine.config, checksum, precision)
        self.window = default_shape(engine.config)
        self.cores = cores or CorePlan.choose(self.device, settings.threads, settings.songs_in_flight)
        size = settings.batch_size or 1
        if settings.batch_size is None and isinstance(engine, Engine):
            before = torch.get_num_threads()
            torch.set_num_threads(self.cores.device_threads)
            size = automatic_batch_size(engine, self.window.window, self.device)
            torch.set_num_threads(before)
        self.engine = cast(Engine, engine)
        self.batcher = Batcher(engine, size, warn, self.device, self.cores)
        memory = available_memory() // 4 if settings.memory is None else settings.memory
        self.memory = Budget(memory)
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
        self._device_memory = free // 4 // self.cores.songs
        # Songs need memory all at once while their windows are put together.
        self.separate = Stage(self.cores.songs, free // 8 or memory)
        self.read, self.write = Stage(self.cores.read), Stage(self.cores.write)

    def close(self) -> None:
        """End the device thread and remove what was being written."""
        self.batcher.close()
        self.staging.close()

    def describe(self) -> str:
        made = self.made_by
        return (
            f"{self.identity.model_name}: backend {made['backend']}, device {made['device']}, {made['precision']}; "
            f"batches of {self.batcher.batch_size} windows; {self.cores.describe()}"
        )

    def home(self, recording: Recording, attempt: int) -> tuple[torch.device, SongBudget]:
        """Choose where a song's signals wait and their memory: on the GPU if they fit and no attempt failed before."""
        on_device = recording.samples is not None and attempt == 1
        if on_device and BYTES_PER_SAMPLE * (recording.samples or 0) * recording.channels <= self._device_memory:
            return self.device, SongBudget(Budget(None))
        return torch.device("cpu"), SongBudget(self.memory)

    def working_memory(self, recording: Recording) -> int:
        """Return the bytes that a recording needs while its windows are put together."""
        config = self.engine.config
        samples = self.window.window * config.W * max(recording.sample_rate, config.output_rate) // config.sampling_rate
        if recording.samples is not None:
            samples = min(samples, recording.samples)
        return WINDOW_COPIES * 4 * len(config.instruments) * recording.channels * samples
