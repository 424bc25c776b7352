"""The front door: a recording in, its stems out."""

from __future__ import annotations

import os
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor

from ..backends import Choice, Request, resolve
from ..config import INSTRUMENTS
from ..errors import BackendUnavailableError, ConfigError
from ..model.methods import NetworkMethods
from ..precision import Precision
from .progress import ProgressCallback
from .result import Separation, Stems

__all__ = ["Separator"]

Mode: TypeAlias = Literal["fast", "reference"]
MODES = ("fast", "reference")


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
        raise NotImplementedError

    def describe(self) -> str:
        """One line: device, backend, precision and mode."""
        raise NotImplementedError

    def separate(self, waveform: Tensor | npt.NDArray[Any], sample_rate: int, stems: Stems = None) -> Separation:
        """Separate a recording in memory.

        Args:
            waveform: (channels, samples) or (samples,), a tensor on any device or an array; floating point, or int16 or int32, which
                are scaled to [-1, 1). Samples that are NaN or infinite count as 0, with a warning in the result.
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
        raise NotImplementedError

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
        raise NotImplementedError
