"""The backend ``cuda`` on a GPU: everything that the emulator cannot show."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import REFERENCE, SIGNALS, noise, prepare, recipe, separate, stage_parameters
from tests.backends.cuda_support import EMULATED, PRECISIONS
from tests.backends.test_cpu_golden import codec
from tests.backends.test_cuda_golden import limit
from tests.backends.test_graphs import assert_graphs_give_the_same_bits
from tests.support import FLOOR, TINY, assert_parity, golden, recipe_state, relative_error

CUDA = CudaBackend()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA.unavailable() is not None, reason=str(CUDA.unavailable())),
]

DEVICES = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cuda:0"]


def on(device: str, state: Any) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in state.items()}


def separated(
    config: MetaTasNetConfig, state: Any, mixes: list[Tensor], precision: Precision, device: str = "cuda:0"
) -> list[Tensor]:
    found = separate(CUDA, config, on(device, state), [m.to(device) for m in mixes], precision)
    return [value.cpu() for value in found]


@pytest.fixture(autouse=True)
def nothing_fails_later() -> Iterator[None]:
    """An error of a launch shows at the next synchronisation: in the test that caused it."""
    yield
    torch.cuda.synchronize()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["train_generated", "train_independent", "train_residual_bias"])
def test_network_equals_the_recorded_one(case: str, precision: Precision) -> None:
    recording = golden(case)
    mixes = recording.mixes(torch.float32)
    found = separated(recording.config, recording.under("state/"), mixes, precision)
    for s in range(recording.config.stages_num):
        latent, masked, estimate = found[3 * s : 3 * s + 3]
        most = limit(case, precision, "infer", s)
        assert_parity(f"latent {s}", latent, recording[f"encoder/stage{s}"], most)
        assert_parity(f"masked latent {s}", masked, recording[f"stage{s}/hidden"], most)
        assert_parity(f"estimate {s}", estimate[:1], recording[f"infer/stage{s}"], most)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["codec_8k", "codec_32k"])
def test_encoder_and_decoder_equal_the_recorded_ones(case: str, precision: Precision) -> None:
    recording = golden(case)
    config, parameters = codec(recording)
    prepared = prepare(CUDA, config, on("cuda:0", parameters), precision)
    latent = CUDA.encode(prepared, recording["encoder/x"].cuda()).cpu()
    assert_parity("latent", latent, recording["encoder/y"], limit(case, precision, "encoder/y"))
    signal = CUDA.decode(prepared, recording["decoder/x"].cuda()).cpu()
    assert_parity("signal", signal, recording["decoder/y"], limit(case, precision, "decoder/y"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_full_size_network_equals_the_recorded_one(precision: Precision) -> None:
    recording = golden("full_size")
    state = recipe(recording.config, recording.meta["weight_seed"])
    found = separated(recording.config, state, recording.mixes(torch.float32), precision)
    for s, estimate in enumerate(found[2::3]):
        strided = estimate[..., :: recording.meta["stride"]]
        assert_parity(f"estimate {s}", strided, recording[f"infer/stage{s}"], limit("full_size", precision, "infer", s))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_job_agrees_with_its_emulation(precision: Precision) -> None:
    """The same code on the same inputs; sums inside a tensor-core instruction may be rounded in another order."""
    state, mixes = recipe_state(TINY, 3), noise(TINY, 1, 1500)
    emulated = separate(EMULATED, TINY, state, mixes, precision)
    most = {Precision.float32: 2e-5, Precision.tf32: 2e-3, Precision.bfloat16: 3e-2}[precision]
    for index, value in enumerate(separated(TINY, state, mixes, precision)):
        assert_parity(f"result {index}", value, emulated[index], most)


@pytest.mark.parametrize("samples", [520, 999, 1000, 12345, 200_001])
def test_odd_lengths_agree_with_eager(samples: int) -> None:
    state, mixes = recipe_state(TINY, 3), noise(TINY, 1, samples)
    expected = separate(REFERENCE, TINY, state, mixes)
    for index, value in enumerate(separated(TINY, state, mixes, Precision.float32)):
        assert_parity(f"result {index}", value, expected[index], 1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("signal", SIGNALS)
def test_unusual_signals_give_numbers(signal: str, precision: Precision) -> None:
    mixes = [SIGNALS[signal](torch.arange(4000 * 2**s) / (8000 * 2**s))[None, None] for s in range(3)]
    for value in separated(TINY, recipe_state(TINY, 3), mixes, precision):
        assert value.isfinite().all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_are_the_same_bits_in_every_run_and_batch(precision: Precision) -> None:
    state, mixes = recipe_state(TINY, 3), noise(TINY, 5, 8000)
    together = separated(TINY, state, mixes, precision)
    for _ in range(10):
        again = separated(TINY, state, mixes, precision)
        assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))
    for item in range(5):
        alone = separated(TINY, state, [m[item : item + 1] for m in mixes], precision)
        assert all(torch.equal(a[item : item + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_any_number_of_instruments_agrees_with_eager(count: int) -> None:
    config = dataclasses.replace(TINY, instruments=tuple(f"stem_{k}" for k in range(count)))
    state, mixes = recipe_state(config, 3), noise(config, 1, 2000)
    expected = separate(REFERENCE, config, state, mixes)
    for index, value in enumerate(separated(config, state, mixes, Precision.float32)):
        assert_parity(f"result {index}", value, expected[index], 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_any_device_serves_whatever_the_current_one_is(device: str) -> None:
    state, mixes = recipe_state(TINY, 3), noise(TINY, 1, 2000)
    before = torch.cuda.current_device()
    found = separated(TINY, state, mixes, Precision.float32, device)
    assert torch.cuda.current_device() == before
    expected = separated(TINY, state, mixes, Precision.float32)
    assert all(relative_error(a, b) < FLOOR for a, b in zip(found, expected, strict=True))


def test_work_goes_to_the_current_stream() -> None:
    """Behind a sleep on a side stream the input is written late: only work on that stream sees it."""
    prepared = prepare(CUDA, TINY.stage(0), on("cuda:0", stage_parameters(recipe(TINY), 0)))
    mix = noise(TINY, 1, 4000)[0].cuda()
    expected = CUDA.encode(prepared, mix)
    late = torch.zeros_like(mix)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(mix)
        found = CUDA.encode(prepared, late)
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_jobs_can_be_captured_in_a_graph(precision: Precision) -> None:
    prepared = prepare(CUDA, TINY.stage(0), on("cuda:0", stage_parameters(recipe(TINY), 0)), precision)

    def run(signal: Tensor) -> Tensor:
        masked = CUDA.mask(prepared, CUDA.encode(prepared, signal), None)
        return CUDA.decode(prepared, masked.flatten(0, 1))

    first, second = (noise(TINY, 2, 4000, seed)[0].cuda() for seed in (1, 2))
    held = first.clone()
    run(held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(held)
    for signal in (second, first):
        held.copy_(signal)
        graph.replay()
        assert torch.equal(result, run(signal))


def test_memory_is_that_of_torchs_allocator() -> None:
    prepared = prepare(CUDA, TINY.stage(0), on("cuda:0", stage_parameters(recipe(TINY), 0)))
    mix = noise(TINY, 4, 80_000)[0].cuda()
    CUDA.mask(prepared, CUDA.encode(prepared, mix), None)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(5):
        CUDA.mask(prepared, CUDA.encode(prepared, mix), None)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == free


def test_inference_by_graphs_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert_graphs_give_the_same_bits("cuda", monkeypatch, caplog)
