"""The recipe's training step does what `MultiTasNet.forward` does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
network_module = pytest.importorskip("training.network")

OFF = {"similarity_loss_weight": 0.0, "dissimilarity_loss_weight": 0.0, "reconstruction_loss_weight": 0.0}
CONFIG = MetaTasNetConfig(N=16, L=40, W=40, B=16, H=24, layers=3, stack=2, num_mels=8, stages_num=2, **OFF)
BATCH, SAMPLES = 3, 4000
COUNTS = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]])


def batch() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    sources = [torch.randn(4, BATCH, SAMPLES * scale, generator=generator) for scale in (1, 2)]
    return [x.sum(0) for x in sources], sources


def trained(network: MultiTasNet) -> MultiTasNet:
    """With slopes, norms and statistics that differ from their initial values."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "window" not in name:
                value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def both() -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Loss and gradients of the recipe, then of the network, in float32."""
    torch.manual_seed(0)
    network = trained(MultiTasNet(CONFIG))
    mixes, sources = batch()
    found = []
    for fast in (True, False):
        network.zero_grad(set_to_none=True)
        if fast:
            ones = (torch.ones(4), torch.ones(2))
            loss, _ = network_module.step_loss(network, mixes, sources, COUNTS, torch.float32, *ones)
        else:
            shaped = [x.transpose(0, 1)[:, :, None] for x in sources]
            loss, _ = network([x[:, None] for x in mixes], shaped, [COUNTS.T[:, :, None]] * 2)
        loss.sum().backward()
        found += [loss.detach().reshape(()), [p.grad for p in network.parameters()]]
    return tuple(found)  # type: ignore[return-value]


def test_the_loss_is_the_networks(both: tuple[Tensor, list[Tensor], Tensor, list[Tensor]]) -> None:
    fast, _, slow, _ = both
    print(f"loss {float(fast)} and {float(slow)}")
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-4)


def test_every_gradient_is_the_networks(both: tuple[Tensor, list[Tensor], Tensor, list[Tensor]]) -> None:
    _, fast, _, slow = both
    largest = max(float(g.norm()) for g in slow if g is not None)
    for found, expected in zip(fast, slow, strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            assert float((found - expected).norm()) <= 1e-3 * float(expected.norm()) + 1e-5 * largest


def test_emphasis_is_a_share_of_the_loss_that_hears_high_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    _, sources = batch()
    network = MultiTasNet(CONFIG)

    def loss(frequency: float, emphasis: float) -> float:
        estimates = []
        for x, scale in zip(sources, (1, 2), strict=True):
            time = torch.arange(x.shape[-1]) / (8000 * scale)
            estimates.append(x + 0.5 * torch.sin(2 * torch.pi * frequency * time))
        monkeypatch.setattr(network_module, "separate", lambda *_: estimates)
        ones = (torch.ones(4), torch.ones(2))
        return float(network_module.step_loss(network, [], sources, COUNTS, torch.float32, *ones, emphasis)[0])

    # The same error at a low and at a high frequency: plain SI-SDR calls them equal, emphasis does not.
    assert loss(200, 0.0) == pytest.approx(loss(3500, 0.0), abs=0.5)
    assert loss(200, 1.0) < loss(3500, 1.0) - 50
    assert loss(3500, 0.5) == pytest.approx((loss(3500, 0.0) + loss(3500, 1.0)) / 2, rel=1e-4)


def test_a_stem_without_high_frequencies_is_not_asked_for_them() -> None:
    sources = batch()[1][0]
    sources[1] = torch.sin(2 * torch.pi * 60 * torch.arange(SAMPLES) / 8000)
    assert network_module.sounding(sources)[1].all()
    assert not network_module.sounding(network_module.bright(sources, 8000))[1].any()


def test_bfloat16_changes_estimates_by_less_than_two_percent() -> None:
    torch.manual_seed(0)
    network = trained(MultiTasNet(CONFIG))
    with torch.no_grad():
        exact, rounded = (network_module.separate(network, batch()[0], d)[-1] for d in (torch.float32, torch.bfloat16))
    error = float((exact - rounded).norm() / exact.norm())
    print(f"relative error {error:.4f}")
    assert error < 0.02


def test_the_estimates_are_those_of_inference() -> None:
    torch.manual_seed(0)
    network = trained(MultiTasNet(CONFIG))
    mixes, _ = batch()
    with torch.no_grad():
        fast = network_module.separate(network, mixes, torch.float32)
        slow = network.inference([x[:, None] for x in mixes], n_chunks=1)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.transpose(0, 1)[:, :, None], b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
