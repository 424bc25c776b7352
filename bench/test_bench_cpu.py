"""Measure the backend ``cpu`` against eager PyTorch and ``torch.compile``: whole, by pass, and by instruction set.

    pytest bench/test_bench_cpu.py --benchmark-json=cpu.json [-k "not compiled"]
    python -m bench.test_bench_cpu [--seconds 8] [--rounds 3] [--threads 1] [--isas amx_bf16,avx512_bf16] [--out FILE]
    python -m bench.test_bench_cpu --held      PyTorch, oneDNN, MKL and the backend all held to AVX2

``BENCH_SECONDS`` of mono audio (default 8) go through the three stages of the default network and all their decoders.
The network has random weights and runs on ``torch.get_num_threads()`` threads. Every row holds its rate, by the counts
of ``roofline``, and its share of two peaks measured in the same run: the best large ``torch.mm`` in the same dtype, and
the best copy of a large tensor.

Without pytest, this program compares the instruction sets with eager PyTorch in alternating rounds. With one thread it
measures the CPU time of the process, which other work on the machine disturbs least; with more threads, wall-clock
time. It prints one JSON line with the seconds of every round, and appends this line to FILE.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from metatasnet_fast import native
from metatasnet_fast.backends import Backend, get_backend
from metatasnet_fast.backends.cpu import ISA_VARIABLE, CpuBackend
from metatasnet_fast.backends.reference import ReferenceBackend
from metatasnet_fast.benchmark import Peaks, measure_peaks, roofline
from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.benchmark.workloads import engine
from metatasnet_fast.config import MetaTasNetConfig, StageConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.precision import Precision

CONFIG = MetaTasNetConfig()
SECONDS = float(os.environ.get("BENCH_SECONDS", "8"))
PRECISIONS = [Precision.float32, Precision.bfloat16]
HELD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Variables that the libraries under PyTorch read when they are loaded."""

Run = Callable[[], object]

pytestmark = pytest.mark.skipif(native.load() is None, reason=str(native.reason()))


def mask_flops(config: StageConfig) -> dict[str, int]:
    """Return the operations per latent frame of each masking pass that has matrix products, for the four instruments."""
    n, k, b, h, blocks = config.N, config.in_channels, config.B, config.H, len(config.dilations)
    return {
        "input_conv": 8 * k * b,
        "block_input": 8 * (blocks * b * h + 2 * (blocks - 1) * b * h),
        "depthwise": 8 * 3 * blocks * h,
        "skip_output": 8 * h * b,
        "mask_output": 8 * b * n,
    }


def mask_bytes(config: StageConfig, storage: int) -> dict[str, int]:
    """Return the bytes per latent frame that each pass reads and writes, without weights; an activation takes
    ``storage`` bytes."""
    n, k, b, h, blocks = config.N, config.in_channels, config.B, config.H, len(config.dilations)
    return {
        "input_conv": 4 * (k * storage + 4 * b),
        "block_input": 4 * (blocks * (8 * b + h * storage) + (blocks - 1) * (h * storage + 8 * b)),
        "depthwise": 4 * blocks * 2 * h * storage,
        "skip_output": 4 * (h * storage + 4 * b + b * storage),
        "mask_output": 4 * (b + n) * storage,
        "mask_product": (8 + 1) * n * storage,
        "source_moments": (n + 4 * config.partial_channels) * storage,
    }


@functools.cache
def peaks() -> Peaks:
    return measure_peaks(torch.device("cpu"), PRECISIONS)


@functools.cache
def network() -> MultiTasNet:
    torch.manual_seed(0)
    return MultiTasNet(CONFIG)


@functools.cache
def prepared(backend: str, precision: Precision) -> Engine:
    return engine(network(), get_backend(backend), precision)


@functools.cache
def mixes(seconds: float = SECONDS) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, 1, int(seconds * CONFIG.sampling_rate) * 2**s) for s in range(CONFIG.stages_num)]


def frames() -> int:
    return mixes()[0].shape[-1] // CONFIG.W


