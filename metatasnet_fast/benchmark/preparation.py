"""The case of preparing weights: generating, folding and packing them, as after a change of a parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..backends import Backend
from ..model import MultiTasNet
from ..model.engine import Engine
from ..precision import Precision
from . import roofline
from .cases import Call, Case, Participants
from .parity import Outputs
from .synthetic import mixtures, sources
from .workloads import engine, frames_of, implementations_of, oracle

__all__ = ["preparation_case"]


class _Deferred(Mapping[str, Sequence[Tensor]]):
    """Outputs that are computed only when they are read, so that a call which only prepares weights can be checked
    untimed."""

    def __init__(self, compute: Callable[[], Outputs]) -> None:
        self._compute = compute
        self._found: Outputs | None = None

    def _outputs(self) -> Outputs:
        if self._found is None:
            self._found = self._compute()
        return self._found

    def __getitem__(self, name: str) -> Sequence[Tensor]:
        return self._outputs()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs())

    def __len__(self) -> int:
        return len(self._outputs())


def preparation_case(network: MultiTasNet, participants: Participants) -> Case:
    """Return the case that generates, folds and packs the weights of all stages, as after a change of a parameter.

    The inputs are the instruments' embeddings, which every generated weight depends on; what was prepared is checked by
    separating the shortest signal there is, outside the timed call.
    """
    config, device = network.config, participants.device
    here, there = (copy.deepcopy(network).to(place) for place in (torch.device("cpu"), device))
    last = config.stages_num - 1
    inputs = _embeddings(there)
    base = [x.detach().clone().cpu() for x in inputs]
    probe = [mix.float() for mix in mixtures(sources(config, 1, frames_of(network, 0.0) * config.W, seed=3))]
    there_probe = [mix.to(device) for mix in probe]

    @torch.no_grad()
    def separated(ready: Engine, mixes: Sequence[Tensor]) -> Outputs:
        return {"estimate": [ready.separate(mixes, {last})[last]]}

    def expected(values: Sequence[Tensor]) -> Outputs:
        for embedding, value in zip(_embeddings(here), values, strict=True):
            embedding.copy_(value)
        return separated(oracle(here, participants), [mix.double() for mix in there_probe])

    def plain(backend: Backend, precision: Precision) -> Call:
        def call() -> Outputs:
            ready = engine(there, backend, precision)
            return _Deferred(lambda: separated(ready, there_probe))

        return call

    def draw(number: int) -> list[Tensor]:
        return [x + 0.1 * torch.sin(torch.arange(x.numel()).view_as(x) + number) for x in base]

    count = sum(p.numel() for p in network.parameters())
    return Case(
        name="preparation",
        job="preparation",
        sizes={"parameters": count},
        audio_seconds=None,
        inputs=inputs,
        draw=draw,
        expected=expected,
        work=lambda precision: roofline.preparation(config, count, precision.storage.itemsize),
        implementations=implementations_of(network, participants, False, plain, None),
    )


def _embeddings(network: MultiTasNet) -> list[Tensor]:
    return [p.detach() for name, p in network.named_parameters() if name.endswith("instrument_embedding.weight")]
