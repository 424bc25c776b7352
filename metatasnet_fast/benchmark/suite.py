"""Which cases a run consists of, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..model import MultiTasNet
from . import recipe
from .cases import Case
from .ceilings import Ceilings, measure_ceilings
from .contenders import Entrants
from .machine import describe
from .measure import Effort, measure
from .preparation import preparation_case
from .rows import Row
from .training_step import training_case
from .whole_programs import first_call_case, separation_case
from .workloads import inference_case, job_cases

__all__ = ["SIZES", "TINY", "Size", "cases", "run"]

TINY = MetaTasNetConfig(N=16, B=16, H=16, layers=2, stack=1, num_mels=8)
"""For trying out the program; its times say nothing about the network."""


@dataclass(frozen=True)
class Size:
    """How large the cases are.

    Args:
        config: the network.
        windows: inference, by kind of device: how many windows at once, of how many seconds each.
        job: the windows through which single jobs go, likewise.
        training: items and seconds of a training step, by kind of device.
        recording: seconds of the separated stereo recording; 0 leaves the recording out.
        jobs: stages whose jobs are measured singly.
        effort: rounds and seconds for each case.
    """

    config: MetaTasNetConfig
    windows: dict[str, Sequence[tuple[int, float]]]
    job: dict[str, tuple[int, float]]
    training: dict[str, tuple[int, float]]
    recording: dict[str, float]
    jobs: Sequence[int]
    effort: Effort
    compiled: bool = True
    first_call: bool = True


SIZES = {
    "tiny": Size(
        TINY,
        windows={"cpu": ((1, 0.4),), "cuda": ((1, 0.4),)},
        job={"cpu": (1, 0.4), "cuda": (1, 0.4)},
        training={"cpu": (2, 0.4), "cuda": (2, 0.4)},
        recording={"cpu": 0.5, "cuda": 0.5},
        jobs=(0,),
        effort=Effort(0.3, 5, 20),
        compiled=False,
        first_call=False,
    ),
    # torch.compile takes minutes for the whole network on a CPU, longer than a quick run may last.
    "quick": Size(
        MetaTasNetConfig(),
        windows={"cpu": ((1, 2.0),), "cuda": ((8, 2.0),)},
        job={"cpu": (1, 2.0), "cuda": (8, 2.0)},
        training={"cpu": (1, 1.0), "cuda": (4, 4.0)},
        recording={"cpu": 0.0, "cuda": 0.0},
        jobs=(2,),
        effort=Effort(5, 5, 20),
        compiled=False,
        first_call=False,
    ),
    "full": Size(
        MetaTasNetConfig(),
        windows={"cpu": ((1, 30.0), (4, 6.0), (1, 2.0)), "cuda": ((1, 24.0), (20, 24.0))},
        job={"cpu": (1, 6.0), "cuda": (1, 24.0)},
        training={"cpu": (2, 4.0), "cuda": (12, 8.0)},
        recording={"cpu": 12.0, "cuda": 240.0},
        jobs=(0, 1, 2),
        effort=Effort(20, 5, 50),
    ),
}


def cases(size: Size, network: MultiTasNet, entrants: Entrants) -> Iterator[Callable[[], Sequence[Case]]]:
    """Cases in the order in which they are measured, built only when they are due."""
    kind = entrants.device.type
    for batch, window in size.windows[kind]:
        yield lambda batch=batch, window=window: [inference_case(network, entrants, batch, window)]  # type: ignore[misc]
    for stage in size.jobs:
        yield lambda stage=stage: list(job_cases(network, entrants, stage, *size.job[kind]))  # type: ignore[misc]
    yield lambda: [preparation_case(network, entrants)]
    items, seconds = size.training[kind]
    yield lambda: [training_case(network, entrants, items, seconds)]
    if size.recording[kind]:
        yield lambda: [separation_case(network, entrants, "fast", 2, size.recording[kind])]
        yield lambda: [separation_case(network, entrants, "reference", 2, size.recording[kind])]
    if size.first_call:
        yield lambda: [first_call_case(network, entrants, size.job[kind][1])]


def run(
    size: Size, entrants: Entrants, tell: Callable[[str], object] = lambda line: None, only: str = ""
) -> Iterator[Row]:
    """Measure the cases of a size whose names contain ``only``; rows come as they are measured.

    ``tell`` gets a line about what comes next. Raises :class:`ConfigError` if no name contains ``only``.
    """
    machine = describe(entrants.device)
    tell("ceilings: a large copy and matrix products")
    ceilings = measure_ceilings(entrants.device, entrants.precisions, tiny=size.config == TINY)
    network = recipe.network(size.config)
    names, found = [], False
    for build in cases(size, network, entrants):
        for case in build():
            names.append(case.name)
            if only not in case.name:
                continue
            found = True
            tell(case.name)
            for row in measured(case, ceilings, size.effort):
                row.machine = machine
                yield row
    if not found:
        raise ConfigError(f"No case's name contains {only!r}; there are: {', '.join(names)}.")


def measured(case: Case, ceilings: Ceilings, effort: Effort) -> list[Row]:
    """As :func:`measure`; a process of its own for every call gets the fewest rounds."""
    return measure(case, ceilings, Effort(0, 3, 3) if case.whole_process else effort)
