"""Define the methods that :class:`MultiTasNet` and an accelerated network share.

Source: original ``model/tasnet.py``, ``MultiTasNet``; ``model/spectrogram.py``, ``compute_stats``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import Choice, PreparedCache, Request, current_choice, get_backend, resolve
from ..backends.cache import collect_parameters
from ..config import MetaTasNetConfig
from ..errors import ConfigError, EmptyAudioError, ShapeError
from ..precision import Precision
from ..reference.network import log_power
from .engine import Engine, check_mixes

__all__ = ["NetworkMethods", "RunningDeviation", "plan_chunks"]


@dataclass(frozen=True)
class Chunk:
    """A range of samples at the first stage's rate: ``start`` to ``end`` are processed, ``begin`` to ``stop`` are
    kept."""

    start: int
    end: int
    begin: int
    stop: int

    def separate(self, engine: Engine, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        """Separate this range of the mixtures (b, 1, T 2^s) of each stage ``s``.

        Return the kept samples of the ``wanted`` stages, (b, I, 1, n 2^s), by stage.
        """
        first, last = self.begin - self.start, min(self.stop, self.end) - self.start  # the end may be cut
        parts = [mix[..., self.start * 2**s : self.end * 2**s] for s, mix in enumerate(mixes)]
        return {s: x[..., first * 2**s : last * 2**s] for s, x in engine.separate(parts, wanted).items()}


def plan_chunks(length: int, chunks: int, context: int, stride: int) -> list[Chunk]:
    """Cut ``length`` samples into parts: part c begins at ``int(length / chunks * c + 0.5)``. Each part is processed
    with ``context`` samples on both sides, as far as the signal reaches.

    Each processed range is cut to a multiple of ``stride``. A range that starts at 0 loses samples at the end, any
    other range at the start. So a single range over the whole signal misses up to ``stride - 1`` samples at the end, as
    in the original.
    """
    edges = [int(length / chunks * c + 0.5) for c in range(chunks)] + [length]
    plan = []
    for begin, stop in zip(edges[:-1], edges[1:], strict=True):
        start, end = max(0, begin - context), min(length, stop + context)
        excess = (end - start) % stride
        if start == 0:
            end -= excess
        else:
            start += excess
        plan.append(Chunk(start, end, begin, stop))
    return plan


ITEMS = 5000
"""Number of items after which no further batch is read for the statistics."""


class RunningDeviation:
    """Running computation of the unbiased ``x.std(dim=-1)``, where x is all (channels, n) blocks together.

    Count, mean and sum of squared deviations are merged block by block in float64, so that a large constant part costs no
    accuracy. Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, block: Tensor) -> None:
        count = block.shape[-1]
        if count == 0:
            return
        wide = (block.cpu() if block.device.type == "mps" else block).double()
        variance, mean = (x.cpu() for x in torch.var_mean(wide, dim=-1, correction=0))
        total = self._count + count
        delta = mean - self.mean
        self.mean += delta * (count / total)
        self._squares += variance * count + delta.square() * (self._count * count / total)
        self._count = total

    def deviation(self) -> Tensor:
        """Return the standard deviation, (channels,) float64; 0 for fewer than two samples."""
        return (self._squares / max(1, self._count - 1)).sqrt()


@torch.no_grad()
def compute_stats(config: MetaTasNetConfig, spectrograms: Sequence[nn.Module], loader: Iterable[Any]) -> None:
    """Write the mean and the unbiased standard deviation of each stage's log-power spectrogram into ``mean`` and
    ``std`` of the stage's spectrogram module. Both are over batch and frames.

    Args:
        config: the network's settings.
        spectrograms: for each stage, a module with the parameters ``window``, ``mean`` and ``std``.
        loader: yields batches whose first element is a list of mixtures, (b, 1, T 2^s) for each stage ``s``. The loader
            is read once for each stage, as in the original, so that training then draws the same random numbers. An
            iterator, which can be read only once, is read once for all stages.

    Raises:
        EmptyAudioError: if the loader yields no batch.
    """
    stages = list(enumerate(spectrograms))
    for part in [stages] if isinstance(loader, Iterator) else [[stage] for stage in stages]:
        running = [RunningDeviation(config.stage(index).bins) for index, _ in part]
        items = 0
        for mixes, *_ in loader:
            for (index, spectrogram), measured in zip(part, running, strict=True):
                window: Any = spectrogram.window
                found = log_power(mixes[index].to(window), window, config.stage(index))
                measured.add(found.transpose(0, 1).flatten(1))
            items += mixes[0].shape[0]
            if items > ITEMS:
                break
        if items == 0:
            raise EmptyAudioError("The training loader is empty: there is nothing to compute statistics from.")
        for (_, spectrogram), measured in zip(part, running, strict=True):
            for name, value in (("mean", measured.mean), ("std", measured.deviation())):
                getattr(spectrogram, name).copy_(value[None, :, None])


