"""A network of the authors' program, already in memory, gets our arithmetic and keeps its parameters."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metatasnet_fast import MultiTasNet, accelerate, restore, use_backend
from metatasnet_fast.errors import BackendUnavailableError, ConfigError
from metatasnet_fast.model.modules import Stage
from tests.support import TINY


class AuthorsNetwork(nn.Module):
    """The attributes of the authors' class, with their own forward and inference."""

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.args = args
        self.W, self.base_sr, self.stages_num = args.W, args.sampling_rate, args.stages_num
        self.stages = nn.ModuleList(Stage(TINY, index) for index in range(args.stages_num))

    def forward(self, input_mixes: Any, separated_inputs: Any, masks: Any) -> str:
        return "the authors' forward"

    def inference(self, input_audio: Any, n_chunks: int = 4) -> str:
        return "the authors' inference"

    def compute_stats(self, train_loader: Any) -> str:
        return "the authors' statistics"

    def added_by_a_user(self) -> str:
        return "kept"


@pytest.fixture
def network() -> AuthorsNetwork:
    torch.manual_seed(0)
    return AuthorsNetwork(TINY.to_namespace(batch_size=12)).eval()


def ours(network: nn.Module) -> MultiTasNet:
    twin = MultiTasNet(TINY).eval()
    twin.load_state_dict(network.state_dict())
    return twin


def batch() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sources = [torch.randn(2, 4, 1, 1000 * 2**s, generator=generator) for s in range(3)]
    return [s.sum(1) for s in sources], sources, [torch.ones(2, 4, 1)] * 3


def infer(network: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = network.inference(batch()[0], n_chunks=1)[-1]
    return output


def test_it_computes_what_our_network_computes(network: AuthorsNetwork) -> None:
    with use_backend("reference"):
        expected = infer(ours(network))
    report = accelerate(network, "reference")
    assert torch.equal(infer(network), expected)
    assert report.backend == "reference"
    assert set(report.replaced) == {"forward", "inference", "compute_stats"}
    assert "parameters" in dict(report.kept)
    assert "reference" in str(report)


def test_parameters_are_shared_and_an_earlier_optimiser_trains_them(network: AuthorsNetwork) -> None:
    pointers = [p.data_ptr() for p in network.parameters()]
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    accelerate(network)
    assert [p.data_ptr() for p in network.parameters()] == pointers
    before = infer(network)
    loss, _ = network(*batch())
    loss.mean().backward()  # type: ignore[attr-defined]
    optimiser.step()
    assert not torch.equal(infer(network), before)


def test_restoring_gives_the_authors_methods_back(network: AuthorsNetwork) -> None:
    accelerate(network)
    assert isinstance(network, AuthorsNetwork)
    assert network.added_by_a_user() == "kept"
    assert restore(network) is network
    assert type(network) is AuthorsNetwork
    assert network(*batch()) == "the authors' forward"
    assert network.inference(None) == "the authors' inference"
    assert set(vars(network)) == set(vars(AuthorsNetwork(network.args)))


def test_its_own_choice_goes_before_that_of_the_process(network: AuthorsNetwork) -> None:
    accelerate(network, "reference", "float64")
    exact = infer(network)
    with use_backend("reference", "float32"):
        assert torch.equal(infer(network), exact)
    accelerate(network, "reference", "float32")
    assert not torch.equal(infer(network), exact)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"]
)
def test_copies_are_accelerated_too(duplicate: Any, network: AuthorsNetwork) -> None:
    accelerate(network, "reference")
    twin = duplicate(network)
    assert torch.equal(infer(twin), infer(network))
    assert type(restore(twin)) is AuthorsNetwork
    assert isinstance(infer(network), Tensor)


def test_our_own_network_can_be_given_a_choice_too() -> None:
    network = MultiTasNet(TINY).eval()
    accelerate(network, "reference", "float64")
    assert network.engine().precision.value == "float64"
    assert type(restore(network)) is MultiTasNet
    assert network.engine().precision.value == "float32"


def test_hooks_that_no_longer_run_are_reported(network: AuthorsNetwork) -> None:
    network.stages[0].register_forward_hook(lambda *_: None)
    assert "hooks of stages.0" in dict(accelerate(network).kept)


def test_what_is_no_meta_tasnet_is_refused_and_left_alone(network: AuthorsNetwork) -> None:
    with pytest.raises(ConfigError, match="stages and args"):
        accelerate(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="network.module"):
        accelerate(nn.DataParallel(network))
    with pytest.raises(ConfigError, match="network._orig_mod"):
        accelerate(torch.compile(network))  # type: ignore[arg-type]
    with pytest.raises(BackendUnavailableError, match="magic"):
        accelerate(network, "magic")
    network.stages[1].encoder.bottleneck[2] = nn.Conv1d(3, 3, 1)  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigError, match="Stage 1 .*encoder.bottleneck.2"):
        accelerate(network)
    assert type(network) is AuthorsNetwork
