"""Prepared weights follow the parameters, however these are changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metatasnet_fast import MultiTasNet, use_backend
from metatasnet_fast.backends import available_backends
from metatasnet_fast.backends.cache import EVERY, fingerprint, hash_on_device
from tests.support import TINY

BACKENDS = [name for name, entry in available_backends().items() if entry.available]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def mixes() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, 1000 * 2**s, generator=generator) for s in range(3)]


def infer(network: MultiTasNet, backend: str) -> Tensor:
    with torch.no_grad(), use_backend(backend):
        return network.inference(mixes(), n_chunks=1)[-1]


def in_place(network: MultiTasNet) -> None:
    with torch.no_grad():
        network.stages[0].encoder.bottleneck[2].weight.mul_(1.5)  # type: ignore[union-attr, index, operator]


def through_data(network: MultiTasNet) -> None:
    for parameter in network.parameters():
        parameter.data.mul_(1.01)


def one_value_through_data(network: MultiTasNet) -> None:
    network.get_parameter("stages.2.mask.norm_4.affine.bias").data[-1] += 0.5


def average_through_data(network: MultiTasNet) -> None:
    """As averages of weights do around validation."""
    for parameter in network.parameters():
        parameter.data.copy_(parameter.data * 0.999 + 0.001)


def another_storage_through_data(network: MultiTasNet) -> None:
    for parameter in network.parameters():
        parameter.data = parameter.data + 0.001


def exchange_through_data(network: MultiTasNet) -> None:
    embedding = network.get_parameter("stages.1.instrument_embedding.weight").data
    embedding.copy_(embedding[[1, 0, 2, 3]].clone())


def by_an_optimiser(network: MultiTasNet) -> None:
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()


def by_load_state_dict(network: MultiTasNet) -> None:
    torch.manual_seed(1)
    network.load_state_dict(MultiTasNet(TINY).state_dict())


def by_a_new_parameter(network: MultiTasNet) -> None:
    decoder = network.get_submodule("stages.2.decoder.bottleneck.0")
    decoder.weight = nn.Parameter(decoder.weight.detach() * 2)  # type: ignore[operator]


CHANGES = [
    in_place,
    through_data,
    average_through_data,
    another_storage_through_data,
    exchange_through_data,
    by_an_optimiser,
    by_load_state_dict,
    by_a_new_parameter,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_of_the_parameters_is_noticed(change: Callable[[MultiTasNet], None], backend: str) -> None:
    network = MultiTasNet(TINY).eval()
    before = infer(network, backend)
    change(network)
    after = infer(network, backend)
    assert not torch.equal(before, after)
    fresh = MultiTasNet(TINY).eval()
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(after, infer(fresh, backend))


class WriteThroughData(torch.optim.Optimizer):
    """An optimiser that bumps no version counter and changes one value, where no sample of the bytes is taken."""

    def __init__(self, network: MultiTasNet) -> None:
        super().__init__(network.parameters(), {})
        self.network = network

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        one_value_through_data(self.network)


def test_a_step_of_an_optimiser_is_noticed_whatever_it_writes(backend: str) -> None:
    network = MultiTasNet(TINY).eval()
    before = infer(network, backend)
    WriteThroughData(network).step()
    assert not torch.equal(before, infer(network, backend))


def test_one_value_written_through_data_is_noticed_on_demand(backend: str) -> None:
    network = MultiTasNet(TINY).eval()
    before = infer(network, backend)
    one_value_through_data(network)
    network.weights_changed()
    assert not torch.equal(before, infer(network, backend))


def test_one_value_written_through_data_is_noticed_after_some_calls() -> None:
    network = MultiTasNet(TINY).eval()
    with torch.no_grad(), use_backend("reference"):
        first = network.engine().prepared
        one_value_through_data(network)
        calls = next(call for call in range(1, 2 * EVERY) if network.engine().prepared is not first)
    assert calls <= EVERY


def test_unchanged_parameters_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    network = MultiTasNet(TINY).eval()
    with torch.no_grad(), use_backend("reference"):
        network.engine()
        monkeypatch.setattr("metatasnet_fast.backends.cache.fingerprint", lambda tensors: pytest.fail("read"))
        monkeypatch.setattr("metatasnet_fast.backends.cache.collect_parameters", lambda stage: pytest.fail("searched"))
        for _ in range(EVERY - 1):
            network.engine()


def test_without_a_change_nothing_is_prepared_again(backend: str) -> None:
    network = MultiTasNet(TINY).eval()
    with torch.no_grad(), use_backend(backend):
        first = network.engine().prepared
        assert network.engine().prepared is first


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_its_own_way(duplicate: Callable[[MultiTasNet], MultiTasNet], backend: str) -> None:
    network = MultiTasNet(TINY).eval()
    before = infer(network, backend)
    twin = duplicate(network)
    assert torch.equal(infer(twin, backend), before)
    through_data(twin)
    assert not torch.equal(infer(twin, backend), before)
    assert torch.equal(infer(network, backend), before)


def replica_of(module: nn.Module) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` makes on each device: plain tensors in the place of parameters."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        if child is not None:
            replica._modules[name] = replica_of(child)
            setattr(replica, name, replica._modules[name])
    replica._former_parameters = {}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            value = parameter.detach().clone()
            setattr(replica, name, value)
            replica._former_parameters[name] = value
    return replica


def test_a_data_parallel_replica_computes_with_its_own_parameters(backend: str) -> None:
    network = MultiTasNet(TINY).eval()
    before = infer(network, backend)
    replica = replica_of(network)
    assert torch.equal(infer(replica, backend), before)
    replica.stages[2].decoder.bottleneck[0].weight.mul_(2)  # type: ignore[union-attr, index, operator]
    assert not torch.equal(infer(replica, backend), before)
    assert torch.equal(infer(network, backend), before)


def test_gradients_flow_after_inference(backend: str) -> None:
    network = MultiTasNet(TINY)
    infer(network, backend)
    sources = [torch.randn(1, 4, 1, 1000 * 2**s) for s in range(3)]
    masks = [torch.ones(1, 4, 1)] * 3
    loss, _ = network([s.sum(1) for s in sources], sources, masks)
    loss.backward()
    assert network.get_parameter("stages.0.instrument_embedding.weight").grad is not None


HASHES: dict[str, Callable[[list[Tensor]], object]] = {
    "on the CPU": fingerprint,
    "elsewhere": lambda tensors: int(hash_on_device(torch.cat([t.reshape(-1).view(torch.uint8) for t in tensors]))),
}


@pytest.mark.parametrize("name", HASHES)
@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_any_single_bit_changes_the_fingerprint(name: str, sizes: list[int], dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
    before = HASHES[name](tensors)
    assert HASHES[name]([t.clone() for t in tensors]) == before
    for tensor in tensors:
        if tensor.numel():
            octets = tensor.view(torch.uint8)
            place = int(torch.randint(octets.numel(), (), generator=generator))
            octets[place] ^= 1 << int(torch.randint(8, (), generator=generator))
            assert HASHES[name](tensors) != before
            before = HASHES[name](tensors)


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "every second sign": lambda x: x * torch.tensor([1.0, -1.0]).repeat(x.numel() // 2).view(x.shape),
    "two signs": lambda x: torch.where(torch.isin(torch.arange(x.numel()), torch.tensor([1, 3])).view(x.shape), -x, x),
    "all signs": lambda x: -x,
    "rows exchanged": lambda x: x[torch.arange(len(x)) ^ 1],
    "columns exchanged": lambda x: x[:, torch.arange(x.shape[1]) ^ 1],
    "rolled": lambda x: x.roll(512, dims=0),
    "transposed": lambda x: x.T.contiguous().view(x.shape),
    "moved between": lambda x: (
        x
        + torch.outer(torch.eye(len(x))[0] - torch.eye(len(x))[9], torch.eye(x.shape[1])[0] - torch.eye(x.shape[1])[4])
    ),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", HASHES)
def test_regular_changes_change_the_fingerprint(name: str, pattern: str) -> None:
    x = torch.arange(1.0, 600 * 512 + 1).view(600, 512)
    assert HASHES[name]([PATTERNS[pattern](x)]) != HASHES[name]([x])
