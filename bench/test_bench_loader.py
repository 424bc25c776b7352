"""Measure how many seconds of audio the loader delivers in a second, and compare this rate with what training needs.

    pytest bench/test_bench_loader.py --benchmark-json=loader.json

The batch is the authors': 12 items of 8 s at 8, 16 and 32 kHz (96 s of audio, 43 MB as int16, 86 MB as float32), from
four tracks of two minutes whose files are in the system's cache. ``host`` measures the work on the host: draw the
items, read them, collect them in one buffer for each rate. A GPU converts and scales the samples itself, so there the
host's rate is the loader's rate. On a CPU the same cores do all of this; ``stream`` measures that. ``extra_info`` holds
audio seconds per second, and an extrapolation to 16 workers from the rate per worker on this machine. The names say
which numbers were extrapolated.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.training.data import BatchSource, Cache, write_manifest, write_track

CONFIG = MetaTasNetConfig()
RATES = tuple(stage.sampling_rate for stage in CONFIG.stages)
ITEMS, SECONDS = 12, 8.0
MINUTES = float(os.environ.get("BENCH_LOADER_MINUTES", "2"))
TRACKS, BATCHES = 4, 8

TARGET_CORES, TARGET_RATE = 16, 1000
"""The recipe's target: TARGET_RATE seconds of audio per second on TARGET_CORES cores."""

RECIPE_STEP = 0.115
"""Seconds per step if the authors' training took ten hours on one GPU; a target, not a measurement."""


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    found = {}
    random = np.random.default_rng(0)
    base = int(MINUTES * 60 * RATES[0])
    for dtype in ("int16", "float32"):
        path = tmp_path_factory.mktemp(f"cache-{dtype}")
        for index in range(TRACKS):
            audio = {rate: random.standard_normal((4, 2, base * (rate // RATES[0])), np.float32) for rate in RATES}
            write_track(path, "train", f"track{index}", audio, dtype=dtype)
        write_manifest(path, RATES)
        found[dtype] = Cache.open(path)
    return found


def record(benchmark: BenchmarkFixture, workers: int, batches: int) -> None:
    rate = batches * ITEMS * SECONDS / benchmark.stats.stats.median
    benchmark.extra_info |= {
        "audio seconds per second, measured": round(rate),
        "workers": workers,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "audio seconds per second and worker": round(rate / workers),
        f"extrapolated to {TARGET_CORES} workers": round(rate / workers * TARGET_CORES),
        f"target on {TARGET_CORES} cores": TARGET_RATE,
        "a step of 115 ms eats": round(ITEMS * SECONDS / RECIPE_STEP),
    }
    print(benchmark.extra_info)


def measure_reading(benchmark: BenchmarkFixture, batches: BatchSource, workers: int, **options: Any) -> None:
    numbers = itertools.count()

    with ThreadPoolExecutor(workers) as pool:

        def read() -> None:
            for _ in pool.map(batches._read, itertools.islice(numbers, BATCHES)):
                pass

        benchmark.pedantic(read, rounds=5, **options)
    record(benchmark, workers, BATCHES)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_host(benchmark: BenchmarkFixture, caches: dict[str, Cache], dtype: str, workers: int) -> None:
    """Measure making the batches that wait in host memory for their transfer to a GPU."""
    batches = BatchSource(caches[dtype], CONFIG, items=ITEMS, seconds=SECONDS, workers=workers)
    measure_reading(benchmark, batches, workers, warmup_rounds=1)


@pytest.mark.parametrize("augmentation", ["same", "none"])
def test_stream(benchmark: BenchmarkFixture, caches: dict[str, Cache], augmentation: str) -> None:
    """Measure whole batches on the CPU, with conversion to float32 and scaling, while two threads read ahead."""
    batches = BatchSource(caches["int16"], CONFIG, items=ITEMS, seconds=SECONDS, workers=2, augmentation=augmentation)
    with contextlib.closing(batches.stream()) as stream:
        benchmark.pedantic(lambda: [next(stream) for _ in range(BATCHES)], rounds=5, warmup_rounds=1)
    record(benchmark, 2, BATCHES)


def test_crops_are_read_from_disk(benchmark: BenchmarkFixture, caches: dict[str, Cache]) -> None:
    """Measure what :func:`test_host` measures, with the files dropped from the system's cache before each round."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("files cannot be thrown out of the cache here")
    batches = BatchSource(caches["int16"], CONFIG, items=ITEMS, seconds=SECONDS, workers=2)
    files = [track.file(rate) for track in batches.tracks for rate in RATES]

    def forget() -> None:
        for path in files:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    measure_reading(benchmark, batches, 2, setup=forget)
