"""Comparison of a network of the authors' class with what this library would put in its place.

The names and shapes of the parameters do not show whether a fork changed the arithmetic. The network therefore runs its own
inference and forward on a short signal, and each stage's result is compared with the reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import get_backend
from ..backends.cache import prepare_all
from ..backends.watch import collect_parameters
from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..precision import Precision
from .engine import Engine

__all__ = ["compare_with_reference"]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest allowed difference, relative to the largest value, by the parameters' dtype: at least ten times what rounding
explains."""

EXTRA_FRAMES = 8
ADVICE = "accelerate would replace it; repair the difference, or pass check=False to replace it all the same."


@dataclass
class _Seen:
    """Results of the network's own modules during inference, stage by stage."""

    encoder: dict[int, Tensor] = field(default_factory=dict)
    mask: dict[int, Tensor] = field(default_factory=dict)
    decoder: dict[int, Tensor] = field(default_factory=dict)


def compare_with_reference(network: nn.Module, config: MetaTasNetConfig) -> None:
    """Run a network's own methods on a short signal, without changing anything, and compare them with the reference.

    Raises:
        ConfigError: naming the first stage, and whether its encoder, masks, decoder or loss differ; or if the network's own
            methods fail.
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
    """Raise if the two results differ. A result that is not a tensor is skipped: later results show its errors."""
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
    backend, modules = get_backend("reference"), network.get_submodule("stages").children()
    stages = [(config.stage(index), collect_parameters(stage)) for index, stage in enumerate(modules)]
    return Engine(config, backend, precision, prepare_all(backend, precision, stages))


def _signals(config: MetaTasNetConfig, like: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return two items of noise for each stage, as short as the encoder accepts: mixtures, sources and masks."""
    shortest = max(-(-config.stage(s).shortest // config.stage(s).W) for s in range(config.stages_num))
    generator = torch.Generator().manual_seed(0)
    mixes, sources, masks = [], [], []
    for index in range(config.stages_num):
        length = (shortest + EXTRA_FRAMES) * config.stage(index).W
        source = 0.1 * torch.randn(2, len(config.instruments), 1, length, generator=generator, dtype=torch.float64)
        sources.append(source.to(like))
        mixes.append(sources[-1].sum(1))
        masks.append(torch.ones(source.shape[:3]).to(like))
    return mixes, sources, masks


@contextlib.contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Run the block in evaluation mode without gradients, then restore modes, gradients and random numbers."""
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
    """Keep what the encoder, the masking network and the decoder of every stage return."""
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
