"""The backend ``cpu`` against eager PyTorch, both held to AVX2, in alternating rounds.

    python -m bench.held_to_avx2 [--seconds 30] [--rounds 3] [--threads 2] [--out FILE]

``SECONDS`` of mono audio go through the three stages of the default network and all their decoders, in float32. The libraries
under PyTorch read their environment when they are loaded, so it is set before torch is imported. Prints, and appends to FILE,
one JSON line: the seconds of every round, and the best large ``torch.mm`` of the same process.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from pathlib import Path

HELD = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "METATASNET_CPU_ISA": "avx2",
}
"""torch's own kernels, oneDNN, MKL, and this package."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ.update(HELD, BENCH_SECONDS=str(args.seconds))

    import torch

    from bench.test_bench_cpu import mixes, prepared, product_ceiling, separate
    from metatasnet_fast.benchmark.machine import describe
    from metatasnet_fast.benchmark.timing import HostTimer
    from metatasnet_fast.precision import Precision

    torch.set_num_threads(args.threads)
    backends = {name: prepared(name, Precision.float32) for name in ("reference", "cpu")}
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    timer = HostTimer()
    with torch.no_grad():
        for round_number in range(args.rounds + 1):
            for name, (backend, stages) in backends.items():
                taken, _ = timer(functools.partial(separate, backend, stages, mixes()))
                if round_number:  # the first round warms up
                    seconds[name].append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    line = {
        "case": f"inference 1x{args.seconds:g}s, everything held to AVX2",
        "seconds": seconds,
        "speedup": median["reference"] / median["cpu"],
        "isa": backends["cpu"][1][0].stage.isa,
        "aten": torch.backends.cpu.get_cpu_capability(),
        "mm_gflops": product_ceiling(torch.float32) / 1e9,
        "machine": describe(torch.device("cpu")),
        "environment": HELD,
    }
    print(json.dumps(line))
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
