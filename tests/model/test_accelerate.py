"""A network of the authors' program, already in memory, gets our arithmetic and keeps its parameters."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metatasnet_fast import MultiTasNet, accelerate, reference, restore, use_backend
from metatasnet_fast.backends.cache import collect_parameters
from metatasnet_fast.errors import BackendUnavailableError, ConfigError
from metatasnet_fast.model.network import Stage
from tests.support import TINY


class AuthorsStage(Stage):
    """A stage whose encoder, masking network and decoder compute, as in the authors' program."""

    def __init__(self, index: int) -> None:
        super().__init__(TINY, index)
        self.config = TINY.stage(index)
        self.encoder.forward = self.encode
        self.mask.forward = self.masks
        self.decoder.forward = self.decode

    def weights(self) -> reference.StageWeights:
        return reference.generate(self.config, collect_parameters(self))

    def encode(self, signal: Tensor) -> Tensor:
        return reference.encode(self.weights().encoder, self.config, signal)

    def masks(self, latent: Tensor, partial: Tensor | None) -> Tensor:
        return reference.mask(self.weights().masking, self.config, latent, partial) / latent[:, None]

    def decode(self, latent: Tensor) -> Tensor:
        return reference.decode(self.weights().decoder, self.config, latent)


class AuthorsNetwork(nn.Module):
    """The attributes of the authors' class, with their own forward and inference."""

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.args = args
        self.W, self.base_sr, self.stages_num = args.W, args.sampling_rate, args.stages_num
        self.stages = nn.ModuleList(AuthorsStage(index) for index in range(args.stages_num))

    def forward(self, input_mixes: Any, separated_inputs: Any, masks: Any) -> tuple[Tensor, Tensor]:
        losses, partial = [], None
        for stage, mix, source, mask in zip(self.stages, input_mixes, separated_inputs, masks, strict=True):
            latent = stage.encoder(mix)
            partial = latent[:, None] * stage.mask(latent, partial)
            estimate = stage.decoder(partial.flatten(0, 1)).view(source.shape)
            latents = stage.encoder(source.flatten(0, 1)).unflatten(0, source.shape[:2]).transpose(2, 3)
            losses.append(self.loss(estimate, source, mask, latents, stage.decoder(latent), mix))
        return torch.stack(losses).sum().reshape(1), torch.zeros(1, 15)

    def loss(self, *signals: Tensor) -> Tensor:
        return reference.stage_loss(*signals, reference.LossWeights.of(TINY))[0]

    def inference(self, input_audio: Any, n_chunks: int = 4) -> list[Tensor]:
        outputs, partial = [], None
        for stage, mix in zip(self.stages, input_audio, strict=True):
            latent = stage.encoder(mix)
            partial = latent[:, None] * stage.mask(latent, partial)
            outputs.append(stage.decoder(partial.flatten(0, 1))[None])
        return outputs

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
    assert network.compute_stats(None) == "the authors' statistics"
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


def after(stage: AuthorsStage, part: str, change: Callable[[Tensor], Tensor]) -> None:
    """A fork that computes something else in one part of a stage."""
    own = getattr(stage, part).forward
    getattr(stage, part).forward = lambda *arguments: change(own(*arguments))


@pytest.mark.parametrize(
    ("part", "named"), [("encoder", "encoder"), ("mask", "masking network"), ("decoder", "decoder")]
)
def test_a_fork_that_computes_something_else_is_refused(part: str, named: str, network: Any) -> None:
    after(network.stages[1], part, lambda x: x * 1.01)
    with pytest.raises(ConfigError, match=f"The {named} of stage 2 differs from .* by 1.0e-02 .* check=False"):
        accelerate(network)
    assert type(network) is AuthorsNetwork


def test_a_fork_with_a_loss_of_its_own_is_refused(network: Any) -> None:
    network.loss = lambda estimate, source, *_: (estimate - source).abs().mean()
    with pytest.raises(ConfigError, match="The loss differs"):
        accelerate(network)


def test_a_fork_with_an_inference_of_its_own_is_refused(network: Any) -> None:
    own = network.inference
    network.inference = lambda audio, n_chunks=4: [output.flip(1) for output in own(audio, n_chunks)]
    with pytest.raises(ConfigError, match="The inference of stage 1 differs"):
        accelerate(network)


def test_a_network_that_cannot_run_here_is_refused_with_its_own_error(network: Any) -> None:
    network.inference = lambda audio, n_chunks=4: 1 / 0
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero.*check=False"):
        accelerate(network)


def test_without_the_check_a_fork_is_replaced(network: Any) -> None:
    after(network.stages[0], "encoder", lambda x: x * 1.01)
    accelerate(network, "reference", check=False)
    with use_backend("reference"):
        assert torch.equal(infer(network), infer(ours(network)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_comparison_leaves_no_trace(dtype: torch.dtype, network: Any) -> None:
    network.to(dtype).train()
    network.stages[0].mask.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    random = torch.get_rng_state()
    accelerate(network, "reference")
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_accelerated_networks_of_one_class_have_one_class_and_can_be_stacked(network: Any) -> None:
    twin = AuthorsNetwork(network.args).eval()
    accelerate(network, "reference")
    accelerate(twin, "reference")
    parameters, _ = torch.func.stack_module_state([network, twin])
    assert parameters["stages.0.instrument_embedding.weight"].shape[0] == 2


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
