"""Choose the cases of a run, and run them; the case of preparing weights, as after a change of a parameter."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import Backend
from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..model import MultiTasNet
from ..model.engine import Engine
from ..precision import Precision
from ..separation.separator import Mode
from . import roofline, synthetic
from .cases import Call, Case, Participants
from .machine import describe
from .measure import Effort, measure
from .parity import Outputs
from .roofline import measure_peaks
from .rows import Row
from .synthetic import mixtures, sources
from .whole_programs import first_call_case, separation_case
from .workloads import engine, frames_of, implementations_of, inference_case, oracle, training_case

__all__ = ["SIZES", "TINY", "cases", "measure_all", "preparation_case", "run"]


class _Deferred(Mapping[str, Sequence[Tensor]]):
    """Outputs that are computed only when they are read, so that a call which only prepares weights can be checked
    untimed."""

    def __init__(self, compute: Callable[[], Outputs]) -> None:
        self._outputs = functools.cache(compute)

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


# With 8 bands, eager PyTorch (2.13, bfloat16, AMX) writes beyond the memory of the weight gradient of 2,049 bins.
TINY = MetaTasNetConfig(N=16, B=16, H=16, layers=2, stack=1, num_mels=16)
"""For tests of the program; its times say nothing about the network."""


@dataclass(frozen=True)
class Size:
    """Sizes of the cases.

    Args:
        config: the network.
        windows: inference, by kind of device: how many windows at once, of how many seconds each.
        first_call: seconds of the window that a new process separates; 0 leaves new processes out.
        training: items and seconds of a training step, by kind of device.
        recording: seconds of the separated stereo recording; 0 leaves the recording out.
        effort: rounds and seconds for each case.
    """

    config: MetaTasNetConfig
    windows: dict[str, Sequence[tuple[int, float]]]
    training: dict[str, tuple[int, float]]
    recording: dict[str, float]
    effort: Effort
    compiled: bool = True
    first_call: float = 0.0


SIZES = {
    "tiny": Size(
        TINY,
        windows={"cpu": ((1, 0.4),), "cuda": ((1, 0.4),)},
        training={"cpu": (2, 0.4), "cuda": (2, 0.4)},
        recording={"cpu": 0.5, "cuda": 0.5},
        effort=Effort(0.3, 5, 20),
        compiled=False,
    ),
    # torch.compile takes minutes for the whole network on a CPU, longer than a quick run may last.
    "quick": Size(
        MetaTasNetConfig(),
        windows={"cpu": ((1, 2.0),), "cuda": ((8, 2.0),)},
        training={"cpu": (1, 1.0), "cuda": (4, 4.0)},
        recording={"cpu": 0.0, "cuda": 0.0},
        effort=Effort(5, 5, 20),
        compiled=False,
    ),
    "full": Size(
        MetaTasNetConfig(),
        windows={"cpu": ((1, 30.0), (4, 6.0), (1, 2.0)), "cuda": ((1, 24.0), (20, 24.0))},
        training={"cpu": (2, 4.0), "cuda": (12, 8.0)},
        recording={"cpu": 12.0, "cuda": 240.0},
        effort=Effort(20, 5, 50),
        first_call=6.0,
    ),
}


def cases(size: Size, network: MultiTasNet, participants: Participants) -> Iterator[Case]:
    """Yield the cases in the order in which they are measured; each is built only when its turn comes."""
    kind = participants.device.type
    for shape in size.windows[kind]:
        yield inference_case(network, participants, *shape)
    yield preparation_case(network, participants)
    yield training_case(network, participants, *size.training[kind])
    modes: tuple[Mode, ...] = ("fast", "reference")
    for mode in modes if size.recording[kind] else ():
        yield separation_case(network, participants, mode, 2, size.recording[kind])
    if size.first_call:
        yield first_call_case(network, participants, size.first_call)


def measure_all(
    chosen: Iterable[Case],
    device: torch.device,
    precisions: Sequence[Precision],
    tiny: bool,
    effort: Effort,
    keep: Callable[[list[Row]], object],
    tell: Callable[[str], object] = lambda line: None,
) -> list[Row]:
    """Measure cases one after the other, with the peaks of the device.

    Args:
        keep: gets all rows as they are known so far, after every round.
        tell: gets a line about what comes next.
    """
    machine = describe(device)
    tell("peaks: a large copy and matrix products")
    peaks = measure_peaks(device, precisions, tiny)
    done: list[Row] = []

    def so_far(rows: list[Row]) -> None:
        for row in rows:
            row.machine, row.peaks = machine, peaks.to_dict()
        keep([*done, *rows])

    for case in chosen:
        tell(case.name)
        # A case that starts a process for every call gets the fewest rounds.
        done += measure(case, peaks, Effort(0, 3, 3) if case.whole_process else effort, so_far)
        so_far([])
    return done


def run(
    size: Size,
    participants: Participants,
    tell: Callable[[str], object] = lambda line: None,
    only: str = "",
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Measure the cases of a size whose names contain ``only``; for the rest see :func:`measure_all`.

    Raises:
        ConfigError: if no name contains ``only``.
    """
    names: list[str] = []

    def chosen() -> Iterator[Case]:
        for case in cases(size, synthetic.network(size.config), participants):
            names.append(case.name)
            if only in case.name:
                yield case

    tiny = size.config == TINY
    done = measure_all(chosen(), participants.device, participants.precisions, tiny, size.effort, keep, tell)
    if not done:
        raise ConfigError(f"No case's name contains {only!r}; there are: {', '.join(names)}.")
    return done
