"""Cases measured once in alternating rounds, then handed to pytest-benchmark contender by contender.

pytest-benchmark keeps the statistics, the history and the comparison of runs; it does not measure. Its timer is a clock that
stands still but for the durations that ``metatasnet_fast.benchmark`` has measured (by events on a GPU), so what it stores are
those very samples. Everything else about a row is in ``extra_info``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.golden_parity import available, worst_error
from metatasnet_fast.benchmark import SIZES, Case, Entrants, Row, measure, measure_ceilings, recipe
from metatasnet_fast.benchmark.cases import EAGER, Contender
from metatasnet_fast.benchmark.machine import describe
from metatasnet_fast.benchmark.suite import Size
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet

Measured = dict[str, list[Row]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("metatasnet-fast")
    group.addoption("--bench-size", default="quick", choices=sorted(SIZES), help="size of the cases (default: quick)")
    group.addoption("--bench-device", default="cpu", help="cpu or cuda (default: cpu)")
    group.addoption("--bench-compile", action="store_true", help="torch.compile takes part, for minutes")
    group.addoption("--bench-jsonl", type=Path, help="append every row to this file, as `metatasnet-fast bench` does")


class StandingClock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = StandingClock()


class Bench:
    """What the benchmarks share: the network, the contenders, the ceilings, and the cases measured so far."""

    def __init__(self, size: Size, entrants: Entrants, jsonl: Path | None, golden: bool) -> None:
        self.size = size
        self.entrants = entrants
        self.network: MultiTasNet = recipe.network(size.config)
        self._ceilings = measure_ceilings(entrants.device, entrants.precisions, tiny=size.config != MetaTasNetConfig())
        self._machine = describe(entrants.device)
        self._jsonl = jsonl
        self._golden = golden
        self._rows: dict[str, dict[str, Row]] = {}

    @property
    def kind(self) -> str:
        return self.entrants.device.type

    def row(self, name: str, build: Callable[[Bench], Case], contender: str) -> Row:
        """A contender's row of a case, which is measured the first time that one of its rows is asked for."""
        if name not in self._rows:
            case = build(self)
            if self._golden and case.job == "inference":
                case.golden = self._error_against_the_recording
            rows = measure(case, self._ceilings, self.size.effort)
            for row in rows:
                row.machine = self._machine
            if self._jsonl:
                self._jsonl.parent.mkdir(parents=True, exist_ok=True)
                with open(self._jsonl, "a", encoding="utf-8") as file:
                    file.writelines(row.to_json() + "\n" for row in rows)
            self._rows[name] = {row.label: row for row in rows}
        if contender not in self._rows[name]:
            pytest.skip(f"{contender} does not do this job here")
        return self._rows[name][contender]

    def _error_against_the_recording(self, contender: Contender) -> float | None:
        if contender.name not in (EAGER, *self.entrants.backends) or contender.precision.value == "tf32":
            return None
        return worst_error(contender.name, contender.precision, self.entrants.device)


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Bench:
    option = request.config.getoption
    device = torch.device(option("--bench-device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    size = SIZES[option("--bench-size")]
    entrants = Entrants.of(device, compiled=option("--bench-compile"))
    golden = available() and size.config == MetaTasNetConfig()
    return Bench(size, entrants, option("--bench-jsonl"), golden)


@pytest.fixture
def replay(benchmark: Any) -> Callable[[Row], None]:
    """Give a row's samples to pytest-benchmark; fail without a speed if the row has none to give."""

    def give(row: Row) -> None:
        benchmark.extra_info.update(json.loads(row.to_json()))
        if row.reason is not None:
            if row.reason.startswith("does not run"):
                pytest.skip(row.reason)
            pytest.fail(row.reason, pytrace=False)
        samples = iter(row.samples)

        def advance() -> None:
            CLOCK.now += next(samples)

        benchmark.pedantic(advance, rounds=len(row.samples), iterations=1, warmup_rounds=0)

    return give
