"""Inference, single jobs, preparation and training, against eager PyTorch and, with ``--bench-compile``, ``torch.compile``.

pytest bench/test_bench_network.py --bench-size quick --bench-device cpu
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.conftest import CLOCK, Bench
from metatasnet_fast.benchmark import Case, Row
from metatasnet_fast.benchmark.preparation import preparation_case
from metatasnet_fast.benchmark.training_step import training_case
from metatasnet_fast.benchmark.whole_programs import first_call_case, separation_case
from metatasnet_fast.benchmark.workloads import inference_case, job_cases

Replay = Callable[[Row], None]

CONTENDERS = [
    f"{name} {precision}"
    for precision in ("float32", "tf32", "bfloat16")
    for name in ("reference", "torch.compile", "cpu", "triton", "cuda")
]

pytestmark = [pytest.mark.benchmark(timer=CLOCK), pytest.mark.parametrize("contender", CONTENDERS)]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_inference(bench: Bench, replay: Replay, contender: str, which: int) -> None:
    windows = bench.size.windows[bench.kind]
    if which >= len(windows):
        pytest.skip("this size has fewer shapes")
    batch, seconds = windows[which]

    def build(bench: Bench) -> Case:
        return inference_case(bench.network, bench.entrants, batch, seconds)

    replay(bench.row(f"inference {batch}x{seconds:g}s", build, contender))


@pytest.mark.parametrize("job", ["encode", "mask", "decode"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_job(bench: Bench, replay: Replay, contender: str, stage: int, job: str) -> None:
    if stage not in bench.size.jobs:
        pytest.skip("this size leaves the stage out")

    def build(bench: Bench) -> Case:
        found = job_cases(bench.network, bench.entrants, stage, *bench.size.job[bench.kind])
        return next(case for case in found if case.job == job)

    replay(bench.row(f"{job} {stage}", build, contender))


def test_preparation(bench: Bench, replay: Replay, contender: str) -> None:
    replay(bench.row("preparation", lambda b: preparation_case(b.network, b.entrants), contender))


def test_training_step(bench: Bench, replay: Replay, contender: str) -> None:
    items, seconds = bench.size.training[bench.kind]
    replay(bench.row("training", lambda b: training_case(b.network, b.entrants, items, seconds), contender))


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_separation(bench: Bench, replay: Replay, contender: str, mode: str) -> None:
    seconds = bench.size.recording[bench.kind]
    if not seconds:
        pytest.skip("this size leaves the recording out")

    def build(bench: Bench) -> Case:
        return separation_case(bench.network, bench.entrants, "fast" if mode == "fast" else "reference", 2, seconds)

    replay(bench.row(f"separation {mode}", build, contender))


def test_first_call(bench: Bench, replay: Replay, contender: str) -> None:
    if not bench.size.first_call:
        pytest.skip("this size leaves new processes out")
    replay(bench.row("first call", lambda b: first_call_case(b.network, b.entrants, b.size.job[b.kind][1]), contender))
