"""The cases of inference: windows through all stages, and the single jobs of a stage."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend
from ..backends.cache import prepare_all
from ..backends.watch import collect_parameters
from ..config import StageConfig
from ..model import MultiTasNet
from ..model.engine import Engine
from ..precision import Precision
from . import costs
from .cases import Call, Case, Contender
from .contenders import COMPILED, Entrants, compiled
from .draws import varied
from .parity import Outputs
from .recipe import mixtures, sources

__all__ = ["contenders_of", "engine", "frames_of", "inference_case", "item_by_item", "job_cases", "oracle"]


def engine(network: MultiTasNet, backend: Backend, precision: Precision) -> Engine:
    """The network ready for inference, prepared anew."""
    stages = [(network.config.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]
    with torch.no_grad():
        return Engine(network.config, backend, precision, prepare_all(backend, precision, stages))


def oracle(network: MultiTasNet, entrants: Entrants) -> Engine:
    """The same in float64 by plain PyTorch, on the contenders' device."""
    there = copy.deepcopy(network).to(entrants.device)
    return engine(there, entrants.backend("reference"), Precision.float64)


def item_by_item(function: Callable[[list[Tensor]], Tensor], values: Sequence[Tensor], device: torch.device) -> Tensor:
    """``function`` of each item of the batch in float64, together on the CPU: the oracle needs twice the memory of a
    contender, and items do not depend on one another."""
    items = range(len(values[0]))
    return torch.cat([function([v[i : i + 1].to(device, torch.float64) for v in values]).cpu() for i in items])


