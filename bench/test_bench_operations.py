"""The fused operations one by one, forward and with backward, against the authors' layers in eager PyTorch and compiled.

pytest bench/test_bench_operations.py --bench-size full --bench-device cuda [--bench-compile]
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.conftest import CLOCK, Bench
from metatasnet_fast.benchmark import Case, Row
from metatasnet_fast.benchmark.operations import operation_case, operations
from metatasnet_fast.benchmark.workloads import frames_of

CONTENDERS = [
    f"{name} {precision}"
    for precision in ("float32", "tf32", "bfloat16")
    for name in ("reference", "torch.compile", "triton")
]
NAMES = (
    "norm, product, residual",
    "norm, dilated depthwise",
    "in_conv",
    "mask tail",
    "filter bank",
    "overlap-add",
)

pytestmark = [pytest.mark.benchmark(timer=CLOCK), pytest.mark.parametrize("contender", CONTENDERS)]


@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward-and-backward"])
@pytest.mark.parametrize("name", NAMES)
def test_operation(bench: Bench, replay: Callable[[Row], None], contender: str, name: str, training: bool) -> None:
    items, seconds = bench.size.job[bench.kind]
    config = bench.network.config

    def build(bench: Bench) -> Case:
        found = operations(config.stage(config.stages_num - 1), items, frames_of(bench.network, seconds))
        return operation_case(next(o for o in found if o.name == name), bench.entrants, training)

    replay(bench.row(f"{name} {training}", build, contender))
