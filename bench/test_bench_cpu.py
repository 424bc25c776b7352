"""Measure the backend ``cpu`` against eager PyTorch and ``torch.compile``, end to end and pass by pass.

    pytest bench/test_bench_cpu.py --benchmark-json=cpu.json [-k "not compiled"]

``BENCH_SECONDS`` of mono audio (default 8) go through the three stages of the default network and all their decoders; random
weights, ``torch.get_num_threads()`` threads. Every row holds its rate, by the counts of ``roofline``, and its share of
two peaks measured in the same run: the best large ``torch.mm`` in the same dtype, and the best copy of a large tensor.
"""

from __future__ import annotations

import functools
import os

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from metatasnet_fast import native
from metatasnet_fast.backends import get_backend
from metatasnet_fast.benchmark import Peaks, measure_peaks, roofline
from metatasnet_fast.benchmark.workloads import engine
from metatasnet_fast.config import MetaTasNetConfig, StageConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.precision import Precision

CONFIG = MetaTasNetConfig()
SECONDS = float(os.environ.get("BENCH_SECONDS", "8"))
PRECISIONS = [Precision.float32, Precision.bfloat16]

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
def mixes() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, 1, int(SECONDS * CONFIG.sampling_rate) * 2**s) for s in range(CONFIG.stages_num)]


def frames() -> int:
    return mixes()[0].shape[-1] // CONFIG.W


def rates(benchmark: BenchmarkFixture, work: roofline.Work, precision: Precision) -> dict[str, float]:
    """Return the best round's rate in GFLOP/s, that of the large product, and the first in percent of the second."""
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
