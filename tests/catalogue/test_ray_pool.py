"""How many workers a cluster gets: never more than Ray could place, for it would wait without a word."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metatasnet_fast.catalogue.ray_engine import Node, Pool, plan_pool
from metatasnet_fast.errors import ConfigError

LAPTOP = [Node(2, 0)]
RACK = [Node(16, 8), Node(16, 8), Node(64, 0)]


def test_a_machine_without_a_gpu_gets_one_worker_with_all_its_cores() -> None:
    assert plan_pool(LAPTOP, "auto", None, None) == Pool(1, 2, 0, 1)


def test_a_cluster_gets_one_worker_on_each_gpu_and_none_elsewhere() -> None:
    assert plan_pool(RACK, "auto", None, None) == Pool(16, 2, 1, 2)


def test_the_cpu_can_be_asked_for_where_there_are_gpus() -> None:
    assert plan_pool(RACK, "cpu", 16, None) == Pool(6, 16, 0, 3)


def test_more_workers_than_machines_share_the_cores() -> None:
    assert plan_pool(LAPTOP, "cpu", None, 2) == Pool(2, 1, 0, 1)


@pytest.mark.parametrize(
    ("nodes", "device", "threads", "workers", "advice"),
    [
        (LAPTOP, "cpu", None, 3, "at most 2 --workers"),
        (LAPTOP, "cpu", 2, 2, "at most 1 --workers"),
        (LAPTOP, "cpu", 3, None, "at most 2 with --threads"),
        (RACK, "auto", None, 17, "at most 16 --workers"),
        (LAPTOP, "cuda", None, None, "another --device"),
        ([Node(0, 0)], "auto", None, None, "no CPU"),
        ([], "auto", None, None, "no CPU"),
    ],
)
def test_what_would_wait_for_ever_is_refused_with_what_to_do(
    nodes: list[Node], device: str, threads: int | None, workers: int | None, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        plan_pool(nodes, device, threads, workers)


counts = st.integers(0, 9)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.builds(Node, st.integers(0, 70), counts), max_size=6),
    st.sampled_from(["auto", "cpu", "cuda"]),
    st.none() | st.integers(1, 80),
    st.none() | st.integers(1, 30),
)
def test_a_pool_always_fits(nodes: list[Node], device: str, threads: int | None, workers: int | None) -> None:
    try:
        pool = plan_pool(nodes, device, threads, workers)
    except ConfigError:
        return
    free = [[node.cpus, node.gpus] for node in nodes]
    for _ in range(pool.workers):
        place = next(node for node in free if node[0] >= pool.cpus and node[1] >= pool.gpus)
        place[0] -= pool.cpus
        place[1] -= pool.gpus
    assert pool.workers >= 1 and pool.cpus >= 1
    assert threads is None or pool.cpus == threads
    assert workers is None or pool.workers == workers
