"""Every compiled backend keeps its promises: shapes, strides, dropout, refusals; ``cuda`` emulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metatasnet_fast.backends.registry import Backend
from metatasnet_fast.errors import ShapeError
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import (
    CPU,
    REFERENCE,
    SIGNALS,
    needs_the_module,
    noise,
    prepare,
    recipe,
    separate,
    stage_parameters,
)
from tests.backends.cuda_support import EMULATED, EMULATED_WGMMA
from tests.support import FLOOR, TINY, relative_error

STAGE = TINY.stage(1)
BACKENDS = {backend.name: backend for backend in (CPU, EMULATED)}
SERVED = [
    pytest.param(backend, precision, id=f"{backend.name}, {precision.value}")
    for backend, precisions in (
        (CPU, ("float32", "bfloat16")),
        (EMULATED, ("float32", "tf32", "bfloat16")),
        (EMULATED_WGMMA, ("bfloat16",)),
    )
    for precision in map(Precision, precisions)
]

pytestmark = needs_the_module


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture
def prepared(backend: Backend) -> Any:
    return prepare(backend, STAGE, stage_parameters(recipe(TINY), 1))


@pytest.mark.parametrize(("backend", "precision"), SERVED)
def test_an_empty_batch_gives_empty_results(backend: Backend, precision: Precision) -> None:
    found = separate(backend, TINY, recipe(TINY), noise(TINY, 0, 1000), precision)
    expected = separate(REFERENCE, TINY, recipe(TINY), noise(TINY, 0, 1000))
    assert [f.shape for f in found] == [e.shape for e in expected]


@pytest.mark.parametrize(("backend", "precision"), SERVED)
def test_zero_frames_give_empty_results(backend: Backend, precision: Precision) -> None:
    prepared = prepare(backend, STAGE, stage_parameters(recipe(TINY), 1), precision)
    for n in (0, 2):
        latent, partial = torch.randn(n, STAGE.N, 0), torch.randn(n, 4, STAGE.N // 2, 0)
        assert backend.mask(prepared, latent, partial).shape == (n, 4, STAGE.N, 0)
        assert backend.decode(prepared, latent).shape == (n, 1, 0)


@pytest.mark.parametrize("frames", [1, 2, 3, 11, 12, 13, 31, 33, 95, 96, 97, 127, 128, 129, 193, 300])
def test_every_length_agrees_with_eager(backend: Backend, prepared: Any, frames: int) -> None:
    """Shorter than a register tile, a warp's part, a tile, the dilation; and one more than each."""
    generator = torch.Generator().manual_seed(frames)
    latent = torch.randn(2, STAGE.N, frames, generator=generator)
    partial = torch.randn(2, 4, STAGE.N // 2, frames, generator=generator)
    eager = prepare(REFERENCE, STAGE, stage_parameters(recipe(TINY), 1))
    exact = REFERENCE.mask(eager, latent, partial)
    assert relative_error(backend.mask(prepared, latent, partial), exact) < 2e-5
    signal = backend.decode(prepared, latent)
    assert signal.shape == (2, 1, frames * STAGE.W)
    assert relative_error(signal, REFERENCE.decode(eager, latent)) < FLOOR


@pytest.mark.parametrize(("backend", "precision"), SERVED)
def test_neighbours_in_the_batch_change_no_bit(backend: Backend, precision: Precision) -> None:
    mixes = noise(TINY, 3, 1321)
    together = separate(backend, TINY, recipe(TINY), mixes, precision)
    for item in range(3):
        alone = separate(backend, TINY, recipe(TINY), [m[item : item + 1] for m in mixes], precision)
        assert all(torch.equal(a[item : item + 1], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(("backend", "precision"), SERVED)
@pytest.mark.parametrize("signal", SIGNALS)
def test_unusual_signals_give_numbers(backend: Backend, precision: Precision, signal: str) -> None:
    mixes = [SIGNALS[signal](torch.arange(1500 * 2**s) / (8000 * 2**s))[None, None] for s in range(3)]
    for value in separate(backend, TINY, recipe(TINY), mixes, precision):
        assert value.isfinite().all()


@pytest.mark.parametrize(("backend", "precision"), SERVED)
def test_silent_latents_stay_silent(backend: Backend, precision: Precision) -> None:
    stage = TINY.stage(0)
    prepared = prepare(backend, stage, stage_parameters(recipe(TINY), 0), precision)
    masked = backend.mask(prepared, torch.zeros(1, stage.N, 300), None)
    assert torch.equal(masked, torch.zeros(1, 4, stage.N, 300, dtype=masked.dtype))
    signal = backend.decode(prepared, masked[0])
    assert torch.equal(signal, torch.zeros(4, 1, 300 * stage.W, dtype=signal.dtype))


def test_tiny_deviations_of_the_spectrogram_cost_no_precision(backend: Backend) -> None:
    """Bins above 16 kHz hardly vary in real music: their stored deviation is about 1e-3."""
    parameters = dict(stage_parameters(recipe(TINY), 0))
    parameters["encoder.spectrogram.std"] = torch.full_like(parameters["encoder.spectrogram.std"], 1e-3)
    mix = noise(TINY, 1, 4000)[0]
    exact, eager, ours = (
        each.encode(prepare(each, TINY.stage(0), parameters, precision), mix)
        for each, precision in (
            (REFERENCE, Precision.float64),
            (REFERENCE, Precision.float32),
            (backend, Precision.float32),
        )
    )
    assert relative_error(ours, exact) <= max(FLOOR, 2 * relative_error(eager, exact))


def test_strides_and_dtypes_of_the_inputs_change_no_bit(backend: Backend, prepared: Any) -> None:
    latent, partial = torch.randn(2, STAGE.N, 50), torch.randn(2, 4, STAGE.N // 2, 50)
    expected = backend.mask(prepared, latent, partial)
    other_latents = {
        "channels last": latent.transpose(1, 2).contiguous().transpose(1, 2),
        "part of a larger tensor": torch.randn(5, STAGE.N + 3, 77)[::2, 2:-1, 9:59].copy_(latent[[0, 1, 0]])[:2],
        "not at a multiple of 16 bytes": torch.randn(2, 50, STAGE.N + 4)[..., 1:-3].copy_(latent.mT).mT,
        "wider": latent.double(),
    }
    for what, other in other_latents.items():
        assert torch.equal(backend.mask(prepared, other, partial), expected), what
        assert torch.equal(backend.decode(prepared, other), backend.decode(prepared, latent)), what


def test_expanded_inputs_are_as_good_as_copied_ones(backend: Backend, prepared: Any) -> None:
    latent, partial = torch.randn(2, STAGE.N, 50), torch.randn(2, 4, STAGE.N // 2, 50)
    shared, one = partial[:, :1].expand(-1, 4, -1, -1), latent[:1].expand(2, -1, -1)
    expected = backend.mask(prepared, one.contiguous(), shared.contiguous())
    assert torch.equal(backend.mask(prepared, one, shared), expected)
    level = torch.randn(1, 1, 40).expand(1, STAGE.N, 40)
    assert torch.equal(backend.decode(prepared, level), backend.decode(prepared, level.contiguous()))


def test_bfloat16_latents_are_read_as_they_are(backend: Backend, prepared: Any) -> None:
    latent, partial = torch.randn(1, STAGE.N, 50).bfloat16(), torch.randn(1, 4, STAGE.N // 2, 50).bfloat16()
    expected = backend.mask(prepared, latent.float(), partial.float())
    assert torch.equal(backend.mask(prepared, latent, partial), expected)


def test_jobs_hand_over_without_copies(backend: Backend) -> None:
    """Latents are stored frames by channels, and read like that."""
    prepared = prepare(backend, TINY.stage(0), stage_parameters(recipe(TINY), 0))
    latent = backend.encode(prepared, noise(TINY, 2, 1000)[0])
    masked = backend.mask(prepared, latent, None)
    assert latent.stride(1) == masked.stride(2) == masked.flatten(0, 1).stride(1) == 1
    assert masked.flatten(0, 1).data_ptr() == masked.data_ptr()


def test_dropout_acts_on_the_networks_copies_only(backend: Backend, prepared: Any) -> None:
    latent, partial = torch.randn(2, STAGE.N, 50), torch.randn(2, 4, STAGE.N // 2, 50)
    dropout = torch.bernoulli(torch.full((2, 4, STAGE.N), 0.5)) * 2
    eager = prepare(REFERENCE, STAGE, stage_parameters(recipe(TINY), 1))
    expected = REFERENCE.mask(eager, latent, partial, dropout)
    assert relative_error(backend.mask(prepared, latent, partial, dropout), expected) < 3 * FLOOR


def test_prepared_weights_do_not_follow_the_parameters(backend: Backend) -> None:
    parameters = {k: v.clone() for k, v in stage_parameters(recipe(TINY), 0).items()}
    prepared = prepare(backend, TINY.stage(0), parameters)
    mix = noise(TINY, 1, 1000)[0]
    before = backend.mask(prepared, backend.encode(prepared, mix), None)
    for value in parameters.values():
        value.fill_(0.5)
    assert torch.equal(backend.mask(prepared, backend.encode(prepared, mix), None), before)


def test_autocast_and_default_devices_change_no_bit(backend: Backend, prepared: Any) -> None:
    mix = noise(TINY, 1, 2000)[1]
    expected = backend.encode(prepared, mix)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert torch.equal(backend.encode(prepare(backend, STAGE, stage_parameters(recipe(TINY), 1)), mix), expected)


def test_wrong_shapes_and_devices_are_refused(backend: Backend, prepared: Any) -> None:
    latent, partial = torch.randn(1, STAGE.N, 50), torch.randn(1, 4, STAGE.N // 2, 50)
    with pytest.raises(ShapeError, match="partial"):
        backend.mask(prepared, latent, None)
    with pytest.raises(ShapeError, match="partial"):
        backend.mask(prepared, latent, partial[..., 1:])
    with pytest.raises(ShapeError, match="latent"):
        backend.mask(prepared, latent[:, 1:], partial)
    with pytest.raises(ShapeError, match="latent"):
        backend.decode(prepared, latent[0])
    with pytest.raises(ShapeError, match="signal"):
        backend.encode(prepared, torch.randn(1, 2, 4000))
    with pytest.raises(ShapeError, match="too few"):
        backend.encode(prepared, torch.randn(1, 1, STAGE.n_fft // 2))
    with pytest.raises(ShapeError, match="move one"):
        backend.decode(prepared, latent.to("meta"))
