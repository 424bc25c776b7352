"""Rules that hold for every length, batch and order of threads in the backend ``cuda``, emulated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from metatasnet_fast import native
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import REFERENCE, noise, prepare, recipe, separate, stage_parameters
from tests.backends.cuda_support import EMULATED, LONG, PRECISIONS, needs_the_module
from tests.support import FLOOR, TINY, recipe_state, relative_error

pytestmark = needs_the_module

ONE_STAGE = MetaTasNetConfig(N=16, B=16, H=24, layers=2, stack=1, num_mels=8, stages_num=1)


@pytest.fixture
def ascending() -> Iterator[None]:
    yield
    native.load().set_emulated_order(0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_order_in_which_threads_run_changes_no_bit(precision: Precision, ascending: None) -> None:
    """Emulated threads run until they must wait, so a missing barrier shows as a difference between orders.

    Blocks come in another order too, so another one makes the norm.
    """
    state, mixes = recipe_state(TINY, 3), noise(TINY, 1, 1500)
    expected = separate(EMULATED, TINY, state, mixes, precision)
    assert all(value.isfinite().all() for value in expected)
    for order in (1, 2, 3):
        native.load().set_emulated_order(order)
        found = separate(EMULATED, TINY, state, mixes, precision)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), order


@pytest.mark.parametrize("frames", [1, 5, 200])
def test_long_filters_agree_with_eager(frames: int) -> None:
    """Taps beyond the first tile are multiplied from the inputs on whose filters have them."""
    stage, parameters = LONG.stage(0), stage_parameters(recipe_state(LONG, 3), 0)
    latent = torch.randn(2, stage.N, frames, generator=torch.Generator().manual_seed(frames))
    ours, eager = (prepare(b, stage, parameters) for b in (EMULATED, REFERENCE))
    assert relative_error(EMULATED.decode(ours, latent), REFERENCE.decode(eager, latent)) < FLOOR


@pytest.mark.parametrize(("frames", "order"), [(4096, 1), (4097, 2), (4200, 3)])
def test_norms_of_many_tiles_agree_with_eager(frames: int, order: int, ascending: None) -> None:
    """32 lanes merge a tile each: exactly as many tiles, one frame more, and a tile that is not whole.

    The workspace begins with every bit set: a norm made before all its tiles have come, or a count that does not begin
    at zero, shows as NaN. The statistics of the last frames differ, so a tile left out shows as well.
    """
    config = dataclasses.replace(ONE_STAGE, layers=1)
    stage = config.stage(0)
    parameters = stage_parameters(recipe_state(config, 3), 0)
    latent = torch.randn(1, stage.N, frames, generator=torch.Generator().manual_seed(frames))
    latent[..., 4000:] = 5 * latent[..., 4000:] + 7
    prepared = prepare(EMULATED, stage, parameters)

    def found(order: int) -> torch.Tensor:
        native.load().set_emulated_order(order)
        out = torch.full((1, 4, frames, prepared.stage.latent_ld), torch.nan)
        workspace = torch.full((prepared.stage.mask_bytes(1, frames, False),), 0xFF, dtype=torch.uint8)
        prepared.stage.mask(latent.mT.contiguous(), None, None, out, workspace, 0)
        return out[..., : stage.N].transpose(2, 3)

    ascending_blocks = found(0)
    exact = REFERENCE.mask(prepare(REFERENCE, stage, parameters, Precision.float64), latent.double(), None)
    assert relative_error(ascending_blocks, exact) < 2e-5
    assert torch.equal(found(order), ascending_blocks)


@pytest.mark.parametrize(
    "odd", ["the mean is far from 0", "first frames are loud", "first frames are far from the rest"]
)
def test_norms_of_odd_tiles_agree_with_eager(odd: str) -> None:
    """Deviations are taken from a tile's first value, then from the mean."""
    stage = ONE_STAGE.stage(0)
    parameters = stage_parameters(recipe_state(ONE_STAGE, 3), 0)
    latent = torch.randn(1, stage.N, 300, generator=torch.Generator().manual_seed(4))
    if odd == "the mean is far from 0":
        latent = 1000 + latent
    elif odd == "first frames are loud":
        latent[..., ::128] *= 1000
    else:
        latent[..., ::128] += 1000
    exact, eager, ours = (
        backend.mask(prepare(backend, stage, parameters, precision), latent.to(precision.storage), None)
        for backend, precision in (
            (REFERENCE, Precision.float64),
            (REFERENCE, Precision.float32),
            (EMULATED, Precision.float32),
        )
    )
    assert relative_error(ours, exact) <= max(FLOOR, 3 * relative_error(eager, exact))


@pytest.mark.parametrize(
    "config",
    [
        MetaTasNetConfig(N=8, B=8, H=16, L=7, W=7, filters=1, layers=1, stack=1, num_mels=3, stages_num=2),
        MetaTasNetConfig(N=24, B=40, H=24, L=12, W=10, filters=2, layers=7, stack=1, num_mels=5, stages_num=1),
        MetaTasNetConfig(N=168, B=168, H=176, layers=2, stack=1, num_mels=40, stages_num=1, residual_bias=True),
        MetaTasNetConfig(N=16, B=8, H=8, layers=2, stack=2, num_mels=9, stages_num=1, independent_params=True),
        MetaTasNetConfig(N=16, B=16, H=8, layers=2, stack=1, num_mels=0, stages_num=2),
    ],
    ids=["one filter", "dilations beyond the signal", "wider than a tile", "independent", "without a spectrogram"],
)
def test_unusual_networks_agree_with_eager(config: MetaTasNetConfig) -> None:
    """Kernel and stride alike, an odd stride, channels that are no multiple of 32, more than one tile of outputs."""
    state, mixes = recipe_state(config, 5), noise(config, 1, 1100)
    exact = separate(REFERENCE, config, state, mixes, Precision.float64)
    eager = separate(REFERENCE, config, state, mixes)
    ours = separate(EMULATED, config, state, mixes)
    for value, same, right in zip(ours, eager, exact, strict=True):
        assert relative_error(value, right) <= max(FLOOR, 3 * relative_error(same, right))


