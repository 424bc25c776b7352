"""Choose the cases of a run, and run them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..model import MultiTasNet
from . import synthetic
from .cases import Case, Participants
from .machine import describe
from .measure import Effort, measure
from .preparation import preparation_case
from .roofline import measure_peaks
from .rows import Row
from .training_step import training_case
from .whole_programs import first_call_case, separation_case
from .workloads import inference_case

__all__ = ["SIZES", "TINY", "Size", "cases", "run"]

TINY = MetaTasNetConfig(N=16, B=16, H=16, layers=2, stack=1, num_mels=8)
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


def cases(size: Size, network: MultiTasNet, participants: Participants) -> Iterator[Callable[[], Case]]:
    """Yield the cases in the order in which they are measured; each is built only when its turn comes."""
    kind = participants.device.type
    for shape in size.windows[kind]:
        yield functools.partial(inference_case, network, participants, *shape)
    yield functools.partial(preparation_case, network, participants)
    yield functools.partial(training_case, network, participants, *size.training[kind])
    for mode in ("fast", "reference") if size.recording[kind] else ():
        yield functools.partial(separation_case, network, participants, mode, 2, size.recording[kind])
    if size.first_call:
        yield functools.partial(first_call_case, network, participants, size.first_call)


def run(
    size: Size,
    participants: Participants,
    tell: Callable[[str], object] = lambda line: None,
    only: str = "",
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """Measure the cases of a size whose names contain ``only``.

    Args:
        tell: gets a line about what comes next.
        keep: gets all rows as they are known so far, after every round.

    Raises:
        ConfigError: if no name contains ``only``.
    """
    machine = describe(participants.device)
    tell("peaks: a large copy and matrix products")
    peaks = measure_peaks(participants.device, participants.precisions, tiny=size.config == TINY)
    network = synthetic.network(size.config)
    names: list[str] = []
    done: list[Row] = []

    def so_far(rows: list[Row]) -> None:
        for row in rows:
            row.machine, row.peaks = machine, peaks.to_dict()
        keep([*done, *rows])

    for build in cases(size, network, participants):
        case = build()
        names.append(case.name)
        if only in case.name:
            tell(case.name)
            # A case that starts a process for every call gets the fewest rounds.
            done += measure(case, peaks, Effort(0, 3, 3) if case.whole_process else size.effort, so_far)
            so_far([])
    if not done:
        raise ConfigError(f"No case's name contains {only!r}; there are: {', '.join(names)}.")
    return done
