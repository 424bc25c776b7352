"""What the caller has set in torch does not reach a separation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from metatasnet_fast import MultiTasNet, Separator
from metatasnet_fast.backends import available_backends
from tests.support import TINY

BACKENDS = [name for name, entry in available_backends().items() if entry.available]


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "default dtype": default_dtype,
    "gradients": torch.enable_grad,
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stems_are_the_same_in_all_surroundings(backend: str, mode: str, name: str) -> None:
    torch.manual_seed(0)
    separator = Separator(MultiTasNet(TINY), "cpu", backend, mode=mode)  # type: ignore[arg-type]
    waveform = torch.randn(2, 12000)
    plain = separator.separate(waveform, 16000)
    with SURROUNDINGS[name]():  # type: ignore[operator]
        disturbed = separator.separate(waveform, 16000)
    for stem in plain:
        assert disturbed[stem].dtype == torch.float32
        assert torch.equal(plain[stem], disturbed[stem])


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_autocast_does_not_reach_a_compiled_backend(backend: str) -> None:
    network = MultiTasNet(TINY).eval()
    mixes = [torch.randn(1, 1, 1000 * 2**s) for s in range(3)]
    with torch.no_grad():
        plain = network.inference(mixes, n_chunks=1)
        network.engine()
        network.__dict__["_prepared"].clear()
        with torch.autocast("cpu", torch.bfloat16):
            disturbed = network.inference(mixes, n_chunks=1)
    assert all(torch.equal(a, b) for a, b in zip(plain, disturbed, strict=True))
