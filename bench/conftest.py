"""Define the options of test_bench_network.py."""

from __future__ import annotations

import pytest

from metatasnet_fast.benchmark import SIZES


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("metatasnet-fast")
    group.addoption("--bench-size", default="quick", choices=sorted(SIZES), help="size of the cases (default: quick)")
    group.addoption("--bench-device", default="cpu", help="cpu or cuda (default: cpu)")
    group.addoption("--bench-compile", action="store_true", help="torch.compile takes part, for minutes")
