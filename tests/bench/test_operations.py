"""The operations that are timed do what the authors' layers do, on values in either layout."""

from __future__ import annotations

import pytest
import torch

from bench.test_bench_operations import NAMES
from metatasnet_fast.benchmark import Effort, Entrants, measure, measure_ceilings
from metatasnet_fast.benchmark.operations import Operation, operation_case, operations
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.support import relative_error

CONFIG = MetaTasNetConfig(N=16, B=16, H=24, layers=2, stack=1, num_mels=8)
FOUND = list(operations(CONFIG.stage(1), 2, 37))


def test_every_listed_operation_is_timed() -> None:
    assert [operation.name for operation in FOUND] == list(NAMES)


@pytest.mark.parametrize("operation", FOUND, ids=lambda o: o.name)
def test_the_fused_operation_equals_the_layers(operation: Operation) -> None:
    parameters = {name: p.double() for name, p in operation.parameters.items()}
    activations = {name: x.double() for name, x in operation.activations.items()}
    ours = {name: x if x.dim() == 2 else x.transpose(-1, -2) for name, x in activations.items()}
    found = operation.fused({**ours, **parameters}, False)
    expected = operation.plain({**activations, **parameters})
    assert relative_error(found if found.dim() == 2 else found.transpose(-1, -2), expected) < 1e-12


def test_eager_is_measured_forward_and_backward() -> None:
    entrants = Entrants(torch.device("cpu"), [Precision.float32], (), compiled=False)
    ceilings = measure_ceilings(entrants.device, entrants.precisions, tiny=True)
    for training in (False, True):
        [row] = measure(operation_case(FOUND[0], entrants, training), ceilings, Effort(0.01, 2, 2))
        assert row.reason is None and len(row.samples) == 2
        assert ("d weight" in row.errors) == training
