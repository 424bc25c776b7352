"""Giving a network that is already in memory the fast forward and inference, without touching its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..backends import Choice, Request, resolve
from ..backends.watch import collect_parameters
from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..precision import Precision
from .comparison import compare_with_reference
from .methods import NetworkMethods
from .modules import Stage

__all__ = ["AccelerationReport", "accelerate", "restore"]

METHODS = ("forward", "inference", "compute_stats")


@dataclass(frozen=True)
class AccelerationReport:
    """Result of :func:`accelerate`: names replaced, and names kept with the reason."""

    backend: str
    """Backend that serves inference now."""
    training_backend: str
    precision: str
    replaced: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [
            f"inference by {self.backend}, training by {self.training_backend}, in {self.precision}",
            f"replaced: {', '.join(self.replaced)}",
        ]
        return "\n".join(lines + [f"kept: {name} ({why})" for name, why in self.kept])


class _Accelerated(NetworkMethods):
    """A class put before a network's own class; the network keeps its own parameters and submodules."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # A class made at run time cannot be pickled: pickle the original class, and accelerate it again when loading.
        state = {k: v for k, v in self.__dict__.items() if k not in ("_choice", "_prepared")}
        choice: Choice = self.__dict__["_choice"]
        return _rebuild, (type(self).__bases__[1], state, choice)


_classes: dict[type[nn.Module], type[nn.Module]] = {}
"""The accelerated class of each original class, made once, so that two accelerated networks of one class share a
class."""


def accelerate(
    network: nn.Module, backend: str = "auto", dtype: str | torch.dtype | None = None, check: bool = True
) -> AccelerationReport:
    """Replace the forward, inference and statistics of a network of the authors' program (or of this library).

    The parameters are shared, not copied: an existing optimiser continues to train them. :func:`restore` undoes it. Before it
    replaces anything, the network runs its own inference and forward on a short signal: one that computes anything else than
    the original does is refused, with the first part that differs.

    Args:
        network: a ``MultiTasNet`` of either program.
        backend: as in :class:`use_backend`, for this network only.
        dtype: precision of the computation; None means that of the parameters.
        check: False replaces the methods without that comparison, whatever they compute.

    Returns:
        what was replaced, what was not, and why.

    Raises:
        ConfigError: if the network is not a Meta-TasNet, or computes something else; with what differs.
        BackendUnavailableError: if the backend cannot serve inference.
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
    """Undo :func:`accelerate`; a network that was not accelerated is returned as it is."""
    for name in ("_choice", "_prepared"):
        network.__dict__.pop(name, None)
    if isinstance(network, _Accelerated):
        network.__class__ = type(network).__bases__[1]
    return network


def _check(network: nn.Module) -> MetaTasNetConfig:
    """Return the network's configuration, if its parameters match it."""
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ConfigError(f"Accelerate the network inside the {type(network).__name__}: accelerate(network.module).")
    if isinstance(network, nn.Module) and "_orig_mod" in network._modules:
        # The wrapper passes attributes on, so it looks like its network, but it would still call what it has compiled.
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
