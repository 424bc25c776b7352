"""The codec's and the losses' kernels on a GPU: the same cases with CUDA tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metatasnet_fast.ops import bottleneck
from metatasnet_fast.precision import Precision
from tests.ops import codec_cases, loss_cases
from tests.support import golden

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [1, 2, 5, 31, 64, 127, 129, 257]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", codec_cases.CASES)
def test_equals_pytorchs_layers(name: str, length: int) -> None:
    least = {"filter bank": 5, "log power": 17}.get(name, 1)
    size = "samples" if least > 1 else "frames"
    codec_cases.check(codec_cases.CASES[name](**{size: max(length, least)}), device="cuda")


@pytest.mark.parametrize("name", ["bottleneck", "filter bank", "overlap-add"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_bytes_are_rounded_once(name: str, dtype: torch.dtype) -> None:
    codec_cases.check(codec_cases.CASES[name](), dtype, {torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype], "cuda")


@pytest.mark.parametrize("precision", [Precision.float32, Precision.bfloat16])
@pytest.mark.parametrize(("name", "job"), codec_cases.RECORDED)
def test_codec_equals_the_recorded_one(name: str, job: str, precision: Precision) -> None:
    codec_cases.recorded_job(golden(name), job, precision, "cuda")


@pytest.mark.parametrize("sizes", [{"n_fft": 1024, "hop": 256}, {"n_fft": 4096, "hop": 1024}])
@pytest.mark.parametrize("level", [0.0, 1e-6, 1.0])
def test_log_power_is_float32_at_any_level(sizes: dict[str, int], level: float) -> None:
    case = codec_cases.log_power_case(samples=9000, **sizes)
    signal = level * case.tensors["signal"]
    expected, eager = case.plain({"signal": signal}), case.plain({"signal": signal.float()})
    found = case.fused({"signal": signal.float().cuda()}).cpu()
    allowed = 3 * (eager.double() - expected).abs().max() + 1e-6
    assert (found.double() - expected).abs().max() <= allowed


@pytest.mark.parametrize("name", codec_cases.CASES)
def test_repetition_and_neighbours_change_nothing(name: str) -> None:
    case = codec_cases.CASES[name](n=3)
    leaves = case.leaves(torch.float32, "cuda")
    alone = {k: v.detach()[1:2] if k in ("x", "share", "signal") else v.detach() for k, v in leaves.items()}
    first = codec_cases.results(case.fused, leaves)
    for _ in range(50):
        again = codec_cases.results(case.fused, leaves)
        assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert torch.equal(case.fused(alone), first["y"][1:2])


@pytest.mark.parametrize("sizes", [{}, {"n": 1}, {"samples": 9000, "frames": 5, "channels": 150}])
def test_losses_equal_the_reference(sizes: dict[str, Any]) -> None:
    loss_cases.check(loss_cases.inputs(**sizes), torch.float32, 3e-6, "cuda")


def test_losses_equal_the_recorded_ones() -> None:
    loss_cases.recorded(golden("loss"), torch.float32, 3e-6, "cuda")


def test_more_than_two_billion_values() -> None:
    frames, width = 2**31 // 256 + 300, 256
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    x = torch.randn(1, frames, width, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(width, width, device="cuda")
    last = bottleneck(x, weight)[:, -130:]
    assert torch.equal(last, bottleneck(x[:, -130:].clone(), weight))


def test_replays_in_a_cuda_graph() -> None:
    case = codec_cases.bottleneck_case()
    values = {k: v.detach() for k, v in case.leaves(torch.float32, "cuda").items()}
    case.fused(values)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = case.fused(values)
    values["x"].copy_(torch.randn_like(values["x"]))
    graph.replay()
    assert torch.equal(y, case.fused(values))
