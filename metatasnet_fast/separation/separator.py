"""Separate recordings into stems: the class that users call."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from .._io import reporting_write_errors
from ..audio import closest_subtype, open_audio, read_tags
from ..backends import Choice, Request, resolve
from ..errors import ConfigError, OutputError
from ..model import default_model, load_checkpoint
from ..model.methods import NetworkMethods
from ..precision import Precision
from .devices import BatchRunner, automatic_batch_size, choose_device, choose_home, memory_for
from .fast_mode import WindowShape, default_shape, separate_in_windows
from .outputs import StemFiles, Unscaled, collect
from .recording import MOST_CHANNELS, Budget, Recording
from .reference_mode import separate_as_evaluated
from .result import ProgressCallback, Recipe, Reporter, Separation, Stems, parse_stems

__all__ = ["Separator"]

Mode: TypeAlias = Literal["fast", "reference"]
MODES = ("fast", "reference")

SPOOL_BYTES = 2**30
"""Bytes of memory for the signals between the two passes, if the stems go to files. A stereo song of 8 minutes fits."""


def _undisturbed(method: Callable[..., Separation]) -> Callable[..., Separation]:
    """Decorate a method: it runs without gradients, and without the caller's autocast and default device. So the
    precision is the one that was asked for."""

    @functools.wraps(method)
    def run(self: Separator, *args: Any) -> Separation:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast(self.device.type, enabled=False),
            torch.device("cpu"),
        ):
            return method(self, *args)

    return run


class Separator:
    """Separator of recordings into the stems of a network's instruments: drums, bass, other and vocals by default.

    Stems have the recording's sample rate, channels and exact length. Every channel is separated on its own. The
    network cannot represent frequencies above half its output rate (16 kHz for the authors' network). These are in no
    stem, unless ``mixture_consistency`` distributes them. Nothing is normalised or clipped.

    The network is trained with a loss that leaves the level and the sign of each stem free. Therefore, the stems of
    every channel are multiplied by gains: the factors with which their sum comes closest to the recording (least
    squares over the whole recording).

    Modes:
        fast: the recording is cut into windows of one length, with the context that the network's receptive field
            needs, and the network runs on many windows at once. If stems go to files, memory does not grow with the
            recording.
        reference: as the authors evaluate: each channel as a whole, in 8 chunks with 8 s of context on both sides.
            Memory grows with the recording. With ``dtype="float64"``, stems agree with the authors' float64 stems
            to 1e-4; in float32, up to the authors' own rounding.

    Args:
        model: a network; or what ``load_checkpoint`` accepts, such as a checkpoint file or folder, or the name of a
            bundled model; None for the default model.
        device: a torch device. ``auto`` is the network's device if that is not the CPU, else a CUDA device if there is
            one, else the CPU. A network on another device is copied, not moved.
        backend: one of ``available_backends()``, or ``auto`` for the fastest that can be used.
        dtype: precision of the network's arithmetic; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
        mode: ``fast`` or ``reference``.
        mixture_consistency: make the stems add up to the recording. In each channel, the difference is distributed over
            the stems in proportion to their energies over the whole recording.
        batch_size: windows in one batch; None to choose it by the free memory. It is halved whenever memory runs out.
        progress: function that is called with a :class:`Progress` from time to time.

    Raises:
        CheckpointError: if the model cannot be loaded.
        BackendUnavailableError: if the device is absent, or the backend cannot be used.
        ConfigError: for an unknown mode, dtype or device, or a batch size below 1.
        OutOfMemoryError: if the network does not fit into the device's memory.

    Example:
        >>> stems = Separator("checkpoints/best_model.pt").separate(waveform, 44100)
        >>> stems["vocals"].shape == waveform.shape
        True
    """

    network: NetworkMethods
    device: torch.device
    backend: str
    """Name of the backend that runs the network."""
    precision: Precision
    mode: str
    window: WindowShape
    """Shape of the windows in ``fast`` mode."""
    stems: tuple[str, ...]
    """The network's instruments."""
    output_rate: int
    """Rate in hertz of the network's stems, before they are resampled to the recording's rate."""

    def __init__(
        self,
        model: NetworkMethods | str | os.PathLike[str] | None = None,
        device: str | torch.device = "auto",
        backend: str = "auto",
        dtype: str | torch.dtype | Precision = "auto",
        mode: Mode = "fast",
        *,
        mixture_consistency: bool = False,
        batch_size: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"Unknown mode {mode!r}; choose one of {', '.join(MODES)}.")
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise ConfigError(f"batch_size must be a whole number from 1 on, got {batch_size!r}.")
        if isinstance(model, torch.nn.Module) and not isinstance(model, NetworkMethods):
            raise ConfigError(
                f"A {type(model).__name__} cannot be separated with as it is: call accelerate(network) first."
            )
        network = model if isinstance(model, NetworkMethods) else load_checkpoint(model or default_model())
        self.device = choose_device(device, network)
        self.precision = Precision.default(self.device) if dtype == "auto" else Precision.parse(dtype)
        self._choice = Choice.parse(backend, self.precision.value)
        request = Request(self.device, self.precision, False, network.config)
        self.backend = resolve(backend, request).name
        with memory_for(f"the network on {self.device}", "free some, or choose another device"):
            self.network = network if network.device == self.device else copy.deepcopy(network).to(self.device)
        self.mode = mode
        self.mixture_consistency = mixture_consistency
        self.batch_size = batch_size
        self.progress = progress
        self.window = default_shape(network.config)
        self.output_rate = network.config.output_rate
        self.stems = network.config.instruments

    @property
    def sources(self) -> tuple[str, ...]:
        """The same as ``stems``."""
        return self.stems

    @property
    def samplerate(self) -> int:
        """The same as ``output_rate``."""
        return self.output_rate

    def __repr__(self) -> str:
        return f"Separator({', '.join(self.stems)} at {self.output_rate} Hz; {self.describe()})"

    def describe(self) -> str:
        """Return device, backend, precision and mode in one line."""
        return f"backend {self.backend}, device {self.device}, {self.precision.value}, {self.mode} mode"

    def separate(self, waveform: Tensor | npt.NDArray[Any], sample_rate: int, stems: Stems = None) -> Separation:
        """Separate a recording in memory.

        Args:
            waveform: (channels, samples) or (samples,), a tensor on any device or an array. It is floating point, or
                int16 or int32, which are scaled to [-1, 1). Samples that are NaN or infinite count as 0, with a warning
                in the result. It may also be a batch, (items, channels, samples); then the stems are batches, too.
            sample_rate: in hertz, such as 8000 to 192000.
            stems: names of the stems to return; or a mapping from new names to the stems that are added up under each;
                or ``two_stems("vocals")``; None for all stems.

        Returns:
            float32 stems on the waveform's device.

        Raises:
            EmptyAudioError: if there are no samples.
            OutOfMemoryError: if memory does not suffice, even for a single window.
            ShapeError: for another shape or dtype, or a sample rate that is no positive whole number.
            UnknownStemError: for a stem that the network does not produce.
        """
        began = time.perf_counter()
        recipe = parse_stems(stems, self.stems)
        if getattr(waveform, "ndim", 0) == 3:
            return self._batch(waveform, sample_rate, stems)
        with self._memory_for("the recording", to_files=False):
            recording = Recording.from_memory(waveform, sample_rate)
            device = waveform.device if isinstance(waveform, Tensor) else torch.device("cpu")
            return self._in_memory(recording, recipe, device, waveform.ndim == 1, began, [])

    def _batch(self, batch: Tensor | npt.NDArray[Any], sample_rate: int, stems: Stems) -> Separation:
        """Separate a batch (items, channels, samples) in groups of items; a group has at most MOST_CHANNELS channels."""
        items, channels, samples = batch.shape
        step = max(1, MOST_CHANNELS // max(1, channels))
        groups = [batch[first : first + step] for first in range(0, max(1, items), step)]
        parts = [self.separate(group.reshape(len(group) * channels, samples), sample_rate, stems) for group in groups]
        return replace(
            parts[0],
            stems={s: torch.cat([part[s] for part in parts]).reshape(items, channels, samples) for s in parts[0]},
            gains={s: tuple(gain for part in parts for gain in part.gains[s]) for s in parts[0].gains},
            seconds=sum(part.seconds for part in parts),
            warnings=tuple(warning for part in parts for warning in part.warnings),
        )

    def separate_file(
        self,
        path: str | os.PathLike[str] | BinaryIO,
        output_dir: str | os.PathLike[str] | None = None,
        stems: Stems = None,
        *,
        name: str = "{track}/{stem}",
        format: str = "wav",
        subtype: str | None = None,
        track: int | None = None,
        partial: bool = False,
        tags: bool = True,
    ) -> Separation:
        """Separate an audio file. In fast mode with ``output_dir``, memory does not grow with the file's length.

        Args:
            path: any file that ``open_audio`` reads, or an open file such as ``io.BytesIO``, whose ``{track}`` is
                ``audio``.
            output_dir: folder for the stems, created if it is missing. With None, the stems are returned in memory.
            stems: as in :meth:`separate`.
            name: name of each file below ``output_dir``, without suffix. ``{track}`` stands for the name of the input
                without its suffix, ``{stem}`` for the name of the stem.
            format: ``wav``, ``flac`` or another format of ``AudioWriter``. It is also the suffix of the files.
            subtype: how samples are stored, as ``AudioWriter`` names it. None for the default of the format; ``same``
                for that of the input, or for the widest of the format if the format lacks this one.
            track: number of the audio track in the file, from 1; None for the track that the file calls its default.
            partial: accept a file if less than 95 % of the samples that it announces can be decoded.
            tags: write the input's title, artist, cover and the like into the stems.

        Returns:
            the separation. With ``output_dir``, its ``files`` are the paths of the files, all complete.

        Raises:
            AudioReadError: if the file cannot be read; this is a NotAudioError if it holds no audio, and an
                EmptyAudioError if it has no samples.
            AudioWriteError: if a stem cannot be written; no half-written file is left.
            OutOfMemoryError: if memory does not suffice, even for a single window.
            UnknownStemError: for a stem that the network does not produce.
        """
        began = time.perf_counter()
        recipe = parse_stems(stems, self.stems)
        if not isinstance(path, str | os.PathLike):
            with tempfile.TemporaryDirectory(prefix="metatasnet-fast-") as folder:
                copied = Path(folder, "audio")
                with copied.open("wb") as file:
                    shutil.copyfileobj(path, file)
                return self.separate_file(
                    copied,
                    output_dir,
                    stems,
                    name=name,
                    format=format,
                    subtype=subtype,
                    track=track,
                    partial=partial,
                    tags=tags,
                )
        opened = open_audio(path, track=track, partial=partial)
        with self._memory_for(os.fspath(path), output_dir is not None), opened as stream:
            recording = Recording.from_stream(stream)
            if output_dir is None:
                return self._in_memory(recording, recipe, torch.device("cpu"), False, began, stream.warnings)
            if subtype == "same":
                subtype = closest_subtype(format, stream.depth)
            found = read_tags(Path(path)) if tags else None
            files = StemFiles.plan(Path(output_dir), name, Path(path).stem, recipe, recording, format, subtype, found)
            return self._to_files(recording, recipe, files, began, stream.warnings)

    def separate_files(
        self, paths: Iterable[str | os.PathLike[str]], output_dir: str | os.PathLike[str] | None = None, **options: Any
    ) -> Iterator[Separation]:
        """Separate one file after the other, and yield each result. The options are those of :meth:`separate_file`."""
        for path in paths:
            yield self.separate_file(path, output_dir, **options)

    def _memory_for(self, what: str, to_files: bool) -> contextlib.AbstractContextManager[None]:
        if self.mode == "reference":
            return memory_for(what, "use fast mode, or free some")
        if not to_files:
            return memory_for(what, "let separate_file write the stems to files, or free some")
        return memory_for(what, "free some, or separate on another device")

    @_undisturbed
    def _in_memory(
        self, recording: Recording, recipe: Recipe, device: torch.device, flat: bool, began: float, notes: list[str]
    ) -> Separation:
        warnings: list[str] = []
        reporter = Reporter(self.progress)
        unscaled = self._run(recording, Budget(None), reporter, warnings)
        rate, consistent = recording.sample_rate, self.mixture_consistency
        stems = collect(unscaled, recipe, consistent, device, rate, reporter)
        reporter.finish()
        stems = {stem: samples[0] if flat else samples for stem, samples in stems.items()}
        return self._result(recording, unscaled, stems, {}, began, [*notes, *warnings])

    @_undisturbed
    def _to_files(
        self, recording: Recording, recipe: Recipe, files: StemFiles, began: float, notes: list[str]
    ) -> Separation:
        warnings: list[str] = []
        reporter = Reporter(self.progress)
        unscaled = self._run(recording, Budget(SPOOL_BYTES), reporter, warnings)
        for path in files.paths.values():
            with reporting_write_errors(path.parent, OutputError):
                path.parent.mkdir(parents=True, exist_ok=True)
        warnings += files.write(unscaled, recipe, self.mixture_consistency, recording.sample_rate, reporter)
        reporter.finish()
        return self._result(recording, unscaled, {}, files.paths, began, [*notes, *warnings])

    def _run(self, recording: Recording, budget: Budget, reporter: Reporter, warnings: list[str]) -> Unscaled:
        engine = self.network.engine(self._choice)
        if self.mode == "reference":
            return separate_as_evaluated(engine, recording, self.device, reporter)
        size = self.batch_size or automatic_batch_size(engine, self.window.window, self.device)
        runner = BatchRunner(size, warnings.append)
        home = choose_home(self.device, recording, len(self.stems))
        unscaled = separate_in_windows(engine, runner, self.window, recording, self.device, home, budget, reporter)
        if runner.batch_size < size:
            self.batch_size = runner.batch_size
        return unscaled

    def _result(
        self,
        recording: Recording,
        unscaled: Unscaled,
        stems: dict[str, Tensor],
        files: dict[str, Path],
        began: float,
        warnings: list[str],
    ) -> Separation:
        length = unscaled.mixture.length
        unscaled.mixture.close()
        return Separation(
            stems=stems,
            sample_rate=recording.sample_rate,
            gains={stem: tuple(gains) for stem, gains in unscaled.gains_by_name().items()},
            duration=length / recording.sample_rate,
            seconds=time.perf_counter() - began,
            backend=self.backend,
            device=str(self.device),
            precision=self.precision.value,
            mode=self.mode,
            warnings=(*recording.warnings(), *warnings),
            files=files,
        )
