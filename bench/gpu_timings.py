"""The timings of the GPU suite: a four-minute stereo song's worth of windows, a training step, single jobs, single operations.

python bench/gpu_timings.py inference --device cuda --out DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from metatasnet_fast.benchmark import Effort, Entrants, measure, measure_ceilings, recipe, text_table, write_rows
from metatasnet_fast.benchmark.cases import Case
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

SONG_SECONDS, CHANNELS = 240, 2
BATCH, SECONDS = 12, 8.0
"""Of the authors' training."""


def song_windows(config: MetaTasNetConfig) -> tuple[int, float]:
    """How many windows a song has in all channels, and the seconds of each."""
    shape = default_shape(config)
    frames_per_second = config.sampling_rate / config.W
    windows = plan_windows(round(SONG_SECONDS * frames_per_second), shape)
    return CHANNELS * len(windows), shape.window / frames_per_second


def cases(kind: str, network: MultiTasNet, device: torch.device, tiny: bool, compiled: bool) -> Iterator[Case]:
    if kind == "inference":
        batch, seconds = (2, 0.4) if tiny else song_windows(network.config)
        yield inference_case(network, Entrants.of(device, compiled), batch, seconds)
    elif kind == "jobs":
        for stage in range(network.config.stages_num):
            yield from job_cases(network, Entrants.of(device, False), stage, *((2, 0.4) if tiny else (4, 8.0)))
        yield preparation_case(network, Entrants.of(device, False))
    elif kind == "operations":
        frames = 37 if tiny else round(SECONDS * network.config.sampling_rate) // network.config.W
        for operation in operations(network.config.stage(1), 2 if tiny else 4, frames):
            for training in (False, True):
                yield operation_case(operation, Entrants.of(device, compiled), training)
    else:
        batch, seconds = (2, 0.4) if tiny else (BATCH, SECONDS)
        precisions = [Precision.float32, Precision.bfloat16]
        yield training_case(network, Entrants.of(device, compiled, precisions), batch, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=("inference", "jobs", "operations", "training"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder; KIND.jsonl is written there")
    parser.add_argument("--tiny", action="store_true", help="a few channels and samples: tries the program only")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    network = recipe.network(TINY if args.tiny else MetaTasNetConfig())
    ceilings = measure_ceilings(device, Entrants.of(device).precisions, args.tiny)
    machine = describe(device)
    rows = []
    for case in cases(args.kind, network, device, args.tiny, not args.no_compile):
        for row in measure(case, ceilings, Effort(0.1, 3, 3) if args.tiny else Effort(5, 5, 20)):
            row.machine = machine
            rows.append(row)
        write_rows(rows, args.out / f"{args.kind}.jsonl")
    print(text_table(rows))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
