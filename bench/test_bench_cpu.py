"""The backend ``cpu`` against eager PyTorch and ``torch.compile``, end to end and pass by pass.

    pytest bench/test_bench_cpu.py --benchmark-json=cpu.json [-k "not compiled"]

``BENCH_SECONDS`` of mono audio (default 8) go through the three stages of the default network and all their decoders; random
weights, ``torch.get_num_threads()`` threads. Every row holds its rate and its share of the peaks measured in the same run:
the best large ``torch.mm`` in the same dtype, and the best copy of a large tensor.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.cpu_arithmetic import job_flops, mask_bytes, mask_flops
from metatasnet_fast import native
from metatasnet_fast.backends.base import Backend
from metatasnet_fast.backends.cpu import CpuBackend
from metatasnet_fast.backends.reference import ReferenceBackend
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.precision import Precision

CONFIG = MetaTasNetConfig()
SECONDS = float(os.environ.get("BENCH_SECONDS", "8"))
PRECISIONS = [Precision.float32, Precision.bfloat16]

pytestmark = pytest.mark.skipif(native.load() is None, reason=str(native.reason()))


def best_seconds(run: Callable[[], object], times: int = 7) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


@functools.cache
def product_peak(dtype: torch.dtype) -> float:
    """Measure the operations per second of a product of two 2048 x 2048 matrices."""
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    return 2 * 2048**3 / best_seconds(lambda: a @ b)


@functools.cache
def copy_peak() -> float:
    """Measure the bytes per second, read and written, of a copy of 256 MiB."""
    a = torch.ones(2**26)
    b = torch.empty_like(a)
    return 8 * a.numel() / best_seconds(lambda: b.copy_(a))


@functools.cache
def parameters(stage: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = MultiTasNet(CONFIG)
    return {k: v.detach() for k, v in network.stages[stage].state_dict().items()}


@functools.cache
def prepared(backend: str, precision: Precision) -> tuple[Backend, list[Any]]:
    served: Backend = CpuBackend() if backend == "cpu" else ReferenceBackend()
    with torch.no_grad():
        return served, [served.prepare(CONFIG.stage(s), parameters(s), precision) for s in range(CONFIG.stages_num)]


@functools.cache
def mixes() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, 1, int(SECONDS * CONFIG.sampling_rate) * 2**s) for s in range(CONFIG.stages_num)]


def separate(backend: Backend, stages: Sequence[Any], signals: Sequence[Tensor]) -> list[Tensor]:
    found, masked = [], None
    for stage, mix in zip(stages, signals, strict=True):
        masked = backend.mask(stage, backend.encode(stage, mix), masked)
        found.append(backend.decode(stage, masked.flatten(0, 1)))
    return found


def frames() -> int:
    return mixes()[0].shape[-1] // CONFIG.W


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.value)
@pytest.mark.parametrize("backend", ["cpu", "eager", "compiled"])
def test_separate(benchmark: BenchmarkFixture, backend: str, precision: Precision) -> None:
    served, stages = prepared("cpu" if backend == "cpu" else "reference", precision)
    run = functools.partial(separate, served, stages)
    if backend == "compiled":
        run = torch.compile(run)
    with torch.no_grad():
        benchmark.pedantic(run, args=(mixes(),), rounds=5, warmup_rounds=1)
    rate = frames() * sum(sum(job_flops(s).values()) for s in CONFIG.stages) / benchmark.stats.stats.min
    benchmark.extra_info.update(
        gflops=rate / 1e9,
        percent_of_mm=100 * rate / product_peak(precision.storage),
        mm_gflops=product_peak(precision.storage) / 1e9,
        seconds_of_audio_per_second=SECONDS / benchmark.stats.stats.min,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        isa=stages[0].stage.isa if backend == "cpu" else None,
    )


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.value)
@pytest.mark.parametrize("job", ["encode", "decode"])
@pytest.mark.parametrize("stage", range(CONFIG.stages_num))
def test_codec(benchmark: BenchmarkFixture, stage: int, job: str, precision: Precision) -> None:
    served, stages = prepared("cpu", precision)
    sizes = CONFIG.stage(stage)
    data = (
        mixes()[stage]
        if job == "encode"
        else torch.randn(4, frames(), sizes.N, dtype=precision.storage).transpose(1, 2)
    )
    benchmark.pedantic(getattr(served, job), args=(stages[stage], data), rounds=5, warmup_rounds=1)
    rate = frames() * job_flops(sizes)[job] / benchmark.stats.stats.min
    peak = product_peak(precision.storage)
    benchmark.extra_info.update(gflops=rate / 1e9, percent_of_mm=100 * rate / peak, mm_gflops=peak / 1e9)


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: p.value)
@pytest.mark.parametrize("stage", range(CONFIG.stages_num))
def test_masking_passes(benchmark: BenchmarkFixture, stage: int, precision: Precision) -> None:
    """Measure the rate of each fused pass from the seconds that the kernels report, in the best of the rounds."""
    sizes, compiled = CONFIG.stage(stage), prepared("cpu", precision)[1][stage].stage
    latent = torch.randn(1, frames(), sizes.N, dtype=precision.storage)
    partial = torch.randn(1, 4, frames(), sizes.partial_channels, dtype=precision.storage) if stage else None
    masked = torch.empty(1, 4, frames(), compiled.latent_ld, dtype=precision.storage)
    threads, best = torch.get_num_threads(), dict[str, float]()

    def run() -> None:
        for name, seconds in compiled.mask(latent, None, partial, masked, None, threads).items():
            best[name] = min(best.get(name, seconds), seconds)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    flops, moved = mask_flops(sizes), mask_bytes(sizes, precision.storage.itemsize)
    peak, bandwidth = product_peak(precision.storage) / threads, copy_peak() / threads
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
    served = CpuBackend()
    given = [parameters(s) for s in range(CONFIG.stages_num)]

    def run() -> None:
        with torch.no_grad():
            for s in range(CONFIG.stages_num):
                served.prepare(CONFIG.stage(s), given[s], precision)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
