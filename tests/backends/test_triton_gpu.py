"""The backend ``triton`` on a GPU, through the public API: recordings, training, what PyTorch is asked to do, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metatasnet_fast import MultiTasNet, use_backend
from tests.backends import triton_support
from tests.backends.triton_support import batch, gradients
from tests.support import TINY, allowed, assert_parity, golden, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
BLOCKS = ["blocks_generated", "blocks_independent", "blocks_residual_bias"]
TRAINED = ["train_generated", "train_independent", "train_residual_bias"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["mask", "mask_partial"])
@pytest.mark.parametrize("name", BLOCKS)
def test_masking_network_equals_the_recorded_one(name: str, part: str, dtype: torch.dtype) -> None:
    triton_support.recorded_network(golden(name), part, dtype, "cuda")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*TRAINED, "full_size"])
def test_inference_equals_the_authors(case: str, precision: str) -> None:
    recording = golden(case)
    network = recording.network().cuda()
    mixes = [m[:1].cuda() for m in recording.mixes(torch.float32)]
    with torch.no_grad(), use_backend("triton", precision):
        outputs = network.inference(mixes, n_chunks=1)
    stride = recording.meta.get("stride", 1)
    for s, output in enumerate(outputs):
        limit = allowed(case, precision, "infer", s)
        assert_parity(f"stage {s}", output.cpu()[..., ::stride], recording[f"infer/stage{s}"], limit)


def test_tf32_inference_is_as_good_as_eager_in_tf32() -> None:
    recording = golden("full_size")
    network = recording.network().cuda()
    mixes = [m[:1].cuda() for m in recording.mixes(torch.float32)]
    found = {}
    for backend in ("triton", "reference"):
        with torch.no_grad(), use_backend(backend, "tf32"):
            found[backend] = network.inference(mixes, n_chunks=1)
    for s in range(3):
        expected = recording[f"infer/stage{s}"]
        own, eager = (found[b][s].cpu()[..., :: recording.meta["stride"]] for b in ("triton", "reference"))
        assert_parity(f"stage {s}", own, expected, 1.5 * relative_error(eager, expected))


@pytest.mark.parametrize("case", TRAINED)
def test_training_step_equals_the_authors(case: str) -> None:
    recording = golden(case)
    network: Any = recording.network().cuda()
    sources = [s.cuda() for s in recording.sources()]
    sounding = [(s.abs().amax(-1) > 0).float() for s in sources]
    with use_backend("triton", "float32"):
        loss, stats = network([m.cuda() for m in recording.mixes(torch.float32)], sources, sounding)
    loss.mean().backward()
    assert_parity("loss", loss.detach().cpu(), recording["loss"], allowed(case, "float32", "loss", times=10))
    assert_parity("stats", stats.detach().cpu(), recording["stats"], allowed(case, "float32", "stats", times=10))
    expected = recording.under("grad/")
    found = gradients(network)
    assert {name for name, grad in found.items() if grad is None} == found.keys() - expected.keys()
    own: list[Any] = [found[name].cpu() for name in expected]  # type: ignore[union-attr]
    assert_parity("gradients", own, list(expected.values()), allowed(case, "float32", "grad_all", times=10))


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_no_layer_of_pytorch_runs_at_any_depth(precision: str) -> None:
    network: Any = MultiTasNet(TINY).cuda().train()
    mixes, sources, masks = ([v.cuda() for v in values] for values in batch(TINY))

    def step() -> None:
        with use_backend("triton", precision):
            network(mixes, sources, masks)[0].mean().backward()

    step()
    assert not triton_support.profiled(step)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activation_memory_is_at_most_a_third_of_eagers(precision: str) -> None:
    torch.manual_seed(0)
    network: Any = MultiTasNet(
        TINY.from_dict({**TINY.to_dict(), "N": 440, "B": 160, "H": 160, "layers": 6, "stack": 3})
    )
    network = network.cuda().train()
    mixes, sources, masks = ([v.cuda() for v in values] for values in batch(TINY, 2, 16000))
    peaks = {}
    for backend, dtype in (("triton", precision), ("reference", "float32")):
        for _ in range(2):
            network.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with use_backend(backend, dtype):
                loss = network(mixes, sources, masks)[0]
            peaks[backend] = torch.cuda.memory_allocated() - before
            loss.mean().backward()
            del loss
    assert peaks["triton"] <= peaks["reference"] / 3
