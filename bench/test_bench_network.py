"""Run the cases of ``metatasnet-fast bench`` under pytest-benchmark, which adds statistics, history and comparisons.

    pytest bench/test_bench_network.py --bench-size quick --bench-device cpu --benchmark-autosave

Every round reads new inputs. An implementation whose results miss the parity rule fails and gets no times.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metatasnet_fast.benchmark import SIZES, Case, Participants, Row, checked, synthetic
from metatasnet_fast.benchmark.suite import cases

JOBS = ["inference", "preparation", "training step", "separate fast", "separate reference", "first call"]
IMPLEMENTATIONS = [
    f"{name} {precision}"
    for precision in ("float32", "tf32", "bfloat16")
    for name in ("reference", "torch.compile", "cpu", "triton", "cuda")
]

Checked = list[tuple[Case, dict[str, tuple[Row, Callable[[], Any] | None]]]]


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest) -> Callable[[str], Checked]:
    """Return a function from a job to its cases, each with its implementations by label. The function also checks the
    results of the implementations."""
    option = request.config.getoption
    device = torch.device(option("--bench-device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    size = SIZES[option("--bench-size")]
    participants = Participants.of(device, compiled=option("--bench-compile"))
    network = synthetic.network(size.config)

    @functools.lru_cache(maxsize=1)
    def of(job: str) -> Checked:
        return [
            (case, {row.label: (row, call) for row, call in checked(case)})
            for case in cases(size, network, participants)
            if case.name.startswith(job)
        ]

    return of


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)  # varies fastest: each job is prepared once
@pytest.mark.parametrize("job", JOBS)
def test_job(benchmark: Any, prepared: Callable[[str], Checked], job: str, implementation: str, request: Any) -> None:
    found = [(case, *own[implementation]) for case, own in prepared(job) if implementation in own]
    if not found:
        pytest.skip(f"{implementation} does not do this job here")
    case, row, call = found[0]  # the largest shape of a size comes first
    if row.wrong:
        pytest.fail(str(row.reason), pytrace=False)
    if call is None or row.reason:
        pytest.skip(str(row.reason))
    numbers = itertools.count(1)

    def run() -> None:
        call()
        if case.inputs[0].is_cuda:
            torch.cuda.synchronize()

    benchmark.pedantic(run, setup=lambda: case.fill(next(numbers)) and None, rounds=3 if case.whole_process else 5)
    benchmark.extra_info.update(case=case.name, errors=row.errors, limits=row.limits, peak_bytes=row.peak_bytes)