@pytest.mark.parametrize("precision", [Precision.bfloat16, Precision.float32])
def test_the_default_network_errs_no_more_than_eager(precision: Precision) -> None:
    """Every job of every stage at the authors' sizes, on a short signal, against float64."""
    config = MetaTasNetConfig()
    state, partial = recipe(config), None
    for index, mix in enumerate(noise(config, 1, 640)):
        parameters = stage_parameters(state, index)
        exact = prepare(REFERENCE, config.stage(index), parameters, Precision.float64)
        both = [(b, prepare(b, config.stage(index), parameters, precision)) for b in (EMULATED, REFERENCE)]
        latent = REFERENCE.encode(exact, mix.double()).float()
        before = None if partial is None else partial.float()
        partial = REFERENCE.mask(exact, latent.double(), None if before is None else before.double())
        for job, inputs in (("encode", (mix,)), ("mask", (latent, before)), ("decode", (partial[:, 0].float(),))):
            wide = [None if x is None else x.double() for x in inputs]
            right = getattr(REFERENCE, job)(exact, *wide)
            ours, eager = (relative_error(getattr(b, job)(p, *inputs), right) for b, p in both)
            assert ours <= max(FLOOR, eager), f"stage {index}, {job}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("count", "added"), [(1, 0), (2, 0), (2, 1), (3, 0), (5, 0), (5, 2), (7, 0), (7, 6), (32, 1)])
def test_any_number_of_instruments_agrees_with_eager(count: int, added: int, precision: Precision) -> None:
    """Up to four instruments are held by a thread with eight channels, more with two.

    Eager on a CPU has no tf32: as bfloat16 with three bits more, it may err a quarter of that.
    """
    names = tuple(f"stem_{k}" for k in range(count))
    config = dataclasses.replace(ONE_STAGE, stages_num=2, instruments=names, added_instruments=added)
    state, mixes = recipe_state(config, 4), noise(config, 2, 520)
    exact = separate(REFERENCE, config, state, mixes, Precision.float64)
    tf32 = precision is Precision.tf32
    eager = separate(REFERENCE, config, state, mixes, Precision.bfloat16 if tf32 else precision)
    ours = separate(EMULATED, config, state, mixes, precision)
    for value, same, right in zip(ours, eager, exact, strict=True):
        assert value.shape == right.shape
        assert relative_error(value, right) <= max(FLOOR, 3 * relative_error(same, right) / (4 if tf32 else 1))


def test_tf32_lies_between_bfloat16_and_float32() -> None:
    state, mixes = recipe_state(ONE_STAGE, 3), noise(ONE_STAGE, 1, 2000)
    exact = separate(REFERENCE, ONE_STAGE, state, mixes, Precision.float64)[1]
    errors = [relative_error(separate(EMULATED, ONE_STAGE, state, mixes, p)[1], exact) for p in PRECISIONS]
    assert 10 * errors[0] < errors[1] < errors[2] / 4


def split_product(data: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(data), -(-len(weights) // 32) * 32), torch.nan)
    native.load().multiply_emulated_split(data, weights, out)
    return out[:, : len(weights)]


@pytest.mark.parametrize("signs", ["alike", "mixed"])
def test_products_in_split_tf32_are_as_good_as_in_float32(signs: str) -> None:
    """Sums of like signs show the rounding of sums: tensor cores, and the emulated ones, cut instead of rounding."""
    generator = torch.Generator().manual_seed(7)
    data, weights = (torch.rand(n, 2080, generator=generator) - (signs == "mixed") / 2 for n in (130, 33))
    exact = data.double() @ weights.double().T
    float32 = relative_error(data @ weights.T, exact)
    assert relative_error(split_product(data, weights), exact) <= 3 * float32
    assert relative_error(split_product(2.0**120 * data, 2.0**-100 * weights), 2.0**20 * exact) <= 3 * float32


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinity_and_nan_in_split_tf32_give_what_they_give_in_float32(value: float) -> None:
    """Weights that are tf32 already have a small part of 0, which infinity would turn into NaN."""
    data = torch.ones(3, 64)
    data[0, 5] = data[1, 63] = value
    weights = torch.ones(40, 64)
    weights[1], weights[2], weights[3, 5], weights[4, 5], weights[5] = -1 / 3, 1 / 3, 0, -1e-30, 1e36
    torch.testing.assert_close(split_product(data, weights), data @ weights.T, rtol=1e-6, atol=0, equal_nan=True)


def test_split_tf32_neither_overflows_early_nor_hides_infinite_weights() -> None:
    largest = torch.finfo(torch.float32).max
    data, weights = torch.zeros(2, 32), torch.zeros(2, 32)
    data[:, 0] = torch.tensor([largest, 1.0])
    weights[:, 0] = torch.tensor([0.25, torch.inf])
    found = split_product(data, weights)
    assert relative_error(found[:, :1], data[:, :1] * 0.25) < 2**-10
    assert not found[:, 1].isfinite().any()
