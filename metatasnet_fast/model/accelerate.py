"""Give a network in memory the fast forward, inference and statistics, without changing its parameters.

The names and shapes of the parameters do not show whether a fork of the authors' program changed the arithmetic.
Therefore, the network first runs its own inference and forward on a short signal, and the results are compared with the
reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import Choice, Request, get_backend, resolve
from ..backends.cache import collect_parameters
from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..precision import Precision
from .engine import Engine
from .methods import NetworkMethods
from .network import Stage

__all__ = ["AccelerationReport", "accelerate", "restore"]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest allowed difference relative to the largest value, by the dtype of the parameters. It is at least ten times
the rounding error."""

EXTRA_FRAMES = 8
ADVICE = "accelerate would replace it; repair the difference, or pass check=False to replace it all the same."


@dataclass
class _Seen:
    """Results of the network's own modules during inference, by the number of the stage."""

    encoder: dict[int, Tensor] = field(default_factory=dict)
    mask: dict[int, Tensor] = field(default_factory=dict)
    decoder: dict[int, Tensor] = field(default_factory=dict)


def compare_with_reference(network: nn.Module, config: MetaTasNetConfig) -> None:
    """Run a network's own methods on a short signal, and compare the results with the reference. The network stays as
    it is.

    Raises:
        ConfigError: if a result differs; the message names the first part that differs, such as the encoder of a stage,
            or the loss. Also if the network's own methods fail.
    """
    parameter = next(network.parameters())
    tolerance = TOLERANCE.get(parameter.dtype, 1e-3)
    mixes, sources, masks = _signals(config, parameter)
    with _undisturbed(network, parameter.device):
        try:
            with _watching(network) as seen:
                outputs = network.inference([mix[:1] for mix in mixes], 1)  # type: ignore[operator]
            loss = network(mixes, sources, masks)[0]
        except Exception as error:
            raise ConfigError(
                f"The network's own methods fail on a short signal ({type(error).__name__}: {error}), so nothing shows that "
                "they compute what would replace them: repair them, or pass check=False to replace them all the same."
            ) from error
        engine = _reference(network, config, parameter)
        partial: Tensor | None = None
        for index, mix in enumerate(mixes):
            prepared, stage = engine.prepared[index], f"stage {index + 1}"
            latent = engine.backend.encode(prepared, mix[:1])
            _compare(f"The encoder of {stage}", seen.encoder.get(index), latent, tolerance)
            partial = engine.backend.mask(prepared, latent, partial)
            own = seen.mask.get(index)
            _compare(
                f"The masking network of {stage}",
                None if own is None else own * latent[:, None].to(own),
                partial,
                tolerance,
            )
            estimate = engine.backend.decode(prepared, partial.flatten(0, 1))
            _compare(f"The decoder of {stage}", seen.decoder.get(index), estimate, tolerance)
            _compare(f"The inference of {stage}", outputs[index], estimate[None], tolerance)
        expected, _ = engine.loss(mixes, sources, masks)
        _compare("The loss", loss, expected.reshape(1), tolerance)


