"""The network's configuration: the authors' hyperparameters under the authors' names.

Source: the argument parser of the authors' ``train.py``; Samuel et al. 2020, section 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, ShapeError

__all__ = ["INSTRUMENTS", "MetaTasNetConfig", "StageConfig"]

INSTRUMENTS = ("drums", "bass", "other", "vocals")
"""The instruments of the paper. They are a configuration's default."""

MOST_INSTRUMENTS = 32

RESERVED_NAMES = ("mixture", "mix", "accompaniment")
"""Names that no instrument may have: other signals in data sets and results have these names."""

GROUPS = 8
"""Number of groups of a group norm, per instrument."""


@dataclass(frozen=True)
class StageConfig:
    """The sizes of one stage, derived from :class:`MetaTasNetConfig`.

    Stage ``s``, counted from 0, sees the mixture at ``2^s`` times the rate of the first stage. Kernels, strides and latent
    widths are ``2^s`` times as large, too, so that every stage has the same number of latent frames.
    """

    index: int
    N: int
    """Number of latent channels."""
    W: int
    """Stride of the encoder: samples from one latent frame to the next."""
    B: int
    H: int
    sampling_rate: int
    num_mels: int
    layers: int
    stack: int
    generated: bool
    residual_bias: bool
    kernel_sizes: tuple[int, ...]
    """Number of taps of each of the encoder's filters, shortest first; the decoder's filters have the same numbers."""
    instruments: int = len(INSTRUMENTS)
    """Number of instruments, the length of every instrument axis."""
    softmax: int = len(INSTRUMENTS)
    """Number of instruments, from the first one on, that share a softmax. The mask of each other instrument is a sigmoid."""

    @property
    def partial_channels(self) -> int:
        """Return the number of channels of the previous stage's masked latent; 0 in the first stage, which receives none."""
        return self.N // 2 if self.index else 0

    @property
    def in_channels(self) -> int:
        """Return the number of input channels of the masking network."""
        return self.N + self.partial_channels

    @property
    def fft_scale(self) -> int:
        return self.sampling_rate // 8000

    @property
    def n_fft(self) -> int:
        return 1024 * self.fft_scale

    @property
    def hop(self) -> int:
        return 256 * self.fft_scale

    @property
    def has_spectrogram(self) -> bool:
        """Return whether the encoder has the spectrogram branch."""
        return self.num_mels > 0

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def encoder_width(self) -> int:
        """Return the number of outputs of each encoder filter."""
        return self.N // 4

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Return the number of inputs of each decoder filter, in the order of ``kernel_sizes``."""
        return tuple(self.N // 2 ** (i + 1) for i in range(len(self.kernel_sizes)))

    @property
    def dilations(self) -> tuple[int, ...]:
        """Return the dilation, in frames, of every block of the masking network, in order."""
        return tuple(2**i for i in range(self.layers)) * self.stack

    @property
    def shortest(self) -> int:
        """Return the smallest number of samples that the stage accepts, rounded up to a multiple of the stride.

        The centred, reflect-padded STFT needs more than half a window.
        """
        if not self.has_spectrogram:
            return self.W
        return -(-(self.n_fft // 2 + 1) // self.W) * self.W

    def check_signal(self, shape: tuple[int, ...]) -> None:
        """Raise :class:`ShapeError` unless ``shape`` is (n, 1, T) with enough samples for the encoder."""
        if len(shape) != 3 or shape[1] != 1:
            raise ShapeError(f"A signal must have shape (n, 1, samples), got {tuple(shape)}.")
        if shape[2] < self.W or (self.has_spectrogram and shape[2] <= self.n_fft // 2):
            raise ShapeError(
                f"{shape[2]} samples at {self.sampling_rate} Hz are too few: "
                f"pad to {self.shortest} or more (the Separator does it for you)."
            )

    def check_latent(self, shape: tuple[int, ...]) -> None:
        """Raise :class:`ShapeError` unless ``shape`` is (n, N, frames)."""
        if len(shape) != 3 or shape[1] != self.N:
            raise ShapeError(f"A latent must have shape (n, {self.N}, frames), got {tuple(shape)}.")

    def check_partial(self, partial: tuple[int, ...] | None, latent: tuple[int, ...]) -> None:
        """Raise :class:`ShapeError` unless the partial latent fits the stage, and ``latent``, the latent's shape (n, N,
        frames). Both arguments are shapes; ``partial`` is None if there is no partial latent."""
        shape = (latent[0], self.instruments, self.partial_channels, latent[2])
        expected = shape if self.partial_channels else None
        found = None if partial is None else tuple(partial)
        if found != expected:
            raise ShapeError(f"Stage {self.index} expects a partial latent of shape {expected}, got {found}.")


@dataclass(frozen=True)
class MetaTasNetConfig:
    """Meta-TasNet's hyperparameters; the defaults are the authors'.

    Raises:
        ConfigError: for a value with which the network cannot be built.
    """

    B: int = 160
    """Number of channels of the masking network's residual stream."""
    H: int = 160
    """Number of hidden channels of a block."""
    N: int = 440
    """Number of latent channels of the first stage."""
    L: int = 20
    """Length of the shortest encoder kernel of the first stage, in samples."""
    W: int = 20
    """Encoder stride of the first stage, in samples."""
    E_1: int = 8
    """Length of an instrument's embedding."""
    E_2: int = 5
    """Width of the bottleneck before each generated layer."""
    filters: int = 3
    kernel: int = 3
    layers: int = 6
    stack: int = 3
    num_mels: int = 256
    """Number of learned mel bands of the encoder's spectrogram branch; 0 leaves the branch out."""
    stages_num: int = 3
    sampling_rate: int = 8000
    """Sampling rate of the first stage, in hertz."""
    dropout: float = 0.0
    independent_params: bool = False
    residual_bias: bool = False
    similarity_loss_weight: float = 2.0
    dissimilarity_loss_weight: float = 3.0
    reconstruction_loss_weight: float = 0.05
    instruments: tuple[str, ...] = INSTRUMENTS
    """Names of 1 to 32 instruments, in the order of every instrument axis. A single instrument has a sigmoid as its mask."""
    added_instruments: int = 0
    """Number of instruments, the last ones, that were added to a trained network. Their masks are sigmoids, so that the softmax
    of the other instruments does not change."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "instruments", _checked_names(self.instruments))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                hint = ": the authors' network cannot be built with it either" if field.name == "E_1" else ""
                raise ConfigError(f"{field.name} must be an integer, got {value!r}{hint}.")
            if field.type == "float" and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ConfigError(f"{field.name} must be a number, got {value!r}.")
            if field.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"{field.name} must be True or False, got {value!r}.")
        positive = ("B", "H", "N", "L", "W", "E_1", "E_2", "filters", "layers", "stack", "stages_num")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_mels < 0:
            raise ConfigError(f"num_mels must be at least 0 (no spectrogram branch), got {self.num_mels}.")
        if not 0 <= self.added_instruments < len(self.instruments):
            raise ConfigError(
                f"added_instruments must leave at least one of {len(self.instruments)} instruments, "
                f"got {self.added_instruments}."
            )
        if self.kernel != 3:
            raise ConfigError(
                f"kernel must be 3 (the padding of the dilated convolution fits no other), got {self.kernel}."
            )
        for name in ("N", "B", "H"):
            if getattr(self, name) % GROUPS:
                raise ConfigError(
                    f"{name} must be a multiple of {GROUPS} (the group norms), got {getattr(self, name)}."
                )
        if self.N < 2**self.filters:
            raise ConfigError(
                f"N={self.N} is too small for {self.filters} decoder filters; it must be {2**self.filters}."
            )
        if any((self.L * 2**i - self.W) % 2 or self.L * 2**i < self.W for i in range(self.filters)):
            raise ConfigError(
                f"Every kernel L * 2^l must exceed W by an even number (0 included), got L={self.L}, W={self.W}."
            )
        if self.sampling_rate < 8000:
            raise ConfigError(f"sampling_rate must be at least 8000 Hz, got {self.sampling_rate}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}.")
        for name in ("similarity_loss_weight", "dissimilarity_loss_weight", "reconstruction_loss_weight"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be finite, got {getattr(self, name)}; 0 leaves that loss out.")

    @classmethod
    def from_namespace(cls, args: object) -> MetaTasNetConfig:
        """Return the settings in the authors' ``argparse.Namespace``, or in any object with the same attributes.

        Raises:
            ConfigError: for a missing attribute or an impossible value.
        """
        if isinstance(args, MetaTasNetConfig):
            return args
        names = [
            field.name for field in dataclasses.fields(cls) if field.name not in EXTENSIONS or hasattr(args, field.name)
        ]
        missing = [name for name in names if not hasattr(args, name)]
        if missing:
            raise ConfigError(
                f"The arguments lack {', '.join(missing)}: pass a MetaTasNetConfig or the authors' Namespace."
            )
        return cls(**{name: getattr(args, name) for name in names})

    def to_namespace(self, **extra: Any) -> argparse.Namespace:
        """Return these settings in the authors' form, with ``extra`` attributes such as ``batch_size``."""
        return argparse.Namespace(**{**self.to_dict(), **extra})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetaTasNetConfig:
        """Return the settings in the result of :meth:`to_dict`; raise :class:`ConfigError` for unknown names."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"Settings must be names with values, got {type(values).__name__}.")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"Unknown settings {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name; those in EXTENSIONS are left out if they have the values that stand there."""
        values = dataclasses.asdict(self)
        values["instruments"] = list(self.instruments)
        for name, default in EXTENSIONS.items():
            if values[name] == default:
                del values[name]
        return values

    @classmethod
    def from_json(cls, text: str) -> MetaTasNetConfig:
        """Return the settings in the result of :meth:`to_json`.

        Raises:
            ConfigError: for a text that is no JSON object of settings.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"The configuration is not JSON ({error}); write it with to_json().") from error
        return cls.from_dict(values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def stage(self, index: int) -> StageConfig:
        """Return the sizes of stage ``index``, counted from 0."""
        if not 0 <= index < self.stages_num:
            raise ConfigError(f"There is no stage {index}: the network has {self.stages_num}.")
        m = 2**index
        return StageConfig(
            index=index,
            N=m * self.N,
            W=m * self.W,
            B=self.B,
            H=self.H,
            sampling_rate=m * self.sampling_rate,
            num_mels=self.num_mels,
            layers=self.layers,
            stack=self.stack,
            generated=not self.independent_params,
            residual_bias=self.residual_bias,
            kernel_sizes=tuple(m * self.L * 2**i for i in range(self.filters)),
            instruments=len(self.instruments),
            softmax=self.softmax,
        )

    @property
    def softmax(self) -> int:
        """Return how many instruments, from the first one on, share a softmax; 0 if only one would, which has a sigmoid."""
        competing = len(self.instruments) - self.added_instruments
        return competing if competing > 1 else 0

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        return tuple(self.stage(i) for i in range(self.stages_num))

    @property
    def shortest_frames(self) -> int:
        """Return the smallest number of latent frames that every stage can process."""
        return max(-(-stage.shortest // stage.W) for stage in self.stages)

    @property
    def output_rate(self) -> int:
        """Return the sampling rate of the last stage, in hertz."""
        return self.stage(self.stages_num - 1).sampling_rate


EXTENSIONS: dict[str, Any] = {"instruments": list(INSTRUMENTS), "added_instruments": 0}
"""The settings that the authors' program does not have, with the values that describe the authors' network."""


def _checked_names(names: Any) -> tuple[str, ...]:
    """Return the instrument names as a tuple; raise :class:`ConfigError` unless they can name stems and files."""
    if isinstance(names, str) or not isinstance(names, (tuple, list)):
        raise ConfigError(f"instruments must be a list of names, got {names!r}.")
    found = tuple(names)
    if not 1 <= len(found) <= MOST_INSTRUMENTS:
        raise ConfigError(f"There must be 1 to {MOST_INSTRUMENTS} instruments, got {len(found)}.")
    for name in found:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
            raise ConfigError(f"An instrument's name has letters, digits, - and _ only, got {name!r}.")
        if name.lower() in RESERVED_NAMES:
            raise ConfigError(
                f"No instrument can be called {name!r}: another signal has that name. Choose another one."
            )
    if len({name.lower() for name in found}) != len(found):
        raise ConfigError(
            f"Instruments must have different names (upper and lower case are one), got {', '.join(found)}."
        )
    return found
