"""When an inference job is captured and replayed, and that results stay the caller's; with a stand-in for the GPU's graphs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from metatasnet_fast import MultiTasNet, use_backend
from metatasnet_fast.backends import Choice
from metatasnet_fast.backends.cache import collect_parameters, prepare_all
from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.backends.graphs import GRAPHS, SECONDS, SHAPES, Captured, Graphs, switched_on
from metatasnet_fast.backends.reference import ReferenceBackend
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.precision import Precision
from tests.backends.cuda_support import EMULATED, EMULATED_WGMMA, needs_the_module
from tests.support import TINY

RATE = 8


class Recorder:
    """A job, and captures of it that are run again at every replay."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0
        self.fault = 0.0

    def job(self, x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return 2 * x + v, x - v

    def make(self, job: Any, inputs: Sequence[Tensor], pool: Any) -> Captured:
        self.captures += 1
        own = tuple(value.clone() for value in inputs)
        outputs = tuple(torch.full_like(value, float("nan")) for value in job(*own))

        def replay() -> None:
            self.replays += 1
            for output, value in zip(outputs, job(*own), strict=True):
                output.copy_(value + self.fault)

        return Captured(replay, own, outputs)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@torch.no_grad()
def test_a_shape_is_captured_at_its_second_use_and_replayed_on_new_values(recorder: Recorder) -> None:
    graphs = Graphs(RATE, recorder.make)
    values = [torch.full((2, 3), float(i)) for i in range(4)]
    results = [graphs.run(recorder.job, "name", (value, value)) for value in values]
    for value, (one, other) in zip(values, results, strict=True):
        assert torch.equal(one, 3 * value) and torch.equal(other, 0 * value)  # none was overwritten by a later replay
    assert (recorder.captures, recorder.replays) == (1, 3)


def test_results_are_ordinary_tensors_in_and_out_of_inference_mode(recorder: Recorder) -> None:
    graphs, value = Graphs(RATE, recorder.make), torch.ones(3)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            one, _ = graphs.run(recorder.job, "name", (value + 0, value + 0))
        assert torch.equal(one, 3 * value)
    assert recorder.captures == 1


@torch.no_grad()
def test_jobs_of_another_name_or_shape_are_other_graphs(recorder: Recorder) -> None:
    graphs = Graphs(RATE, recorder.make)
    for name, size in (("a", 3), ("b", 3), ("a", 4), ("a", 3), ("b", 3), ("a", 4)):
        x = torch.ones(size)
        graphs.run(recorder.job, name, (x, x))
    assert recorder.captures == 3


@torch.no_grad()
def test_shapes_that_come_once_are_not_captured_and_the_oldest_graph_goes(recorder: Recorder) -> None:
    graphs = Graphs(RATE, recorder.make)

    def run(size: int) -> None:
        graphs.run(recorder.job, "name", (torch.ones(size), torch.ones(size)))

    for size in range(1, 20):
        run(size)
    assert recorder.captures == 0
    for size in range(1, SHAPES + 2):
        run(size), run(size)
    captures = recorder.captures
    run(SHAPES + 1)
    assert recorder.captures == captures == SHAPES + 1
    assert len(graphs._seen) == SHAPES


def test_gradients_empty_batches_and_long_jobs_are_not_captured(recorder: Recorder) -> None:
    graphs = Graphs(RATE, recorder.make)
    x = torch.ones(3, requires_grad=True)
    for _ in range(3):
        graphs.run(recorder.job, "name", (x, x))[0].sum().backward()
    with torch.no_grad():
        for size in (0, int(SECONDS) * RATE + 1):
            for _ in range(3):
                graphs.run(recorder.job, "name", (torch.ones(size), torch.ones(size)))
        assert recorder.captures == 0
        for _ in range(3):
            graphs.run(recorder.job, "name", (torch.ones(int(SECONDS) * RATE), torch.ones(1)))
    assert recorder.captures == 1


@torch.no_grad()
def test_a_capture_that_fails_or_gives_other_values_is_said_once_and_not_tried_again(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Captured:
        raise RuntimeError("operation not permitted when stream is capturing")

    recorder.fault = 1e-6
    for make, reason in ((fail, "not permitted"), (recorder.make, "other values")):
        graphs, x = Graphs(RATE, make), torch.ones(3)
        with caplog.at_level(logging.WARNING):
            for _ in range(4):
                assert torch.equal(graphs.run(recorder.job, "name", (x, x))[0], 3 * x)
        (said,) = caplog.messages
        assert reason in said and f"{GRAPHS}=0" in said
        caplog.clear()
    assert recorder.captures == 1


@torch.no_grad()
def test_values_that_are_not_numbers_do_not_make_a_replay_wrong(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    graphs, x = Graphs(RATE, recorder.make), torch.full((3,), float("nan"))
    for _ in range(4):
        assert graphs.run(recorder.job, "name", (x, x))[0].isnan().all()
    assert (recorder.captures, recorder.replays, caplog.messages) == (1, 3, [])


@torch.no_grad()
def test_a_network_is_replayed_as_a_whole(recorder: Recorder) -> None:
    class Replaying(ReferenceBackend):
        graphs = Graphs(8000, recorder.make)

        def repeat(
            self,
            prepared: Sequence[Any],
            job: Callable[..., tuple[Tensor, ...]],
            name: Hashable,
            inputs: Sequence[Tensor],
        ) -> tuple[Tensor, ...]:
            return self.graphs.run(job, name, inputs)

    network = MultiTasNet(TINY).eval()
    plain = network.engine(Choice.parse("reference", None))
    replaying = Engine(plain.config, Replaying(), plain.precision, plain.prepared)
    for wanted in ([2], [0, 2], [1], [2], [0, 2], [1]):
        mixes = [torch.randn(2, 1, 4000 * 2**stage) for stage in range(3)]
        expected, found = plain.separate(mixes, wanted), replaying.separate(mixes, wanted)
        assert list(found) == list(expected) == wanted
        assert all(torch.equal(found[stage], expected[stage]) for stage in wanted)
    assert (recorder.captures, recorder.replays) == (3, 3)


@needs_the_module
@pytest.mark.parametrize("backend", [EMULATED, EMULATED_WGMMA], ids=["cuda", "cuda-wgmma"])
@torch.no_grad()
def test_a_network_of_compiled_kernels_is_replayed_too(backend: CudaBackend, recorder: Recorder) -> None:
    network = MultiTasNet(TINY).eval()
    stages = [(TINY.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]
    plain = Engine(TINY, backend, Precision.bfloat16, prepare_all(backend, Precision.bfloat16, stages))
    first = dataclasses.replace(plain.prepared[0], graphs=Graphs(8000, recorder.make))
    replaying = Engine(TINY, backend, Precision.bfloat16, [first, *plain.prepared[1:]])
    for _ in range(3):
        mixes = [torch.randn(1, 1, 1000 * 2**stage) for stage in range(3)]
        assert torch.equal(replaying.separate(mixes, [2])[2], plain.separate(mixes, [2])[2])
    assert (recorder.captures, recorder.replays) == (1, 2)


def test_they_are_on_unless_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GRAPHS, raising=False)
    assert switched_on()
    monkeypatch.setenv(GRAPHS, "0")
    assert not switched_on()


def assert_graphs_give_the_same_bits(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On the GPU: the same inference with graphs and without."""
    network: Any = MultiTasNet(TINY).cuda().eval()
    inputs = [[torch.randn(2, 1, 4000 * 2**s).cuda() for s in range(3)] for _ in range(4)]
    with torch.no_grad(), use_backend(backend, "bfloat16"):
        monkeypatch.setenv(GRAPHS, "0")
        expected = [network.inference(mixes, n_chunks=1) for mixes in inputs]
        monkeypatch.delenv(GRAPHS)
        found = [network.inference(mixes, n_chunks=1) for mixes in inputs]
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not [message for message in caplog.messages if "CUDA graphs are off" in message]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_inference_by_graphs_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert_graphs_give_the_same_bits("triton", monkeypatch, caplog)