def frames_of(network: MultiTasNet, seconds: float) -> int:
    """Latent frames of a duration, as many as the shortest input has at least."""
    config = network.config
    frames = round(seconds * config.sampling_rate / config.W)
    return max(frames, *(-(-stage.shortest // stage.W) for stage in config.stages))


def inference_case(network: MultiTasNet, entrants: Entrants, batch: int, seconds: float) -> Case:
    """``batch`` mono windows of ``seconds`` through all stages, the last one's waveforms wanted.

    Args:
        network: on the CPU, in float32.
    """
    config, device = network.config, entrants.device
    frames, last = frames_of(network, seconds), network.config.stages_num - 1
    there = copy.deepcopy(network).to(device)
    base = [mix.float() for mix in mixtures(sources(config, batch, frames * config.W, seed=1))]
    inputs = [mix.to(device) for mix in base]

    def outputs(ready: Engine, mixes: Sequence[Tensor]) -> Outputs:
        return {"estimate": [ready.separate(mixes, {last})[last]]}

    @torch.no_grad()
    def expected(values: Sequence[Tensor]) -> Outputs:
        ready = oracle(network, entrants)
        return {"estimate": [item_by_item(lambda mixes: ready.separate(mixes, {last})[last], values, device)]}

    def plain(backend: Backend, precision: Precision) -> Call:
        ready = engine(there, backend, precision)
        return torch.no_grad()(lambda: outputs(ready, inputs))

    def by_compiler(backend: Backend, precision: Precision) -> Call:
        ready = engine(there, backend, precision)
        function = compiled(lambda *mixes: ready.separate(mixes, {last})[last])
        return torch.no_grad()(lambda: {"estimate": [function(*inputs)]})

    duration = frames * config.W / config.sampling_rate
    return Case(
        name=f"inference {batch}x{duration:g}s",
        job="inference",
        sizes={"batch": batch, "seconds": duration, "frames": frames, "stages": config.stages_num},
        audio_seconds=batch * duration,
        inputs=inputs,
        draw=varied(base, [2**s for s in range(config.stages_num)]),
        expected=expected,
        work=lambda precision: costs.inference(config, frames, batch, precision.storage.itemsize),
        contenders=contenders_of(network, entrants, False, plain, by_compiler),
    )


def job_cases(network: MultiTasNet, entrants: Entrants, stage_index: int, batch: int, seconds: float) -> Iterator[Case]:
    """Encoder, masking network and decoder of one stage, each on its own; the decoder for four latents an item."""
    config = network.config.stage(stage_index)
    frames, device = frames_of(network, seconds), entrants.device
    there = {name: p.detach().to(device) for name, p in collect_parameters(network.stages[stage_index]).items()}
    generator = torch.Generator().manual_seed(stage_index)
    signal = mixtures(sources(network.config, batch, frames * network.config.W, seed=2))[stage_index].float()
    latent, partial, separated = (
        torch.randn(batch, *shape, frames, generator=generator)
        for shape in ((config.N,), (4, config.partial_channels), (4, config.N))
    )
    duration = frames * config.W / config.sampling_rate
    shared: dict[str, Any] = {
        "sizes": {"stage": stage_index, "batch": batch, "frames": frames, "channels": config.N},
        "audio_seconds": batch * duration,
        "parameters": there,
        "config": config,
        "network": network,
        "entrants": entrants,
    }
    label = f"stage {stage_index} {batch}x{duration:g}s"
    yield _job_case(
        f"encode {label}",
        "encode",
        [signal],
        lambda backend, ready, x: backend.encode(ready, x[0]),
        lambda precision: costs.encoder(config, frames, batch, precision.storage.itemsize, folded=True),
        **shared,
    )
    yield _job_case(
        f"mask {label}",
        "mask",
        [latent, partial] if config.partial_channels else [latent],
        lambda backend, ready, x: backend.mask(ready, x[0], x[1] if len(x) > 1 else None),
        lambda precision: costs.masking(config, frames, batch, precision.storage.itemsize, folded=True),
        **shared,
    )
    yield _job_case(
        f"decode {label}",
        "decode",
        [separated.flatten(0, 1)],
        lambda backend, ready, x: backend.decode(ready, x[0]),
        lambda precision: costs.decoder(config, frames, 4 * batch, precision.storage.itemsize),
        **shared,
    )


def _job_case(
    name: str,
    job: str,
    base: list[Tensor],
    function: Callable[[Backend, Any, Sequence[Tensor]], Tensor],
    work: Callable[[Precision], costs.Work],
    *,
    sizes: dict[str, Any],
    audio_seconds: float,
    parameters: Mapping[str, Tensor],
    config: StageConfig,
    network: MultiTasNet,
    entrants: Entrants,
) -> Case:
    inputs = [x.to(entrants.device) for x in base]

    @torch.no_grad()
    def expected(values: Sequence[Tensor]) -> Outputs:
        backend = entrants.backend("reference")
        ready = backend.prepare(config, parameters, Precision.float64)
        return {job: [item_by_item(lambda x: function(backend, ready, x), values, entrants.device)]}

    def plain(backend: Backend, precision: Precision) -> Call:
        with torch.no_grad():
            ready = backend.prepare(config, parameters, precision)
        return torch.no_grad()(lambda: {job: [function(backend, ready, inputs)]})

    def by_compiler(backend: Backend, precision: Precision) -> Call:
        with torch.no_grad():
            ready = backend.prepare(config, parameters, precision)
        fast = compiled(lambda *x: function(backend, ready, x))
        return torch.no_grad()(lambda: {job: [fast(*inputs)]})

    return Case(
        name=name,
        job=job,
        sizes=sizes,
        audio_seconds=audio_seconds,
        inputs=inputs,
        draw=varied(base, [1] * len(base)),
        expected=expected,
        work=work,
        contenders=contenders_of(network, entrants, False, plain, by_compiler),
        graph=True,
    )


def contenders_of(
    network: MultiTasNet,
    entrants: Entrants,
    training: bool,
    plain: Callable[[Backend, Precision], Call],
    by_compiler: Callable[[Backend, Precision], Call] | None,
) -> list[Contender]:
    """Eager, compiled (if ``by_compiler`` makes that) and every backend that serves, in every precision."""
    found = []
    for name, backend, precision in entrants.serving(network.config, training):
        found.append(Contender(name, precision, functools.partial(plain, backend, precision)))
        if name == "reference" and entrants.compiled and by_compiler is not None:
            found.append(Contender(COMPILED, precision, functools.partial(by_compiler, backend, precision)))
    return found
