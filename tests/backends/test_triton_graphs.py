"""When a job is captured and replayed, and that results stay the caller's; with a stand-in for the GPU's graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metatasnet_fast.backends.triton_graphs import SHAPES, VARIABLE, Captured, Graphs, switched_on


class Recorder:
    """A job, and captures of it that are run again at every replay."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def job(self, x: Tensor, v: Tensor | None) -> Tensor:
        return 2 * x if v is None else 2 * x + v

    def make(self, job: Any, inputs: tuple[Tensor | None, ...], pool: Any) -> Captured:
        self.captures += 1
        own = tuple(None if value is None else value.clone() for value in inputs)
        output = torch.full_like(job(*own), float("nan"))

        def replay() -> None:
            self.replays += 1
            output.copy_(job(*own))

        return Captured(replay, own, output)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@torch.no_grad()
def test_a_shape_is_captured_at_its_second_use_and_replayed_on_new_values(recorder: Recorder) -> None:
    graphs = Graphs(recorder.job, recorder.make)
    values = [torch.full((2, 3), float(i)) for i in range(4)]
    results = [graphs(value, value) for value in values]
    for value, result in zip(values, results, strict=True):
        assert torch.equal(result, 3 * value)  # none was overwritten by a later replay
    assert (recorder.captures, recorder.replays) == (1, 3)


@torch.no_grad()
def test_shapes_that_come_once_are_not_captured_and_the_oldest_graph_goes(recorder: Recorder) -> None:
    graphs = Graphs(recorder.job, recorder.make)
    for size in range(1, 20):
        graphs(torch.ones(size), None)
    assert recorder.captures == 0
    for size in range(1, SHAPES + 2):
        graphs(torch.ones(size), None), graphs(torch.ones(size), None)
    captures = recorder.captures
    graphs(torch.ones(SHAPES + 1), None)
    assert recorder.captures == captures == SHAPES + 1
    assert len(graphs._seen) == SHAPES


def test_gradients_and_empty_batches_are_not_captured(recorder: Recorder) -> None:
    graphs = Graphs(recorder.job, recorder.make)
    x = torch.ones(3, requires_grad=True)
    for _ in range(3):
        graphs(x, None).sum().backward()
    with torch.no_grad():
        for _ in range(3):
            graphs(torch.ones(0), None)
    assert recorder.captures == 0


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not switched_on()
    monkeypatch.setenv(VARIABLE, "1")
    assert switched_on()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_inference_by_graphs_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from metatasnet_fast import MultiTasNet, use_backend
    from tests.support import TINY

    network: Any = MultiTasNet(TINY).cuda().eval()
    inputs = [[torch.randn(2, 1, 4000 * 2**s).cuda() for s in range(3)] for _ in range(4)]
    with torch.no_grad(), use_backend("triton", "bfloat16"):
        expected = [network.inference(mixes, n_chunks=1) for mixes in inputs]
        monkeypatch.setenv(VARIABLE, "1")
        found = [network.inference(mixes, n_chunks=1) for mixes in inputs]
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
