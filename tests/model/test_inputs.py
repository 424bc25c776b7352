"""Ordinary and hostile inputs through every backend: never NaN, never another result than a plain copy would give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast import MultiTasNet, use_backend
from metatasnet_fast.backends import available_backends
from metatasnet_fast.errors import ConfigError, ShapeError
from metatasnet_fast.model.methods import plan_chunks
from tests.support import TINY, relative_error

BACKENDS = [name for name, entry in available_backends().items() if entry.available]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network() -> MultiTasNet:
    torch.manual_seed(0)
    return MultiTasNet(TINY).eval()


def noise(length: int = 1000, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(batch, 1, length * 2**s, generator=generator) for s in range(3)]


def infer(network: MultiTasNet, mixes: list[Tensor], backend: str, chunks: int = 1) -> list[Tensor]:
    with torch.no_grad(), use_backend(backend):
        return network.inference(mixes, n_chunks=chunks)


SIGNALS: dict[str, Callable[[Tensor], Tensor]] = {
    "silence": torch.zeros_like,
    "constant": torch.ones_like,
    "large constant": lambda x: torch.full_like(x, 1e4),
    "tiny": lambda x: x * 1e-20,
    "loud": lambda x: x * 1e6,
    "impulse": lambda x: torch.zeros_like(x).index_fill(-1, torch.tensor(7), 1.0),
    "square wave": lambda x: torch.sign(x),
    "half silent": lambda x: torch.where(torch.arange(x.shape[-1]) < x.shape[-1] // 2, 0.0, x),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_no_signal_gives_nan(name: str, network: MultiTasNet, backend: str) -> None:
    mixes = [SIGNALS[name](m) for m in noise()]
    for output in infer(network, mixes, backend):
        assert output.isfinite().all()


@settings(deadline=None, max_examples=12)
@given(length=st.integers(520, 2500), chunks=st.integers(1, 5))
def test_every_length_is_served(length: int, chunks: int) -> None:
    torch.manual_seed(0)
    tiny = MultiTasNet(TINY).eval()
    for name in BACKENDS:
        outputs = infer(tiny, noise(length), name, chunks)
        for s, output in enumerate(outputs):
            assert output.isfinite().all()
            assert 0 <= length * 2**s - output.shape[-1] < TINY.W * 2**s


def test_one_frame_more_or_less_is_served(network: MultiTasNet, backend: str) -> None:
    for length in (520, 539, 540, 541):
        assert infer(network, noise(length), backend)[0].shape[-1] == length // TINY.W * TINY.W


def test_items_of_a_batch_do_not_depend_on_their_neighbours(network: MultiTasNet, backend: str) -> None:
    mixes = noise(batch=3)
    together = infer(network, mixes, backend)
    for item in range(3):
        alone = infer(network, [m[item : item + 1] for m in mixes], backend)
        for a, b in zip(together, alone, strict=True):
            if backend == "reference":  # torch chooses its algorithms by the batch
                assert relative_error(a[item : item + 1], b) < 2e-5
            else:
                assert torch.equal(a[item : item + 1], b)


def test_an_empty_batch_gives_an_empty_batch(network: MultiTasNet, backend: str) -> None:
    outputs = infer(network, [m[:0] for m in noise()], backend)
    assert [tuple(o.shape) for o in outputs] == [(0, 4, 1, 1000 * 2**s) for s in range(3)]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "expanded": lambda x: x[:1].expand(2, -1, -1),
    "transposed": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "offset": lambda x: torch.cat([x.new_zeros(x.shape[0], 1, 3), x], dim=-1)[..., 3:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_the_input_does_not_matter(layout: str, network: MultiTasNet, backend: str) -> None:
    mixes = [LAYOUTS[layout](m) for m in noise(batch=2)]
    plain = infer(network, [m.contiguous() for m in mixes], backend)
    for a, b in zip(infer(network, mixes, backend), plain, strict=True):
        assert torch.equal(a, b)


def test_the_input_is_not_written_to(network: MultiTasNet, backend: str) -> None:
    mixes = noise()
    before = [m.clone() for m in mixes]
    infer(network, mixes, backend)
    assert all(torch.equal(a, b) for a, b in zip(mixes, before, strict=True))


def test_the_same_input_gives_the_same_bits(network: MultiTasNet, backend: str) -> None:
    first, second = (infer(network, noise(), backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


WRONG: list[tuple[Callable[[list[Tensor]], Any], str]] = [
    (lambda m: m[:2], "3 stages"),
    (lambda m: [x.numpy() for x in m], "must be tensors, got ndarray"),
    (lambda m: None, "come as a list"),
    (lambda m: iter(m), "come as a list"),
    (lambda m: [m[0][:, 0], *m[1:]], "shape"),
    (lambda m: [m[0], m[1][..., :-1], m[2]], "2 times as long"),
    (lambda m: [x.to(torch.int16) for x in m], "floating point"),
    (lambda m: [x[..., : 500 * 2**s] for s, x in enumerate(m)], "too few"),
    (lambda m: [x.to("meta") for x in m], "move one"),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_input_is_one_clear_error(
    spoil: Callable[[list[Tensor]], Any], said: str, network: MultiTasNet, backend: str
) -> None:
    with pytest.raises(ShapeError, match=said):
        infer(network, spoil(noise()), backend)


def test_a_renamed_parameter_is_named() -> None:
    network = MultiTasNet(TINY).eval()
    torch.nn.utils.parametrizations.weight_norm(network.get_submodule("stages.0.encoder.filters.0"))
    with pytest.raises(ConfigError, match=r"encoder\.filters\.0\.weight"):
        infer(network, noise(), "reference")


@pytest.mark.parametrize("chunks", [0, 1.5, "4"])
def test_chunks_that_cannot_be_counted_are_refused(chunks: Any, network: MultiTasNet) -> None:
    with pytest.raises(ShapeError, match="n_chunks must be a whole number"):
        network.inference(noise(), n_chunks=chunks)


def test_training_lengths_and_shapes_are_checked(network: MultiTasNet) -> None:
    sources = [torch.randn(1, 4, 1, 1010 * 2**s) for s in range(3)]
    with pytest.raises(ShapeError, match="multiple of W=20"):
        network([s.sum(1) for s in sources], sources, [torch.ones(1, 4, 1)] * 3)
    sources = [s[..., : 1000 * 2**i] for i, s in enumerate(sources)]
    with pytest.raises(ShapeError, match="3 stages .* got 2 and 3"):
        network([s.sum(1) for s in sources], sources[:2], [torch.ones(1, 4, 1)] * 3)
    with pytest.raises(ShapeError, match="3 stages .* got 3 and 1"):
        network([s.sum(1) for s in sources], sources, [torch.ones(1, 4, 1)])
    with pytest.raises(ShapeError, match="mask"):
        network([s.sum(1) for s in sources], sources, [torch.ones(1, 4)] * 3)


def test_silent_sources_train_without_nan() -> None:
    network = MultiTasNet(TINY)
    sources = [torch.randn(2, 4, 1, 1000 * 2**s) for s in range(3)]
    for source in sources:
        source[0], source[1, 2] = 0, 0
    masks = [(s.abs().amax(-1) > 0).float() for s in sources]
    loss, stats = network([s.sum(1) for s in sources], sources, masks)
    loss.backward()
    assert stats.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("field", ["independent_params", "residual_bias"])
def test_variants_of_the_network_serve(field: str, backend: str) -> None:
    variant = MultiTasNet(dataclasses.replace(TINY, **{field: True})).eval()  # type: ignore[arg-type]
    assert infer(variant, noise(), backend)[-1].isfinite().all()


@given(
    length=st.integers(600, 10**7),
    chunks=st.integers(1, 50),
    context=st.integers(0, 10**5),
    stride=st.integers(1, 64),
)
def test_chunks_cover_the_signal_once(length: int, chunks: int, context: int, stride: int) -> None:
    plan = plan_chunks(length, chunks, context, stride)
    assert plan[0].begin == 0 and plan[-1].stop == length
    for chunk, following in zip(plan, plan[1:], strict=False):
        assert chunk.stop == following.begin
    for chunk in plan:
        assert 0 <= chunk.start <= chunk.end <= length
        assert (chunk.end - chunk.start) % stride == 0
