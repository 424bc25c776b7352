"""The backend ``triton`` where there is neither a GPU nor the interpreter: refusals, and its composition on a CPU, where the
operations run their reference arithmetic."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from metatasnet_fast import MultiTasNet, available_backends, use_backend
from metatasnet_fast.backends import Request, get_backend, registry, resolve
from metatasnet_fast.errors import BackendUnavailableError, ShapeError
from metatasnet_fast.precision import Precision
from tests.backends import triton_support
from tests.backends.triton_support import TRITON, Operators, batch, engine, gradients
from tests.support import TINY, allowed, assert_parity, golden, relative_error

BLOCKS = ["blocks_generated", "blocks_independent", "blocks_residual_bias"]
TRAINED = ["train_generated", "train_independent", "train_residual_bias"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = available_backends()["triton"].reason
    assert reason and "TRITON_INTERPRET=1" in reason
    network = MultiTasNet(TINY).eval()
    with torch.no_grad(), use_backend("triton"), pytest.raises(BackendUnavailableError, match="finds no GPU"):
        network.inference([torch.zeros(1, 1, 1000 * 2**s) for s in range(3)])


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install triton" in str(TRITON.unavailable())


@pytest.mark.parametrize(
    ("device", "precision", "reason"),
    [
        (CPU, Precision.float32, "computes on GPUs, not on cpu"),
        (CUDA, Precision.float64, "no float64"),
        (CUDA, Precision.float16, "overflows float16"),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(
    device: torch.device, precision: Precision, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert reason in str(TRITON.supports(Request(device, precision)))


def test_automatic_on_a_gpu_and_nothing_is_imported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any = get_backend("triton")
    monkeypatch.setattr(type(backend), "unavailable", lambda self: None)
    monkeypatch.setattr(type(backend), "supports", lambda self, request: None)
    registry._announce.cache_clear()
    for training in (False, True):
        assert resolve("auto", Request(CUDA, Precision.bfloat16, training)).name == "triton"
    registry._announce.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["mask", "mask_partial"])
@pytest.mark.parametrize("name", BLOCKS)
def test_masking_network_equals_the_recorded_one(name: str, part: str, dtype: torch.dtype) -> None:
    triton_support.recorded_network(golden(name), part, dtype)


@pytest.mark.parametrize("case", TRAINED)
def test_training_step_equals_the_authors(case: str) -> None:
    recording = golden(case)
    network = recording.network(torch.float32)
    sources = recording.sources()
    sounding = [(s.abs().amax(-1) > 0).float() for s in sources]
    loss, stats = engine(network).loss(recording.mixes(), sources, sounding)
    loss.backward()
    assert_parity("loss", loss.detach(), recording["loss"].view(()), allowed(case, "float32", "loss", times=10))
    assert_parity("stats", stats.detach(), recording["stats"][0], allowed(case, "float32", "stats", times=10))
    expected = recording.under("grad/")
    found = gradients(network)
    assert {name for name, grad in found.items() if grad is None} == found.keys() - expected.keys()
    own: list[Any] = [found[name] for name in expected]
    assert_parity("gradients", own, list(expected.values()), allowed(case, "float32", "grad_all", times=10))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("independent", [False, True])
def test_no_layer_of_pytorch_runs_forward_or_backward(precision: str, independent: bool) -> None:
    config = TINY.from_dict({**TINY.to_dict(), "independent_params": independent, "residual_bias": True})
    torch.manual_seed(0)
    network: Any = MultiTasNet(config)
    mixes, sources, masks = batch(config)
    with Operators() as operators:
        # The sources' latents and the masked latents of every stage, with dropout; the losses are not the backend's.
        run = engine(network, precision)
        partial = None
        for index, mix in enumerate(mixes):
            prepared = run.prepared[index]
            latent = run.backend.encode(prepared, mix)
            dropout = torch.rand(len(mix), 4, latent.shape[1]).round() * 2
            partial = run.backend.mask(prepared, latent, partial, dropout)
            run.backend.decode(prepared, partial.flatten(0, 1)).square().sum().backward(retain_graph=True)
    assert not operators.layers
    assert any(name.startswith("metatasnet_fast.blocks_backward") for name in operators.names)


def test_dropout_drops_whole_channels_of_the_networks_copy() -> None:
    torch.manual_seed(0)
    network: Any = MultiTasNet(TINY)
    ours, reference = engine(network), engine(network, backend=get_backend("reference"))
    latent = torch.randn(2, 16, 30, requires_grad=True)
    dropout = torch.rand(2, 4, 16).round() * 2
    found, expected = (e.backend.mask(e.prepared[0], latent, None, dropout) for e in (ours, reference))
    assert_parity("masked", found, expected, 1e-5)
    given = torch.randn_like(found)
    (one,), (other,) = (torch.autograd.grad(y, [latent], given, retain_graph=True) for y in (found, expected))
    assert_parity("gradient", one, other, 1e-4)
    without = ours.backend.mask(ours.prepared[0], latent, None)
    assert relative_error(without, expected) > 1e-2


def test_the_same_dropout_is_drawn_as_by_the_reference() -> None:
    torch.manual_seed(0)
    network: Any = MultiTasNet(TINY)
    found = []
    for backend in (TRITON, get_backend("reference")):
        torch.manual_seed(3)
        ready = engine(network, backend=backend)
        found.append(ready.loss(*batch(TINY), dropout=ready.random_dropout(0.4))[0].detach())
    assert_parity("loss", *found, 1e-4)


def test_prepared_weights_share_no_memory_with_the_parameters() -> None:
    network: Any = MultiTasNet(TINY)
    mixes = batch(TINY)[0]
    with torch.no_grad():
        run = engine(network)
        before = run.separate(mixes, [0, 1, 2])
        for p in network.parameters():
            p.mul_(1.5)
        for index, value in run.separate(mixes, [0, 1, 2]).items():
            assert torch.equal(value, before[index])


def test_ambient_autocast_changes_nothing() -> None:
    network: Any = MultiTasNet(TINY)
    mixes = batch(TINY)[0]
    with torch.no_grad():
        alone = engine(network).separate(mixes, [2])[2]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(engine(network).separate(mixes, [2])[2], alone)


def test_wrong_latents_are_refused() -> None:
    network: Any = MultiTasNet(TINY)
    with torch.no_grad():
        run = engine(network)
        with pytest.raises(ShapeError, match=r"Stage 1 expects a partial latent of shape \(1, 4, 16, 7\), got None"):
            run.backend.mask(run.prepared[1], torch.zeros(1, 32, 7), None)
        with pytest.raises(ShapeError, match="A latent must have shape"):
            run.backend.mask(run.prepared[0], torch.zeros(1, 17, 7), None)


@pytest.mark.parametrize("frames", [1, 30])
def test_no_items_give_no_items(frames: int) -> None:
    network: Any = MultiTasNet(TINY)
    with torch.no_grad():
        run = engine(network)
        assert run.backend.mask(run.prepared[0], torch.zeros(0, 16, frames), None).shape == (0, 4, 16, frames)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    """The masking job recomputed in backward, dropout included."""
    torch.manual_seed(0)
    network: Any = MultiTasNet(TINY)
    run = engine(network)
    latent = torch.randn(2, 16, 30, requires_grad=True)
    dropout = torch.rand(2, 4, 16).round() * 2
    given = torch.randn(2, 4, 16, 30)

    def job(x: torch.Tensor) -> torch.Tensor:
        return run.backend.mask(run.prepared[0], x, None, dropout)

    leaves = [latent, *(p for name, p in network.stages[0].named_parameters() if ".mask." in f".{name}")]
    found = []
    for call in (job, lambda x: checkpoint(job, x, use_reentrant=reentrant)):
        for leaf in leaves:
            leaf.grad = None
        call(latent).backward(given, retain_graph=True)
        found.append([None if leaf.grad is None else leaf.grad.clone() for leaf in leaves])
    assert found[0][0] is not None
    for one, other in zip(*found, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.skipif(sys.platform == "win32", reason="torch.compile needs a compiler there")
def test_the_masking_job_compiles_into_one_graph() -> None:
    network: Any = MultiTasNet(TINY)
    run = engine(network)
    latent = torch.randn(1, 16, 9)

    def job(latent: torch.Tensor) -> torch.Tensor:
        return run.backend.mask(run.prepared[0], latent, None)

    assert torch.equal(torch.compile(job, backend="aot_eager", fullgraph=True)(latent), job(latent))
