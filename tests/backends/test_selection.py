"""Which backend serves is chosen, visible, and never changed in silence."""

from __future__ import annotations

import logging

import pytest
import torch

from metatasnet_fast import MultiTasNet, available_backends, use_backend
from metatasnet_fast.backends import Request, current_choice, registry, resolve
from metatasnet_fast.errors import BackendUnavailableError, ConfigError
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import needs_the_module
from tests.support import TINY

CPU = torch.device("cpu")


def test_reference_is_always_available() -> None:
    assert available_backends()["reference"].available


def test_every_unavailable_backend_says_why() -> None:
    for entry in available_backends().values():
        assert entry.available or entry.reason


def test_unknown_names_are_refused_at_once() -> None:
    with pytest.raises(BackendUnavailableError, match="reference"):
        use_backend("magic")
    with pytest.raises(ConfigError, match="float32"):
        use_backend("reference", "float12")
    assert current_choice().backend == "auto"


def test_the_choice_is_undone_at_the_end_of_the_block() -> None:
    with pytest.raises(KeyError), use_backend("reference", torch.float64):
        assert current_choice().precision is Precision.float64
        raise KeyError
    assert current_choice().precision is None


def test_used_as_a_statement_it_lasts() -> None:
    before = use_backend("reference")
    assert current_choice().backend == "reference"
    before.__exit__(None, None, None)
    assert current_choice().backend == "auto"


def test_choices_may_end_in_any_order_and_be_used_again() -> None:
    first, second = use_backend("reference", "float32"), use_backend("reference", "float64")
    first.__exit__(None, None, None)
    assert current_choice().precision is Precision.float64
    second.__exit__(None, None, None)
    assert current_choice().precision is None
    for _ in range(2):
        with first:
            assert current_choice().precision is Precision.float32
        assert current_choice().precision is None


def test_a_named_backend_that_cannot_serve_raises_with_the_reason() -> None:
    with pytest.raises(BackendUnavailableError, match="tf32"):
        resolve("reference", Request(CPU, Precision.tf32))


@needs_the_module
def test_auto_trains_on_the_compiled_code_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    registry._announce.cache_clear()
    with caplog.at_level(logging.INFO, "metatasnet_fast"):
        for _ in range(3):
            assert resolve("auto", Request(CPU, Precision.float32, training=True)).name == "cpu"
    assert len([r for r in caplog.records if "training" in r.getMessage()]) == 1


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_the_precision_is_that_of_the_computation_only(precision: str) -> None:
    network = MultiTasNet(TINY).eval()
    mixes = [torch.randn(1, 1, 1000 * 2**s) for s in range(3)]
    with torch.no_grad(), use_backend("reference", precision):
        outputs = network.inference(mixes, n_chunks=1)
    assert {o.dtype for o in outputs} == {torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_lower_precision_differs_and_autocast_is_obeyed() -> None:
    network = MultiTasNet(TINY).eval()
    mixes = [torch.randn(1, 1, 1000 * 2**s) for s in range(3)]
    with torch.no_grad(), use_backend("reference"):
        full = network.inference(mixes, n_chunks=1)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            ambient = network.inference(mixes, n_chunks=1)[-1]
        with use_backend("reference", "bfloat16"):
            named = network.inference(mixes, n_chunks=1)[-1]
    assert not torch.equal(full, named)
    assert not torch.equal(full, ambient)
    assert torch.allclose(full, named, atol=0.1 * full.abs().max().item())
