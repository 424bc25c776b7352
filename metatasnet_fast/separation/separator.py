"""The front door: a recording in, its stems out."""

from __future__ import annotations

import contextlib
import copy
import os
import time
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from ..audio import AudioWriter, open_audio
from ..backends import Choice, Request, resolve
from ..config import INSTRUMENTS
from ..errors import AudioWriteError, BackendUnavailableError, ConfigError
from ..model import load_checkpoint
from ..model.methods import NetworkMethods
from ..precision import Precision
from .batches import BatchRunner, automatic_batch_size
from .fast_mode import separate_in_windows
from .progress import ProgressCallback, Reporter
from .recording import Recording
from .reference_mode import separate_as_evaluated
from .result import Recipe, Separation, Stems, parse_stems
from .spool import Budget
from .unscaled import Unscaled
from .windows import WindowShape, default_shape

__all__ = ["Separator"]

Mode: TypeAlias = Literal["fast", "reference"]
MODES = ("fast", "reference")

SPOOL_BYTES = 2**30
"""Memory for the signals between the passes when stems go to files; a stereo song of 8 minutes fits."""


class Separator:
    """Separates recordings into drums, bass, other and vocals.

    Stems have the recording's sample rate, channels and exact length. Every channel is separated on its own. What the
    network cannot represent, frequencies above half its output rate (16 kHz for the authors' network), is in no stem,
    unless ``mixture_consistency`` distributes it. Nothing is normalised or clipped.

    The network is trained with a loss that leaves each stem's level and sign free, so the method includes gains: for every
    channel, the four factors with which the stems' sum comes closest to the recording (least squares over the whole
    recording).

    Modes:
        fast: windows of one fixed length with the context that the network's receptive field needs, many in one
            batch, in memory that does not grow with the recording. At most 0.1 dB SDR below ``reference``.
        reference: the authors' evaluation to 1e-4: each channel whole, in 8 chunks with 8 s of context on both sides. Memory
            grows with the recording.

    Args:
        model: a network; or what ``load_checkpoint`` accepts: a checkpoint file or folder, or a bundled model's name.
        device: a torch device; ``auto`` is where the network is if that is not the CPU, else a CUDA device if there is
            one, else the CPU. A network on another device is copied, not moved.
        backend: one of ``available_backends()``, or ``auto`` for the fastest that can serve.
        dtype: precision of the network's arithmetic; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
        mode: ``fast`` or ``reference``.
        mixture_consistency: make the stems sum to the recording: what is left of it is distributed over the stems, in
            each channel in proportion to their energies over the whole recording.
        batch_size: windows in one batch; None chooses by the free memory. It is halved whenever memory runs out.
        progress: is called with a :class:`Progress` every now and then.

    Raises:
        CheckpointError: if the model cannot be loaded.
        BackendUnavailableError: if the device is absent, or the backend cannot serve.
        ConfigError: for an unknown mode, dtype or device, or a batch size below 1.

    Example:
        >>> stems = Separator("checkpoints/best_model.pt").separate(waveform, 44100)
        >>> stems["vocals"].shape == waveform.shape
        True
    """

    network: NetworkMethods
    device: torch.device
    backend: str
    """Name of the backend that serves."""
    precision: Precision
    mode: str
    window: WindowShape
    """Of ``fast`` mode."""
    stems: tuple[str, ...] = INSTRUMENTS
    output_rate: int
    """Hertz at which the network gives its stems, before they are resampled to the recording's rate."""

    def __init__(
        self,
        model: NetworkMethods | str | os.PathLike[str],
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
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        network = model if isinstance(model, NetworkMethods) else load_checkpoint(model)
        self.device = _device(device, network)
        self.precision = Precision.default(self.device) if dtype == "auto" else Precision.parse(dtype)
        self._choice = Choice.parse(backend, self.precision.value)
        request = Request(self.device, self.precision, False, network.config)
        self.backend = resolve(backend, request).name
        self.network = network if network.device == self.device else copy.deepcopy(network).to(self.device)
        self.mode = mode
        self.mixture_consistency = mixture_consistency
        self.batch_size = batch_size
        self.progress = progress
        self.window = default_shape(network.config)
        self.output_rate = network.config.output_rate

    def describe(self) -> str:
        """One line: device, backend, precision and mode."""
        return f"{self.backend} on {self.device} in {self.precision.value}, {self.mode} mode"

    def separate(self, waveform: Tensor | npt.NDArray[Any], sample_rate: int, stems: Stems = None) -> Separation:
        """Separate a recording in memory.

        Args:
            waveform: (channels, samples) or (samples,), a tensor on any device or an array; floating point, or int16 or
                int32, which are scaled to [-1, 1). Samples that are NaN or infinite count as 0, with a warning in the result.
            sample_rate: hertz, 8 kHz to 192 kHz and beyond.
            stems: names of the stems to return; or a mapping from names of one's own to the stems that are summed, such as
                ``two_stems("vocals")``; None for all.

        Returns:
            float32 stems on the waveform's device.

        Raises:
            EmptyAudioError: for no samples.
            ShapeError: for another shape or dtype, or a sample rate that is not positive.
            UnknownStemError: for a stem that the network does not produce.
        """
        began = time.perf_counter()
        recipe = parse_stems(stems)
        recording = Recording.from_memory(waveform, sample_rate)
        device = waveform.device if isinstance(waveform, Tensor) else torch.device("cpu")
        return self._in_memory(recording, recipe, device, waveform.ndim == 1, began, [])

    def separate_file(
        self,
        path: str | os.PathLike[str],
        output_dir: str | os.PathLike[str] | None = None,
        stems: Stems = None,
        *,
        name: str = "{track}/{stem}",
        format: str = "wav",
        subtype: str | None = None,
    ) -> Separation:
        """Separate an audio file, in fast mode in memory that does not grow with the file's length.

        Args:
            path: any file that ``open_audio`` reads.
            output_dir: folder for the stems; it is made. With None the stems are returned in memory.
            stems: as in :meth:`separate`.
            name: name of each file below ``output_dir``, without suffix; ``{track}`` is the name of the input without its
                suffix, ``{stem}`` the stem's.
            format: ``wav``, ``flac`` or what else ``AudioWriter`` writes; also the suffix.
            subtype: how samples are stored, as ``AudioWriter`` names it; None is its default for the format.

        Returns:
            a :class:`Separation`; with ``output_dir`` its ``files`` are the paths written, all complete.

        Raises:
            AudioReadError: if the file cannot be read (NotAudioError, EmptyAudioError: holds no audio, no samples).
            AudioWriteError: if a stem cannot be written; no half-written file stays behind.
            UnknownStemError: for a stem that the network does not produce.
        """
        began = time.perf_counter()
        recipe = parse_stems(stems)
        with open_audio(path) as stream:
            recording = Recording.from_stream(stream)
            if output_dir is None:
                return self._in_memory(recording, recipe, torch.device("cpu"), False, began, stream.warnings)
            files = _file_names(Path(output_dir), name, Path(path).stem, recipe, format)
            return self._to_files(recording, recipe, files, format, subtype, began, stream.warnings)

    @torch.no_grad()
    def _in_memory(
        self, recording: Recording, recipe: Recipe, device: torch.device, flat: bool, began: float, notes: list[str]
    ) -> Separation:
        warnings: list[str] = []
        reporter = Reporter(self.progress)
        unscaled = self._run(recording, Budget(None), reporter, warnings)
        shape = (recording.channels, unscaled.mixture.length)
        result = {stem: torch.empty(shape, device=device) for stem in recipe}
        done = 0
        for blocks in unscaled.outputs(recipe, self.mixture_consistency):
            for stem, block in blocks.items():
                result[stem][:, done : done + block.shape[1]] = block
            done += next(iter(blocks.values())).shape[1]
            reporter.report("write", done / recording.sample_rate)
        if flat:
            result = {stem: samples[0] for stem, samples in result.items()}
        unscaled.mixture.close()
        reporter.finish()
        return self._result(recording, unscaled, shape[1], result, {}, began, [*notes, *warnings])

    @torch.no_grad()
    def _to_files(
        self,
        recording: Recording,
        recipe: Recipe,
        files: dict[str, Path],
        format: str,
        subtype: str | None,
        began: float,
        notes: list[str],
    ) -> Separation:
        warnings: list[str] = []
        reporter = Reporter(self.progress)
        # Refused formats are noticed before the work is done.
        writers = {
            stem: AudioWriter(path, recording.sample_rate, recording.channels, format=format, subtype=subtype)
            for stem, path in files.items()
        }
        unscaled = self._run(recording, Budget(SPOOL_BYTES), reporter, warnings)
        with contextlib.ExitStack() as stack:
            for path in files.values():
                _make_folder(path.parent)
            for writer in writers.values():
                stack.enter_context(writer)
            done = 0
            for blocks in unscaled.outputs(recipe, self.mixture_consistency):
                for stem, block in blocks.items():
                    writers[stem].write(block)
                done += next(iter(blocks.values())).shape[1]
                reporter.report("write", done / recording.sample_rate)
        for stem, writer in writers.items():
            if writer.clipped_samples:
                warnings.append(
                    f"{writer.clipped_samples} samples of {stem} exceed full scale and were clipped; "
                    "write float32 to keep them."
                )
        unscaled.mixture.close()
        reporter.finish()
        return self._result(recording, unscaled, done, {}, files, began, [*notes, *warnings])

    def _run(self, recording: Recording, budget: Budget, reporter: Reporter, warnings: list[str]) -> Unscaled:
        engine = self.network.engine(self._choice)
        if self.mode == "reference":
            return separate_as_evaluated(engine, recording, self.device, reporter)
        size = self.batch_size or automatic_batch_size(
            engine.config, self.window.window, self.device, self.precision.storage
        )
        runner = BatchRunner(size, warnings.append)
        home = _home(self.device, recording)
        unscaled = separate_in_windows(engine, runner, self.window, recording, self.device, home, budget, reporter)
        if runner.batch_size < size:
            self.batch_size = runner.batch_size
        return unscaled

    def _result(
        self,
        recording: Recording,
        unscaled: Unscaled,
        length: int,
        stems: dict[str, Tensor],
        files: dict[str, Path],
        began: float,
        warnings: list[str],
    ) -> Separation:
        return Separation(
            stems=stems,
            sample_rate=recording.sample_rate,
            gains={stem: tuple(unscaled.gains[:, i].tolist()) for i, stem in enumerate(INSTRUMENTS)},
            duration=length / recording.sample_rate,
            seconds=time.perf_counter() - began,
            backend=self.backend,
            device=str(self.device),
            precision=self.precision.value,
            mode=self.mode,
            warnings=(*recording.warnings(), *warnings),
            files=files,
        )


def _device(wanted: str | torch.device, network: NetworkMethods) -> torch.device:
    if wanted == "auto":
        if network.device.type != "cpu":
            return network.device
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"Unknown device {wanted!r}; choose auto, cpu, cuda or cuda:1.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BackendUnavailableError(
                "device='cuda' was asked for and torch finds no CUDA device: install a CUDA build of torch and a driver, "
                "or separate on the CPU."
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise BackendUnavailableError(f"There is no {device}: torch finds {torch.cuda.device_count()} CUDA devices.")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device


def _home(device: torch.device, recording: Recording) -> torch.device:
    """Where signals wait between the passes: on the GPU if they take a quarter of its free memory at most, else on the CPU."""
    if device.type != "cuda" or recording.samples is None:
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(device)
    # The recording, its resampled forms (not larger than twice that), and four stems.
    size = 7 * 4 * recording.samples * recording.channels
    return device if size < free / 4 else torch.device("cpu")


def _file_names(folder: Path, name: str, track: str, recipe: Recipe, format: str) -> dict[str, Path]:
    try:
        files = {stem: folder / f"{name.format(track=track, stem=stem)}.{format}" for stem in recipe}
    except (LookupError, ValueError) as error:
        raise AudioWriteError(f"The name {name!r} cannot be filled in: use {{track}} and {{stem}} only.") from error
    if len(set(files.values())) < len(files):
        raise AudioWriteError(f"The stems would overwrite one another: put {{stem}} into the name {name!r}.")
    return files


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioWriteError(f"The folder {folder} cannot be made ({error.strerror}): choose another.") from error
