"""The backend ``triton`` through the public API on CPU tensors: every kernel of the network in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metatasnet_fast import MetaTasNetConfig, MultiTasNet, use_backend
from metatasnet_fast.backends import available_backends
from metatasnet_fast.errors import BackendUnavailableError
from tests.backends import triton_support
from tests.backends.triton_support import batch, gradients
from tests.support import allowed, assert_parity, golden, relative_error

CONFIG = MetaTasNetConfig(N=16, B=8, H=8, layers=2, stack=1, num_mels=8, stages_num=2, dropout=0.3)
SAMPLES = 520
"""The fewest that the STFT accepts."""
BLOCKS = [
    pytest.param(name, part, dtype, marks=[] if name == "blocks_residual_bias" and quick else pytest.mark.slow)
    for part, dtype, quick in (
        ("mask_partial", torch.float32, True),
        ("mask_partial", torch.bfloat16, False),
        ("mask", torch.float32, False),
        ("mask", torch.bfloat16, False),
    )
    for name in ("blocks_generated", "blocks_independent", "blocks_residual_bias")
]


def network(**changes: Any) -> Any:
    torch.manual_seed(0)
    return MultiTasNet(MetaTasNetConfig.from_dict({**CONFIG.to_dict(), **changes}))


def inferred(net: Any, backend: str, precision: str, mixes: list[Tensor]) -> list[Tensor]:
    with torch.no_grad(), use_backend(backend, precision):
        found: list[Tensor] = net.eval().inference(mixes, n_chunks=1)
    return found


@pytest.mark.parametrize(
    "changes",
    [{"instruments": ["voice"]}, {"instruments": ["a", "b", "c"], "added_instruments": 1, "num_mels": 0}],
    ids=["one", "three, one of them added, without the spectrogram branch"],
)
def test_any_instruments_equal_the_reference(changes: dict[str, Any]) -> None:
    net, mixes = network(**changes), batch(CONFIG, 1, SAMPLES)[0]
    truth, eager = inferred(net, "reference", "float64", mixes), inferred(net, "reference", "float32", mixes)
    for s, output in enumerate(inferred(net, "triton", "float32", mixes)):
        assert_parity(f"stage {s}", output, truth[s], max(3e-6, 3 * relative_error(eager[s], truth[s])))


def test_it_serves_cpu_tensors_and_no_others_than_it_knows() -> None:
    assert available_backends()["triton"].available
    mixes = batch(CONFIG, 1, SAMPLES)[0]
    for precision, message in (("tf32", "GPUs only"), ("float64", "no float64"), ("float16", "overflows")):
        with pytest.raises(BackendUnavailableError, match=message):
            inferred(network(), "triton", precision, mixes)


def test_inference_equals_the_reference() -> None:
    net, mixes = network(), batch(CONFIG, 1, SAMPLES)[0]
    truth = inferred(net, "reference", "float64", mixes)
    eager = {p: inferred(net, "reference", p, mixes) for p in ("float32", "bfloat16")}
    for precision, times in (("float32", 3), ("bfloat16", 1.5)):
        for s, output in enumerate(inferred(net, "triton", precision, mixes)):
            limit = max(3e-6, times * relative_error(eager[precision][s], truth[s]))
            assert_parity(f"{precision}, stage {s}", output, truth[s], limit)


@pytest.mark.parametrize(
    "independent", [pytest.param(False, id="generated"), pytest.param(True, id="independent", marks=pytest.mark.slow)]
)
def test_training_with_dropout_equals_the_reference_and_runs_no_layer_of_pytorch(independent: bool) -> None:
    found: dict[str, tuple[Tensor, dict[str, Tensor | None]]] = {}
    layers: set[str] = set()
    for backend, precision in (("triton", "float32"), ("reference", "float32"), ("reference", "float64")):
        net = network(independent_params=independent, residual_bias=True).train()

        def step(net: Any = net, backend: str = backend, precision: str = precision) -> None:
            torch.manual_seed(5)
            with use_backend(backend, precision):
                loss, _ = net(*batch(CONFIG, 2, SAMPLES))
            loss.mean().backward()
            found[f"{backend} {precision}"] = loss.detach(), gradients(net)

        if backend == "triton":
            layers = triton_support.profiled(step)
        else:
            step()
    assert not layers
    (loss, own), (eager_loss, eager), (truth, expected) = found.values()
    assert_parity("loss", loss, truth, max(3e-6, 10 * relative_error(eager_loss, truth)))
    names = [name for name, gradient in expected.items() if gradient is not None]
    assert {name for name, gradient in own.items() if gradient is None} == expected.keys() - set(names)

    def together(of: dict[str, Tensor | None]) -> list[Tensor]:
        return [gradient for name in names if (gradient := of[name]) is not None]

    limit = max(1e-5, 10 * relative_error(together(eager), together(expected)))
    assert_parity("gradients", together(own), together(expected), limit)


@pytest.mark.slow
def test_training_in_bfloat16_runs_no_layer_of_pytorch() -> None:
    net = network(residual_bias=True).train()

    def step() -> None:
        with use_backend("triton", "bfloat16"):
            loss, _ = net(*batch(CONFIG, 2, SAMPLES))
        loss.mean().backward()

    assert not triton_support.profiled(step)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients(net).values())


@pytest.mark.parametrize(("name", "part", "dtype"), BLOCKS)
def test_masking_network_equals_the_recorded_one(name: str, part: str, dtype: torch.dtype) -> None:
    triton_support.recorded_network(golden(name), part, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["train_residual_bias", "train_independent"])
def test_training_step_equals_the_authors(case: str) -> None:
    recording = golden(case)
    net: Any = recording.network()
    sources = recording.sources()
    with use_backend("triton", "float32"):
        loss, _ = net(recording.mixes(torch.float32), sources, [(s.abs().amax(-1) > 0).float() for s in sources])
    loss.mean().backward()
    assert_parity("loss", loss.detach(), recording["loss"], allowed(case, "float32", "loss", times=10))
    expected = recording.under("grad/")
    found = gradients(net)
    assert {name for name, grad in found.items() if grad is None} == found.keys() - expected.keys()
    own: list[Any] = [found[name] for name in expected]
    assert_parity("gradients", own, list(expected.values()), allowed(case, "float32", "grad_all", times=10))