def _compare(what: str, own: Any, expected: Tensor, tolerance: float) -> None:
    """Raise :class:`ConfigError` if the result ``own`` of the part ``what`` differs from the expected one.

    A result that is no tensor is skipped: the results of later parts show errors, too.
    """
    if not isinstance(own, Tensor):
        return
    if own.numel() != expected.numel():
        raise ConfigError(f"{what} returns {tuple(own.shape)}, not {tuple(expected.shape)}: {ADVICE}")
    own, expected = own.detach().double().reshape(-1), expected.detach().double().reshape(-1)
    difference = float((own - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= tolerance:
        raise ConfigError(f"{what} differs from the original's by {difference:.1e} of its largest value: {ADVICE}")


def _reference(network: nn.Module, config: MetaTasNetConfig, parameter: Tensor) -> Engine:
    precision = Precision.float64 if parameter.dtype == torch.float64 else Precision.float32
    parameters = [collect_parameters(stage) for stage in network.get_submodule("stages").children()]
    return Engine.of(config, get_backend("reference"), precision, parameters)


def _signals(config: MetaTasNetConfig, like: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return mixtures (2, 1, T), sources (2, I, 1, T) and masks (2, I, 1) of noise for each stage.

    They are only EXTRA_FRAMES frames longer than the shortest signals that the encoder accepts.
    """
    generator = torch.Generator().manual_seed(0)
    mixes, sources, masks = [], [], []
    for index in range(config.stages_num):
        length = (config.shortest_frames + EXTRA_FRAMES) * config.stage(index).W
        source = 0.1 * torch.randn(2, len(config.instruments), 1, length, generator=generator, dtype=torch.float64)
        sources.append(source.to(like))
        mixes.append(sources[-1].sum(1))
        masks.append(torch.ones(source.shape[:3]).to(like))
    return mixes, sources, masks


@contextlib.contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Run the block in evaluation mode without gradients. Then restore modes, buffers and the state of random
    generators."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    devices: Sequence[torch.device] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        network.eval()
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
            for module, training in modes:
                module.training = training


@contextlib.contextmanager
def _watching(network: nn.Module) -> Iterator[_Seen]:
    """Yield an object that keeps what the encoder, the masking network and the decoder of every stage return in the
    block."""
    seen, handles = _Seen(), []

    def keep(kept: dict[int, Tensor], index: int) -> Any:
        return lambda module, inputs, output: kept.setdefault(
            index, output.clone() if isinstance(output, Tensor) else output
        )

    try:
        for index, stage in enumerate(network.get_submodule("stages").children()):
            for name, kept in (("encoder", seen.encoder), ("mask", seen.mask), ("decoder", seen.decoder)):
                module = getattr(stage, name, None)
                if isinstance(module, nn.Module):
                    handles.append(module.register_forward_hook(keep(kept, index)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


METHODS = ("forward", "inference", "compute_stats")


@dataclass(frozen=True)
class AccelerationReport:
    """Result of :func:`accelerate`: what was replaced, and what was not, with the reason."""

    backend: str
    """Backend that inference uses now."""
    training_backend: str
    """Backend that training uses now; ``nothing`` if no backend can train this network here."""
    precision: str
    replaced: tuple[str, ...]
    """Names of the methods that were replaced."""
    kept: tuple[tuple[str, str], ...]
    """Pairs: what was not replaced (the parameters, hooks, the training), and the reason."""

    def __str__(self) -> str:
        lines = [
            f"inference by {self.backend}, training by {self.training_backend}, in {self.precision}",
            f"replaced: {', '.join(self.replaced)}",
        ]
        return "\n".join(lines + [f"kept: {name} ({why})" for name, why in self.kept])


class _Accelerated(NetworkMethods):
    """Base class of accelerated networks, put before a network's own class. Parameters and submodules stay the
    network's."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # A class made at run time cannot be pickled: pickle the original class, and accelerate it again when loading.
        state = {k: v for k, v in self.__dict__.items() if k not in ("_choice", "_prepared")}
        choice: Choice = self.__dict__["_choice"]
        return _rebuild, (type(self).__bases__[1], state, choice)


_classes: dict[type[nn.Module], type[nn.Module]] = {}
"""The accelerated class of each original class. It is made once, so that accelerated networks of one class share it."""


def accelerate(
    network: nn.Module, backend: str = "auto", dtype: str | torch.dtype | None = None, check: bool = True
) -> AccelerationReport:
    """Replace the forward, inference and statistics of a network of the authors' program (or of this library).

    The parameters stay the network's own, so that an existing optimiser continues to train them. :func:`restore` undoes
    the replacement. First, the network runs its own inference and forward on a short signal. A network that does not
    compute what the original computes is refused, with the first part that differs.

    Args:
        network: a ``MultiTasNet`` of either program.
        backend: as in :class:`use_backend`, for this network only.
        dtype: precision of the computation; None for the dtype of the parameters.
        check: False to replace the methods without that comparison, whatever they compute.

    Returns:
        what was replaced, what was not, and why.

    Raises:
        ConfigError: if the network is not a Meta-TasNet, or computes something else; the message says what differs.
        BackendUnavailableError: if the backend cannot be used for inference.
    """
    choice = Choice.parse(backend, dtype)
    config = _check(network)
    precision = choice.precision or Precision.parse(next(network.parameters()).dtype)
    device = next(network.parameters()).device
    serving = resolve(backend, Request(device, precision, False, config)).name
    training, kept = serving, _kept(network)
    try:
        training = resolve(backend, Request(device, precision, True, config)).name
    except RuntimeError as error:
        training = "nothing"
        kept = (*kept, ("training", str(error)))
    if not isinstance(network, NetworkMethods):
        if check:
            compare_with_reference(network, config)
        original = type(network)
        if original not in _classes:
            _classes[original] = type(f"Accelerated{original.__name__}", (_Accelerated, original), {})
        network.__class__ = _classes[original]
    network.__dict__["_choice"] = choice
    return AccelerationReport(serving, training, precision.value, METHODS, kept)


def restore(network: nn.Module) -> nn.Module:
    """Undo :func:`accelerate`, and return the network. A network that was not accelerated stays as it is."""
    for name in ("_choice", "_prepared"):
        network.__dict__.pop(name, None)
    if isinstance(network, _Accelerated):
        network.__class__ = type(network).__bases__[1]
    return network


def _check(network: nn.Module) -> MetaTasNetConfig:
    """Return the network's configuration; raise :class:`ConfigError` if the parameters do not match this
    configuration."""
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ConfigError(f"Accelerate the network inside the {type(network).__name__}: accelerate(network.module).")
    if isinstance(network, nn.Module) and "_orig_mod" in network._modules:
        # The wrapper passes attributes on, so it looks like the network. But calls would still run the compiled code.
        raise ConfigError("Accelerate the network inside torch.compile's wrapper: accelerate(network._orig_mod).")
    stages = getattr(network, "stages", None)
    if not isinstance(stages, nn.ModuleList) or not hasattr(network, "args"):
        raise ConfigError(f"{type(network).__name__} is no Meta-TasNet: it needs the attributes stages and args.")
    config = MetaTasNetConfig.from_namespace(network.args)
    if len(stages) != config.stages_num:
        raise ConfigError(f"The network has {len(stages)} stages, its args say {config.stages_num}.")
    for index, stage in enumerate(stages):
        found = {name: tuple(p.shape) for name, p in collect_parameters(stage).items()}
        with torch.device("meta"):
            expected = {name: tuple(p.shape) for name, p in Stage(config, index).named_parameters()}
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if differing:
            name = differing[0]
            raise ConfigError(
                f"Stage {index} is not the network its args describe: {len(differing)} parameters differ, for example {name} "
                f"is {found.get(name, 'missing')} instead of {expected.get(name, 'absent')}."
            )
    return config


def _kept(network: nn.Module) -> tuple[tuple[str, str], ...]:
    kept = [("parameters", "shared, so that optimisers and references stay valid")]
    for name, module in network.named_modules():
        if name and (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks):
            kept.append((f"hooks of {name}", "they no longer run: the module is not called any more"))
    return tuple(kept)


def _rebuild(original: type[nn.Module], state: dict[str, Any], choice: Choice) -> nn.Module:
    make: Callable[[type[nn.Module]], nn.Module] = object.__new__
    network = make(original)
    network.__dict__.update(state)
    accelerate(network, choice.backend, choice.precision, check=False)  # the comparison was made before pickling
    return network
