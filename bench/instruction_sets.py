"""Measure the backend ``cpu`` on every instruction set against eager PyTorch, in alternating rounds.

    python -m bench.instruction_sets [--seconds 8] [--rounds 3] [--threads 1] [--isas amx_bf16,avx512_bf16] [--out FILE]
    python -m bench.instruction_sets --held      PyTorch, oneDNN, MKL and the backend all held to AVX2

``SECONDS`` of mono audio go through the three stages of the default network and all their decoders. With one thread the times
are CPU time of the process, which other work on the machine disturbs least; with more they are wall time. Prints, and appends
to FILE, one JSON line: the seconds of every round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bench.test_bench_cpu import CONFIG, network
from metatasnet_fast import native
from metatasnet_fast.backends.cpu import ISA_VARIABLE, CpuBackend
from metatasnet_fast.backends.reference import ReferenceBackend
from metatasnet_fast.backends.registry import Backend
from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.benchmark.workloads import engine
from metatasnet_fast.precision import Precision

HELD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Variables that the libraries under PyTorch read when they are loaded."""

Run = Callable[[], object]


def separation(backend: Backend, precision: Precision, signals: list[Tensor]) -> Run:
    ready = engine(network(), backend, precision)
    return lambda: ready.separate(signals, range(CONFIG.stages_num))


def product(dtype: torch.dtype) -> Run:
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    return lambda: a @ b


def main() -> int:
    module = native.load()
    if module is None:
        raise SystemExit(f"There is nothing to compare: {native.reason()}")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isas", default=",".join(module.cpu_isas()[:2]))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--held", action="store_true", help="hold everything to AVX2")
    args = parser.parse_args()
    if args.held and os.environ.get("ATEN_CPU_CAPABILITY") != "avx2":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **HELD})
    isas = ["avx2"] if args.held else args.isas.split(",")
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    torch.manual_seed(1)
    signals = [
        torch.randn(1, 1, int(args.seconds * CONFIG.sampling_rate) * 2**stage) for stage in range(CONFIG.stages_num)
    ]
    runs: dict[str, Run] = {}
    with torch.no_grad():
        for precision in (Precision.float32, Precision.bfloat16):
            runs[f"torch.mm {precision.value}"] = product(precision.storage)
            runs[f"eager {precision.value}"] = separation(ReferenceBackend(), precision, signals)
        for isa, precision in itertools.product(isas, (Precision.float32, Precision.bfloat16)):
            os.environ[ISA_VARIABLE] = isa
            runs[f"{isa} {precision.value}"] = separation(CpuBackend(), precision, signals)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for round_number in range(args.rounds + 1):
            for name, run in runs.items():
                start = clock()
                run()
                if round_number:  # the first round warms up
                    seconds[name].append(clock() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    line = {
        "case": f"inference 1x{args.seconds:g}s",
        "clock": clock.__name__,
        "seconds": seconds,
        "speedup": {
            name: {over: median[over] / median[name] for over in ("eager float32", "eager bfloat16")}
            for name in median
            if not name.startswith(("eager", "torch.mm"))
        },
        "machine": describe(torch.device("cpu")),
    }
    print(json.dumps(line))
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
