"""A network's programs are compiled before its first use: all of them, and those that Triton looks for at run time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from metatasnet_fast.kernels import log_power  # noqa: E402
from metatasnet_fast.kernels.recording import Launch, source  # noqa: E402
from metatasnet_fast.model.programs import programs, record  # noqa: E402
from metatasnet_fast.ops.operator import interpreted  # noqa: E402
from metatasnet_fast.precision import Precision  # noqa: E402
from tests.support import TINY  # noqa: E402

pytestmark = pytest.mark.skipif(interpreted(), reason="Triton interprets its kernels")


def identities(launches: list[Any]) -> set[tuple[str, str]]:
    """The programs of launches, as Triton tells them apart."""
    sources = [source(launch) for launch in launches if isinstance(launch, Launch)]
    return {(what.hash(), str(options)) for what, options in sources}


@pytest.mark.parametrize("precision", [Precision.float32, Precision.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_no_length_and_no_batch_needs_another_program(precision: Precision, training: bool) -> None:
    known = identities(list(programs(TINY, precision, 90, training)))
    lengths = [(1, 400 * TINY.W), (3, 401 * TINY.W), (16, 1603 * TINY.W)]
    if not training:
        lengths += [(1, 400 * TINY.W + rest) for rest in (1, 2, 3, 4, 6, 8, 15)]
    for items, samples in lengths:
        found = record(TINY, precision, 90, items, samples, training)
        assert identities(found.preparing + found.running) <= known, (items, samples)


def test_other_networks_and_training_need_more_programs() -> None:
    inference = identities(list(programs(TINY, Precision.bfloat16, 90, False)))
    assert inference < identities(list(programs(TINY, Precision.bfloat16, 90, True)))
    other = dataclasses.replace(TINY, N=2 * TINY.N)
    assert not identities(list(programs(other, Precision.bfloat16, 90, False))) <= inference


def test_what_a_process_makes_once_belongs_to_no_run() -> None:
    log_power.basis.cache_clear()
    first, second = (record(TINY, Precision.bfloat16, 90, 1, 400 * TINY.W, False) for _ in range(2))
    assert [len(first.preparing), len(first.running)] == [len(second.preparing), len(second.running)]
