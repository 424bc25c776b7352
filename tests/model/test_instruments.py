"""Networks of any instruments: the same numbers as instrument by instrument, and instruments added to a trained network."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatasnet_fast import MetaTasNetConfig, MultiTasNet
from metatasnet_fast.backends import Request, available_backends, get_backend, use_backend
from metatasnet_fast.benchmark.synthetic import mixtures
from metatasnet_fast.errors import ConfigError
from metatasnet_fast.precision import Precision
from metatasnet_fast.training.state import add_instrument
from metatasnet_fast.training.step import Items
from tests import loop_oracle
from tests.support import TINY, recipe_state, relative_error

NAMES = ("violin", "viola", "cello", "harp", "oboe", "horn", "choir")
FAST_BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not found.available, reason=str(found.reason)))
    for name, found in available_backends().items()
    if name == "cpu" or (found.available and name != "reference")
]


@st.composite
def configurations(draw: st.DrawFn) -> MetaTasNetConfig:
    """Small networks of every kind."""
    instruments = NAMES[: draw(st.integers(1, len(NAMES)))]
    return MetaTasNetConfig(
        N=draw(st.sampled_from([8, 16, 24])), B=draw(st.sampled_from([8, 16])), H=draw(st.sampled_from([8, 24])),
        E_1=draw(st.integers(1, 4)), E_2=draw(st.integers(1, 3)), layers=draw(st.integers(1, 3)),
        stack=draw(st.integers(1, 2)), num_mels=draw(st.sampled_from([0, 4])), stages_num=draw(st.integers(1, 3)),
        filters=draw(st.integers(1, 3)), independent_params=draw(st.booleans()), residual_bias=draw(st.booleans()),
        instruments=instruments, added_instruments=draw(st.integers(0, len(instruments) - 1)),
    )  # fmt: skip


def mixes_of(config: MetaTasNetConfig, batch: int = 2, samples: int = 600, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 1, samples * 2**s, generator=generator).double() for s in range(config.stages_num)]


def check(config: MetaTasNetConfig, backend: str, precision: str, limit: float, floor: float) -> None:
    """As close to the float64 loop as ``limit``, or ``floor`` times as far as the reference is in this precision."""
    parsed = Precision.parse(precision)
    if get_backend(backend).supports(Request(torch.device("cpu"), parsed, False, config)) is not None:
        return
    network: Any = MultiTasNet(config)
    state = recipe_state(config, 5)
    network.load_state_dict(state)
    # On a few frames of a few channels, two roundings of the same network differ by chance more than by their quality.
    mixes = mixes_of(config) if precision == "float64" else mixes_of(config, batch=4, samples=2400)
    exact = {name: value.double() for name, value in state.items()}
    expected = loop_oracle.separate(config, exact, mixes)
    if precision == "float64":
        network.double()
    else:
        mixes = [mix.float() for mix in mixes]
    with torch.no_grad():
        with use_backend("reference", precision):
            own = network.inference(mixes, n_chunks=1)
        with use_backend(backend, precision):
            found = network.inference(mixes, n_chunks=1)
    for stage, (one, other, plain) in enumerate(zip(found, expected, own, strict=True)):
        error = relative_error(one, other[..., : one.shape[-1]])
        allowed = max(limit, floor * relative_error(plain, other[..., : plain.shape[-1]]))
        assert error <= allowed, f"stage {stage}: {error:.2e}, allowed {allowed:.2e}"


@settings(max_examples=100, deadline=None)
@given(config=configurations())
def test_any_instruments_are_what_they_are_one_by_one_in_float64(config: MetaTasNetConfig) -> None:
    check(config, "reference", "float64", 1e-9, 0)


@pytest.mark.parametrize(("precision", "limit", "times"), [("float32", 3e-6, 3), ("bfloat16", 3e-2, 1.5)])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
@settings(max_examples=30, deadline=None)
@given(config=configurations())
def test_every_backend_serves_any_instruments(
    backend: str, precision: str, limit: float, times: float, config: MetaTasNetConfig
) -> None:
    check(config, backend, precision, limit, times)


def test_the_mask_of_one_instrument_is_a_sigmoid() -> None:
    config = dataclasses.replace(TINY, instruments=("voice",))
    assert config.softmax == 0 and config.stage(0).instruments == 1
    check(config, "reference", "float64", 1e-9, 0)


def larger_network(name: str = "guitar") -> tuple[MultiTasNet, MultiTasNet]:
    """A network, and the same with an instrument more."""
    small = MultiTasNet(TINY)
    small.load_state_dict(recipe_state(TINY, 3))
    config, state = add_instrument(TINY, small.state_dict(), name)
    large = MultiTasNet(config)
    large.load_state_dict(state)
    return small.double(), large.double()


def test_an_added_instrument_leaves_the_others_bit_for_bit() -> None:
    small, large = larger_network()
    assert large.config.instruments == (*TINY.instruments, "guitar") and large.config.softmax == 4
    mixes = mixes_of(TINY)
    with torch.no_grad():
        for before, after in zip(small.inference(mixes), large.inference(mixes), strict=True):
            assert torch.equal(before, after[:, :4])
            assert after[:, 4].any()


def test_training_the_new_embedding_leaves_the_others_bit_for_bit() -> None:
    from metatasnet_fast.backends import Choice
    from metatasnet_fast.training.optimizer import Ranger
    from metatasnet_fast.training.state import KeptRows, freeze
    from metatasnet_fast.training.step import GradientStep

    small, large = larger_network()
    freeze(large, "embedding")
    kept = KeptRows.of(large, "embedding")
    assert kept is not None
    optimizer = Ranger([p for p in large.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    start = large.get_parameter("stages.0.instrument_embedding.weight")[-1].detach().clone()
    step = GradientStep(large, Choice("reference", Precision.float64))
    sources = [torch.randn(2, 5, 1, 600 * 2**s, dtype=torch.float64) for s in range(3)]
    for number in range(8):
        step(Items(mixtures(sources), sources, [torch.ones(2, 5, 1, dtype=torch.float64)] * 3), number)
        optimizer.step()
        kept.restore()
    assert not torch.equal(large.get_parameter("stages.0.instrument_embedding.weight")[-1], start)
    mixes = mixes_of(TINY)
    with torch.no_grad():
        for before, after in zip(small.inference(mixes), large.inference(mixes), strict=True):
            assert torch.equal(before, after[:, :4])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["reference", *FAST_BACKENDS])
def test_another_embedding_of_the_new_one_leaves_the_others_bit_for_bit(backend: str, precision: str) -> None:
    _, large = larger_network()
    if get_backend(backend).supports(Request(torch.device("cpu"), Precision.parse(precision), False, large.config)):
        pytest.skip(f"{backend} does not serve {precision} here")
    mixes = [mix.float() for mix in mixes_of(TINY)]
    large.float()
    with torch.no_grad(), use_backend(backend, precision):
        before = large.inference(mixes)
        for stage in range(TINY.stages_num):
            large.get_parameter(f"stages.{stage}.instrument_embedding.weight")[-1] += 1
        for one, other in zip(before, large.inference(mixes), strict=True):
            assert torch.equal(one[:, :4], other[:, :4]) and not torch.equal(one[:, 4], other[:, 4])


@pytest.mark.parametrize(
    ("config", "name", "message"),
    [
        (TINY, "drums", "already"),
        (TINY, "lead guitar", "letters, digits"),
        (TINY, "mixture", "another signal"),
        (dataclasses.replace(TINY, independent_params=True), "guitar", "no embedding can be added"),
    ],
)
def test_instruments_that_cannot_be_added_are_refused(config: MetaTasNetConfig, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        add_instrument(config, MultiTasNet(config).state_dict(), name)


@pytest.mark.parametrize(
    ("instruments", "message"),
    [
        ((), "1 to 32"),
        (tuple(f"i{n}" for n in range(33)), "1 to 32"),
        (("a", "A"), "different names"),
        (("a/b",), "letters, digits"),
        ("drums", "list of names"),
        ((3,), "letters, digits"),
    ],
)
def test_impossible_names_are_refused(instruments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MetaTasNetConfig(instruments=instruments)


def test_settings_of_the_authors_network_hold_what_their_program_knows() -> None:
    assert "instruments" not in MetaTasNetConfig().to_dict()
    own = MetaTasNetConfig(instruments=["a", "b"], added_instruments=1)  # type: ignore[arg-type]
    assert MetaTasNetConfig.from_json(own.to_json()) == own
    assert MetaTasNetConfig.from_namespace(own.to_namespace()) == own
    assert MetaTasNetConfig.from_namespace(MetaTasNetConfig().to_namespace()) == MetaTasNetConfig()
