"""Several processes compute what one process computes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metatasnet_fast.backends import Choice
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.training.launch import plan_run, train
from metatasnet_fast.training.runtime import World
from metatasnet_fast.training.step import GradientStep, Items
from tests.support import TINY, recipe_state, relative_error
from tests.training.songs import SMALL, write_cache
from tests.training.test_step import UNCUT, random_items

PROCESSES = 2

CASES = [(torch.float64, None), (torch.float64, 1), (torch.float32, None)]
"""Precision, and items computed at once."""

CONFIG = dataclasses.replace(TINY, stages_num=2)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def items(dtype: torch.dtype) -> Items:
    return random_items(4, dtype, stages=2)


def gradients(batch: Items, world: World, micro_batch: int | None) -> dict[str, Any]:
    """Of the whole batch, from this process's share; the weights are the first process's only."""
    dtype = batch.sources[0].dtype
    network = MultiTasNet(CONFIG)
    if world.first:
        network.load_state_dict(recipe_state(CONFIG, 3))
    network.to(dtype)
    share = len(batch) // world.size
    own = batch.rows(world.rank * share, share)
    step = GradientStep(network, Choice("reference"), world=world, micro_batch=micro_batch, clip=UNCUT)
    for _ in range(2):
        found = step(own, 1, votes=[1.0, float(world.rank)])
    named = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"loss": found.loss, "stats": found.stats, "norm": found.norm, "votes": found.votes, "gradients": named}


def work(rank: int, port: str, folder: Path) -> None:
    """One of the processes."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    world = World.from_environment()
    with world.joined(torch.device("cpu")):
        for dtype, micro_batch in CASES:
            found = gradients(items(dtype), world, micro_batch)
            torch.save(found, folder / f"{dtype}-{micro_batch}-{rank}.pt")


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every process found, in files."""
    folder, port = tmp_path_factory.mktemp("processes"), free_port()
    importlib.import_module(
        "torch._dynamo"
    )  # DistributedDataParallel imports it, for seconds; the processes inherit it
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank, port, folder)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    return folder


@pytest.mark.parametrize(("dtype", "micro_batch"), CASES)
def test_two_processes_find_the_gradients_of_one(computed: Path, dtype: torch.dtype, micro_batch: int | None) -> None:
    expected = gradients(items(torch.float64), World(), None)
    found = [torch.load(computed / f"{dtype}-{micro_batch}-{rank}.pt") for rank in range(PROCESSES)]
    limit = 1e-12 if dtype == torch.float64 else 10 * difference(gradients(items(dtype), World(), None), expected)
    for each in found:
        assert each["gradients"].keys() == expected["gradients"].keys()  # the unused parameters have none
        assert difference(each, expected) <= limit
        assert each["loss"] == pytest.approx(expected["loss"], rel=limit)
        assert each["stats"] == pytest.approx(expected["stats"], rel=100 * limit)
        assert each["norm"] == pytest.approx(expected["norm"], rel=limit)
        assert each["votes"] == [PROCESSES, 1]
    first, second = found
    assert all(torch.equal(first["gradients"][n], second["gradients"][n]) for n in first["gradients"])
    assert first["loss"] == second["loss"]


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    gradients, others = (each["gradients"] for each in (found, expected))
    return relative_error([gradients[name] for name in others], list(others.values()))


def test_a_run_under_torchrun_is_the_run_of_one_process(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", seconds=1.0, rates=(8000, 16000))
    given = {**SMALL, "steps": 3, "validate_every": 3, "log_every": 1, "dtype": "float64"}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*program, "-m", "metatasnet_fast", "train", str(cache), "--out", str(tmp_path / "two"), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("network: ") == 1  # one process talks
    assert "2 processes" in done.stdout
    assert train(cache, tmp_path / "one", plan_run(tmp_path / "one", given)) is None
    one, two = (torch.load(tmp_path / run / "best.pt", weights_only=False) for run in ("one", "two"))
    assert one["steps"] == two["steps"] == 3
    state, other = (x["state_dict"] for x in (one, two))
    assert relative_error([other[name] for name in state], list(state.values())) < 1e-6
    for left, right in zip(*(entries(tmp_path / run) for run in ("one", "two")), strict=True):
        assert left["step"] == right["step"]
        for name in {"loss", "gradient_norm", "score"} & left.keys():
            assert left[name] == pytest.approx(right[name], rel=1e-5)


def entries(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK is 'first'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": ""}, "LOCAL_RANK is ''"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
    ],
)
def test_a_place_among_the_processes_that_is_no_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{says}.*: start .* torchrun, or unset WORLD_SIZE"):
        World.from_environment()


@pytest.mark.parametrize("absent", ["MASTER_ADDR", "MASTER_PORT"])
def test_processes_that_cannot_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    monkeypatch.delenv(absent)
    with (
        pytest.raises(ConfigError, match=f"^{absent} is not set.*torchrun"),
        World(0, PROCESSES).joined(torch.device("cpu")),
    ):
        pass