def rates(benchmark: BenchmarkFixture, work: roofline.Work, precision: Precision) -> dict[str, float]:
    """Return the rate of the best round and the rate of the large product, in GFLOP/s, and the first in percent of the
    second."""
    rate, peak = work.flops / benchmark.stats.stats.min, peaks().products[precision.value]
    return {"gflops": rate / 1e9, "percent_of_mm": 100 * rate / peak, "mm_gflops": peak / 1e9}


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.value)
@pytest.mark.parametrize("backend", ["cpu", "eager", "compiled"])
def test_separate(benchmark: BenchmarkFixture, backend: str, precision: Precision) -> None:
    ready = prepared("cpu" if backend == "cpu" else "reference", precision)
    run = torch.compile(ready.separate) if backend == "compiled" else ready.separate
    with torch.no_grad():
        benchmark.pedantic(run, args=(mixes(), range(CONFIG.stages_num)), rounds=5, warmup_rounds=1)
    work = roofline.Work(0.0, 0.0)
    for stage in CONFIG.stages:
        work += roofline.encoder(stage, frames(), folded=True) + roofline.masking(stage, frames(), folded=True)
        work += roofline.decoder(stage, frames(), 4)
    benchmark.extra_info.update(
        **rates(benchmark, work, precision),
        seconds_of_audio_per_second=SECONDS / benchmark.stats.stats.min,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        isa=ready.prepared[0].stage.isa if backend == "cpu" else None,
    )


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.value)
@pytest.mark.parametrize("job", ["encode", "decode"])
@pytest.mark.parametrize("stage", range(CONFIG.stages_num))
def test_codec(benchmark: BenchmarkFixture, stage: int, job: str, precision: Precision) -> None:
    ready, sizes = prepared("cpu", precision), CONFIG.stage(stage)
    if job == "encode":
        data, work = mixes()[stage], roofline.encoder(sizes, frames(), folded=True)
    else:
        data = torch.randn(4, frames(), sizes.N, dtype=precision.storage).transpose(1, 2)
        work = roofline.decoder(sizes, frames(), 4)
    benchmark.pedantic(getattr(ready.backend, job), args=(ready.prepared[stage], data), rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(rates(benchmark, work, precision))


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.value)
@pytest.mark.parametrize("stage", range(CONFIG.stages_num))
def test_masking_passes(benchmark: BenchmarkFixture, stage: int, precision: Precision) -> None:
    """Measure the rate of each fused pass from the seconds that the kernels report, in the best of the rounds."""
    sizes, compiled = CONFIG.stage(stage), prepared("cpu", precision).prepared[stage].stage
    latent = torch.randn(1, frames(), sizes.N, dtype=precision.storage)
    partial = torch.randn(1, 4, frames(), sizes.partial_channels, dtype=precision.storage) if stage else None
    masked = torch.empty(1, 4, frames(), compiled.latent_ld, dtype=precision.storage)
    threads, best = torch.get_num_threads(), dict[str, float]()

    def run() -> None:
        for name, seconds in compiled.mask(latent, None, partial, masked, None, threads).items():
            best[name] = min(best.get(name, seconds), seconds)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    flops, moved = mask_flops(sizes), mask_bytes(sizes, precision.storage.itemsize)
    peak, bandwidth = peaks().products[precision.value] / threads, peaks().copy / threads
    for name, seconds in best.items():
        row = {"milliseconds": 1e3 * seconds}
        if name in flops:
            rate = frames() * flops[name] / seconds
            row.update(gflops_per_thread=rate / 1e9, percent_of_mm=100 * rate / peak)
        if name in moved:
            rate = frames() * moved[name] / seconds
            row.update(gb_per_second_per_thread=rate / 1e9, percent_of_copy=100 * rate / bandwidth)
        benchmark.extra_info[name] = row


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.value)
def test_prepare(benchmark: BenchmarkFixture, precision: Precision) -> None:
    """Measure generating, folding and packing the weights of all three stages."""
    run = functools.partial(engine, network(), get_backend("cpu"), precision)
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)


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
    signals = mixes(args.seconds)
    runs: dict[str, Run] = {}
    with torch.no_grad():
        for precision in PRECISIONS:
            runs[f"torch.mm {precision.value}"] = product(precision.storage)
            runs[f"eager {precision.value}"] = separation(ReferenceBackend(), precision, signals)
        for isa, precision in itertools.product(isas, PRECISIONS):
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