CONTEXT_SECONDS = 8
"""Seconds of context that ``inference`` gives each chunk on both sides."""


class NetworkMethods(nn.Module):
    """Forward, inference and statistics of a network that has ``stages`` and ``args``."""

    stages: nn.ModuleList
    args: Any

    @property
    def config(self) -> MetaTasNetConfig:
        """The settings in ``args``."""
        return MetaTasNetConfig.from_namespace(self.args)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self._find_parameters()[0].values())).device

    def engine(self, choice: Choice | None = None, training: bool = False) -> Engine:
        """Return the engine that runs the network on a backend.

        Args:
            choice: a backend and precision; by default the network's own choice, else that of :class:`use_backend`.
            training: True if gradients must flow. If False, the prepared weights are kept until a parameter changes.

        Raises:
            BackendUnavailableError: if the backend cannot be used.
            ConfigError: if a parameter is missing.
        """
        name, number = self._serving(choice, training)
        precision: Precision = getattr(Precision, number)  # torch.compile of 2.8 cannot call an enumeration
        config, backend, parameters = self.config, get_backend(name), self._find_parameters()
        try:
            if training or torch.compiler.is_compiling():
                return Engine.of(config, backend, precision, parameters)
            return Engine(config, backend, precision, self._cache().get(backend, precision, config, parameters))
        except KeyError as error:
            raise ConfigError(
                f"The network has no parameter {error}: a parametrization such as weight_norm or pruning renamed it; remove it."
            ) from error

    def weights_changed(self) -> None:
        """Make the next call read every parameter again.

        This is needed only after single values were written through ``.data``. Without this call, such a write is
        noticed after 64 calls. Every other change is noticed at once.
        """
        self._cache().look_closely()

    def forward(
        self, input_mixes: Sequence[Tensor], separated_inputs: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return loss and statistics of a training batch.

        Args:
            input_mixes: (b, 1, T 2^s) for each stage ``s``; T is a multiple of ``W``.
            separated_inputs: (b, I, 1, T 2^s) for each stage, the sources in the order of the I instruments.
            masks: (b, I, 1) for each stage, 1 where the source is not silent, else 0.

        Returns:
            the loss, (1,), and statistics, (1, I * stages + 3). These are the SI-SDR in dB of every instrument, stage
            by stage; then the last stage's reconstruction SI-SDR in dB, dissimilarity and similarity.

        Raises:
            ShapeError: for inputs of other shapes.
            BackendUnavailableError: if the backend cannot be used.
        """
        config = self.config
        check_mixes(config, input_mixes, self.device)
        if input_mixes[0].shape[-1] % config.W:
            raise ShapeError(f"A training length must be a multiple of W={config.W}, got {input_mixes[0].shape[-1]}.")
        if not len(separated_inputs) == len(masks) == config.stages_num:
            raise ShapeError(
                f"The network has {config.stages_num} stages and needs sources and a mask for each, "
                f"got {len(separated_inputs)} and {len(masks)}."
            )
        for mix, source, mask in zip(input_mixes, separated_inputs, masks, strict=True):
            batch, _, length = mix.shape
            expected = (batch, len(config.instruments), 1, length)
            if source.shape != expected or mask.shape != expected[:3]:
                raise ShapeError(
                    f"For a mixture {tuple(mix.shape)} the sources must be {expected} and the mask {expected[:3]}, "
                    f"got {tuple(source.shape)} and {tuple(mask.shape)}."
                )
        dropout = config.dropout if self.training else 0.0
        engine = self.engine(training=dropout > 0 or self._needs_gradients(input_mixes))
        loss, stats = engine.loss(input_mixes, separated_inputs, masks, dropout=engine.random_dropout(dropout))
        return loss.unsqueeze(0), stats.unsqueeze(0)

    def inference(self, input_audio: Sequence[Tensor], n_chunks: int = 4) -> list[Tensor]:
        """Separate a signal that is given at the rate of every stage.

        The signal is cut into ``n_chunks`` parts; each one is processed with 8 s of context on both sides. If a part
        with its context is the whole signal, up to ``(W - 1) 2^s`` samples are missing at the end, as in the original;
        the ``Separator`` loses none. Batches of more than one item are this library's extension.

        Args:
            input_audio: (b, 1, T 2^s) for each stage ``s``.
            n_chunks: number of parts. More parts need less memory.

        Returns:
            the estimates for each stage, (b, I, 1, T 2^s or less), in the input's dtype.

        Raises:
            ShapeError: for inputs of other shapes, or inputs that are shorter than the STFT's reflect padding.
            BackendUnavailableError: if the backend cannot be used.
        """
        config = self.config
        check_mixes(config, input_audio, self.device)
        if not isinstance(n_chunks, int) or n_chunks < 1:
            raise ShapeError(f"n_chunks must be a whole number from 1 on, got {n_chunks!r}.")
        engine = self.engine(training=self._needs_gradients(input_audio))
        context = CONTEXT_SECONDS * config.sampling_rate
        outputs: list[list[Tensor]] = [[] for _ in self.stages]
        for chunk in plan_chunks(input_audio[0].shape[-1], n_chunks, context, config.W):
            for index, estimate in chunk.separate(engine, input_audio, range(config.stages_num)).items():
                outputs[index].append(estimate)
        return [torch.cat(parts, dim=-1) for parts in outputs]

    def compute_stats(self, train_loader: Iterable[Any]) -> None:
        """Set the mean and standard deviation of every stage's log-power spectrogram from training mixtures.

        Args:
            train_loader: yields batches whose first element is a list with a mixture (b, 1, T 2^s) for each stage
                ``s``. It is read once for each stage, or, if it is an iterator, once in all. About 5000 items at most
                are read.
        """
        if self.config.num_mels == 0:
            return
        spectrograms = [self.get_submodule(f"stages.{i}.encoder.spectrogram") for i in range(len(self.stages))]
        compute_stats(self.config, spectrograms, train_loader)

    def _needs_gradients(self, inputs: Sequence[Tensor]) -> bool:
        if not torch.is_grad_enabled():
            return False
        parameters = (p for stage in self._find_parameters() for p in stage.values())
        return any(x.requires_grad for x in inputs) or any(p.requires_grad for p in parameters)

    def _serving(self, choice: Choice | None, training: bool) -> tuple[str, str]:
        """Return the names of the backend and the precision to use. Under ``torch.compile`` this runs once, during
        compilation."""
        choice = choice or self.__dict__.get("_choice") or current_choice()
        config, parameter = self.config, next(iter(self._find_parameters()[0].values()))
        precision = (choice.precision or Precision.parse(parameter.dtype)).on(parameter.device)
        return resolve(choice.backend, Request(parameter.device, precision, training, config)).name, precision.value

    # This does what torch.compiler.assume_constant_result does, which would import the compiler together with this
    # file.
    setattr(_serving, "_dynamo_marked_constant", True)  # noqa: B010

    def _find_parameters(self) -> Sequence[Mapping[str, Tensor]]:
        """Return the parameters of every stage by name, from the cache; while a compiler traces, from the modules."""
        if torch.compiler.is_compiling():
            return [collect_parameters(stage) for stage in self.stages]
        return self._cache().parameters(self)

    def _cache(self) -> PreparedCache:
        cache: PreparedCache = self.__dict__.setdefault("_prepared", PreparedCache())
        return cache

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Convert the parameters, as ``.to()`` and the like do, and drop the prepared weights of the old device or
        dtype."""
        cache = self.__dict__.get("_prepared")
        if cache is not None:
            cache.clear()
        apply: Callable[..., Any] = super()._apply
        return apply(fn, recurse)
