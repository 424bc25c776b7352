"""Measure all four metrics, and SDR alone, against museval, on half a minute of four stereo stems, in alternating runs.

The signals are noise below 16 kHz, rounded to 16 bits as the decoder of MUSDB18 does. So the normal equations are as
ill-conditioned as those of music.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from metatasnet_fast.evaluation import METRICS, bss_eval

RATE, SECONDS = 44100, 30
ROUNDS = 3

Array = NDArray[np.float64]

# Separate programs, so that each program pays only for its own imports.
_SIGNALS = f"""
import numpy as np
random = np.random.RandomState(0)
references = random.standard_normal((4, {SECONDS * RATE}, 2))
estimates = references + 0.3 * random.standard_normal(references.shape)
"""
_PROGRAMS = {
    "museval": """
import museval
museval.evaluate(references, estimates)
""",
    "ours": """
from metatasnet_fast.evaluation import bss_eval
bss_eval(references, estimates)
""",
}
# getrusage would be wrong: its maximum survives exec, so a child reports its parent's memory.
_PEAK = """
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def band_limited(seconds: float = SECONDS) -> tuple[Array, Array]:
    """Return references and estimates, (4, samples, 2) each. References are noise below 16 kHz that both channels share
    in part; estimates leak between stems."""
    random = np.random.RandomState(0)
    samples = int(seconds * RATE)
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    references = np.empty((4, samples, 2))
    for stem in range(4):
        shape = (frequency < 16_000) / np.sqrt(1 + (frequency / (300 * 3**stem)) ** 2)
        left, right, middle = (np.fft.irfft(np.fft.rfft(random.randn(samples)) * shape, samples) for _ in range(3))
        references[stem] = np.stack([left + middle, right + middle], axis=1)
    references = np.round(references * (3276.8 / references.std())) / 32768
    estimates = 0.8 * references + 0.1 * references.sum(0) + 1e-3 * random.standard_normal(references.shape)
    return references, estimates


def seconds_of(function: Callable[..., object], *arguments: object, **options: object) -> float:
    start = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - start


@pytest.mark.parametrize(("metrics", "rounds"), [(METRICS, ROUNDS), (("SDR",), 10)], ids=["all four", "SDR alone"])
def test_metrics(benchmark: BenchmarkFixture, metrics: tuple[str, ...], rounds: int) -> None:
    benchmark.extra_info["audio_seconds"] = SECONDS
    benchmark.pedantic(bss_eval, band_limited(), {"metrics": metrics}, rounds=rounds, warmup_rounds=1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Give torch one thread, while museval keeps all cores. This makes torch slower, but the ratio also holds on a busy
    machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_speed_over_museval(benchmark: BenchmarkFixture, one_thread: None) -> None:
    """Measure the medians of alternating runs, and the largest difference between the two programs' numbers."""
    museval = pytest.importorskip("museval")
    references, estimates = band_limited()
    times: dict[str, list[float]] = {"museval": [], "all four": [], "SDR alone": []}

    def alternate() -> None:
        times["museval"].append(seconds_of(museval.evaluate, references, estimates))
        times["all four"].append(seconds_of(bss_eval, references, estimates))
        times["SDR alone"].append(
            float(np.median([seconds_of(bss_eval, references, estimates, metrics=("SDR",)) for _ in range(5)]))
        )

    benchmark.pedantic(alternate, rounds=ROUNDS, warmup_rounds=0)
    theirs, ours = museval.evaluate(references, estimates), bss_eval(references, estimates)
    median = {name: float(np.median(values)) for name, values in times.items()}
    benchmark.extra_info |= {f"{name}, seconds": round(value, 4) for name, value in median.items()}
    benchmark.extra_info |= {
        f"{name}, times museval": round(median["museval"] / median[name], 1) for name in ("all four", "SDR alone")
    }
    for metric, expected in zip(METRICS, theirs, strict=True):
        benchmark.extra_info[f"{metric}, largest distance in dB"] = float(np.nanmax(np.abs(ours[metric] - expected)))
    print(benchmark.extra_info)
    assert median["museval"] >= 6 * median["all four"]
    assert median["museval"] >= 100 * median["SDR alone"]


def test_peak_memory_against_museval(benchmark: BenchmarkFixture) -> None:
    """Measure the peak resident memory of one whole process per program, with its inputs and imports."""
    pytest.importorskip("museval")
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    peaks: dict[str, float] = {}

    def measure() -> None:
        for name, program in _PROGRAMS.items():
            done = subprocess.run(
                [sys.executable, "-c", _SIGNALS + program + _PEAK], check=True, capture_output=True, text=True
            )
            peaks[name] = int(done.stdout.split()[-1]) / 1024

    benchmark.pedantic(measure, rounds=1, warmup_rounds=0)
    benchmark.extra_info |= {f"{name}, peak MiB": round(peak) for name, peak in peaks.items()}
    print(benchmark.extra_info)
    assert peaks["ours"] <= peaks["museval"] / 2
