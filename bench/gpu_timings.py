"""The timings of the GPU suite: a four-minute stereo song's worth of windows, a training step, single jobs, single operations.

python -m bench.gpu_timings inference --device cuda --out FILE

``--compile-only`` runs the kernels of a kind once, on short windows: no length compiles anything anew, so that is all that the
timings compile. Exit code 1 if anything of ours has no times.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from metatasnet_fast.backends import Request
from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.benchmark import Effort, Entrants, Row, measure, measure_ceilings, recipe, text_table, write_rows
from metatasnet_fast.benchmark.cases import EAGER, Case
from metatasnet_fast.benchmark.contenders import COMPILED
from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.benchmark.operations import operation_case, operations
from metatasnet_fast.benchmark.preparation import preparation_case
from metatasnet_fast.benchmark.suite import TINY
from metatasnet_fast.benchmark.training_step import training_case
from metatasnet_fast.benchmark.workloads import inference_case, job_cases
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision
from metatasnet_fast.separation.windows import default_shape, plan_windows

EFFORT = {"inference": (5, 3, 20), "training": (5, 3, 20), "jobs": (1, 3, 20), "operations": (1, 3, 20)}
"""Seconds of each case's rounds, and their number, by kind."""
SONG_SECONDS, CHANNELS = 240, 2
BATCH, SECONDS = 12, 8.0
"""Of the authors' training."""
EAGER_BYTES = 8.0e9
"""Of an item of a training step by eager PyTorch in float32: 93 GB at the peak of twelve, counted on tensors without data."""


class ReadsWeightsAnew(CudaBackend):
    """The backend `cuda` with weights that are read for every tile, for the one precision in which they could stay."""

    def supports(self, request: Request) -> str | None:
        return super().supports(request) if request.precision is Precision.bfloat16 else "weights never stay in it"


def entrants(device: torch.device, compiled: bool, precisions: Sequence[Precision]) -> Entrants:
    """All that can run here, and where the backend `cuda` can, that without its weights kept on chip."""
    found = Entrants.of(device, compiled, precisions)
    if CudaBackend.name in found.backends:
        found.extra["cuda, weights read anew"] = ReadsWeightsAnew(keep_weights=False)
    return found


def song_windows(config: MetaTasNetConfig) -> tuple[int, float]:
    """How many windows a song has in all channels, and the seconds of each."""
    shape = default_shape(config)
    frames_per_second = config.sampling_rate / config.W
    windows = plan_windows(round(SONG_SECONDS * frames_per_second), shape)
    return CHANNELS * len(windows), shape.window / frames_per_second


def training_batch(device: torch.device) -> int:
    """The authors' batch, or what fits into nine tenths of the GPU by eager PyTorch in float32, which all are judged by."""
    if device.type != "cuda":
        return BATCH
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(1, min(BATCH, int(0.9 * memory / EAGER_BYTES)))


def cases(kind: str, network: MultiTasNet, device: torch.device, tiny: bool, compiled: bool) -> Iterator[Case]:
    """What decides most comes first; of compiled contenders there is one precision, since each takes minutes."""
    low, full = Precision.bfloat16, Precision.float32
    precisions = [low] if compiled else [low, full] if device.type != "cuda" else [low, full, Precision.tf32]
    if kind == "inference":
        batch, seconds = (2, 0.4) if tiny else song_windows(network.config)
        yield inference_case(network, entrants(device, compiled, precisions), batch, seconds)
    elif kind == "jobs":
        every = entrants(device, False, precisions)
        for stage in range(network.config.stages_num):
            yield from job_cases(network, every, stage, *((2, 0.4) if tiny else (4, 8.0)))
        yield preparation_case(network, Entrants.of(device, False, precisions))
    elif kind == "operations":
        frames = 37 if tiny else round(SECONDS * network.config.sampling_rate) // network.config.W
        for operation in operations(network.config.stage(1), 2 if tiny else 4, frames):
            for training in (False, True):
                yield operation_case(operation, Entrants.of(device, compiled, precisions), training)
    else:
        batch, seconds = (2, 0.4) if tiny else (training_batch(device), SECONDS)
        yield training_case(network, Entrants.of(device, compiled, precisions[:2]), batch, seconds)


def compile_only(kind: str, network: MultiTasNet, device: torch.device, precision: Precision) -> None:
    """Call every contender but eager once, on two items as short as the network takes."""
    make = {"inference": inference_case, "training": training_case}[kind]
    for contender in make(network, Entrants.of(device, False, [precision]), 2, 0.0).contenders:
        if contender.name != EAGER:
            contender.make()()
            print(f"{contender.label}: compiled", flush=True)


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=("inference", "jobs", "operations", "training"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines are written there")
    parser.add_argument("--tiny", action="store_true", help="a few channels and samples: tries the program only")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so long with what there is")
    parser.add_argument("--compile-only", metavar="PRECISION", help="run the kernels once, and time nothing")
    args = parser.parse_args()
    device = torch.device(args.device)
    network = recipe.network(TINY if args.tiny else MetaTasNetConfig())
    if args.compile_only:
        compile_only(args.kind, network, device, Precision.parse(args.compile_only))
        return 0
    ceilings = measure_ceilings(device, Entrants.of(device).precisions, args.tiny)
    machine = describe(device)
    effort = Effort(0.1, 3, 3) if args.tiny else Effort(*EFFORT[args.kind], until=began + args.seconds)
    rows: list[Row] = []
    for case in cases(args.kind, network, device, args.tiny, args.compile):
        for row in measure(case, ceilings, effort):
            row.machine = machine
            rows.append(row)
        write_rows(rows, args.out)
    print(text_table(rows))
    return 1 if any(row.seconds is None and row.contender not in (EAGER, COMPILED) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
