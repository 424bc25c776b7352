"""Rules that hold for every network, length and batch in the backend ``cpu``."""

from __future__ import annotations

import dataclasses
import os
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatasnet_fast import native, reference
from metatasnet_fast.backends import cpu_weights
from metatasnet_fast.backends.cpu import ISA_VARIABLE
from metatasnet_fast.backends.cpu_weights import arrays, sizes, weight_tensors
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import (
    CPU,
    EVERY_ISA,
    ISAS,
    PRECISIONS,
    REFERENCE,
    needs_the_module,
    noise,
    prepare,
    recipe,
    separate,
    stage_parameters,
)
from tests.support import FLOOR, TINY, recipe_state, relative_error

pytestmark = needs_the_module

multiples = st.integers(1, 6).map(lambda n: 8 * n)


@st.composite
def configs(draw: st.DrawFn) -> MetaTasNetConfig:
    stride = draw(st.integers(5, 30))
    filters = draw(st.integers(1, 3))
    shortest = stride + 2 * draw(st.integers(0, 5))
    # Doubling an odd kernel would break the even difference to an odd stride.
    if filters > 1 and stride % 2:
        stride, shortest = stride + 1, shortest + 1
    instruments = draw(st.one_of(st.just(4), st.integers(1, 6)))
    return MetaTasNetConfig(
        N=draw(multiples),
        B=draw(multiples),
        H=draw(multiples),
        L=shortest,
        W=stride,
        filters=filters,
        layers=draw(st.integers(1, 4)),
        stack=draw(st.integers(1, 2)),
        num_mels=draw(st.integers(0, 20)),
        stages_num=draw(st.integers(1, 2)),
        independent_params=draw(st.booleans()),
        residual_bias=draw(st.booleans()),
        instruments=tuple(f"stem_{i}" for i in range(instruments)),
        added_instruments=draw(st.one_of(st.just(0), st.integers(0, instruments - 1))),
    )


def errors(
    config: MetaTasNetConfig, batch: int, samples: int, seed: int, precision: Precision
) -> list[tuple[float, float]]:
    """Error of each job against float64, ours and eager's in the same precision, on the same inputs."""
    state = recipe_state(config, seed)
    found: list[tuple[float, float]] = []
    partial: Tensor | None = None
    for index, mix in enumerate(noise(config, batch, samples, seed)):
        parameters = stage_parameters(state, index)
        exact = prepare(REFERENCE, config.stage(index), parameters, Precision.float64)
        both = [(b, prepare(b, config.stage(index), parameters, precision)) for b in (CPU, REFERENCE)]
        with torch.no_grad():
            latent = REFERENCE.encode(exact, mix).float()
            before = partial
            partial = REFERENCE.mask(exact, latent.double(), None if before is None else before.double()).float()
            for job, inputs in (("encode", (mix,)), ("mask", (latent, before)), ("decode", (partial.flatten(0, 1),))):
                wide = [None if x is None else x.double() for x in inputs]
                right = getattr(REFERENCE, job)(exact, *wide)
                ours, eager = (relative_error(getattr(b, job)(p, *inputs), right) for b, p in both)
                found.append((ours, eager))
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    config=configs(),
    batch=st.integers(1, 3),
    samples=st.integers(520, 3000),
    seed=st.integers(0, 99),
    isa=st.sampled_from(ISAS),
)
def test_every_network_agrees_with_float64_as_closely_as_eager(
    config: MetaTasNetConfig, batch: int, samples: int, seed: int, isa: str
) -> None:
    with mock.patch.dict(os.environ, {ISA_VARIABLE: isa}):
        for ours, eager in errors(config, batch, samples, seed, Precision.float32):
            assert ours <= max(FLOOR, 3 * eager)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(config=configs(), samples=st.integers(520, 3000), seed=st.integers(0, 99), isa=st.sampled_from(ISAS))
def test_every_network_agrees_in_bfloat16_as_closely_as_autocast(
    config: MetaTasNetConfig, samples: int, seed: int, isa: str
) -> None:
    with mock.patch.dict(os.environ, {ISA_VARIABLE: isa}):
        for ours, eager in errors(config, 1, samples, seed, Precision.bfloat16):
            assert ours <= 1.5 * eager


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_threads_change_no_bit(isa: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer threads than (item, instrument) units, more, and numbers that divide nothing."""
    monkeypatch.setenv(ISA_VARIABLE, isa)
    state, mixes = recipe_state(TINY, 3), noise(TINY, 1, 12345)
    expected = separate(CPU, TINY, state, mixes, precision)
    for threads in (2, 3, 4, 7, 12):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found = separate(CPU, TINY, state, mixes, precision)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), threads


def test_torchs_own_threads_change_no_bit_of_the_spectrogram() -> None:
    """Its products are torch's; MKL's in float32 depended on the number of threads at 5 to 11 frames."""
    config = MetaTasNetConfig(stages_num=1)
    prepared = prepare(CPU, config.stage(0), stage_parameters(recipe(config), 0))
    before = torch.get_num_threads()
    try:
        for frames in range(3, 33):
            signal = noise(config, 2, frames * config.stage(0).hop)[0]
            found = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found.append(CPU.encode(prepared, signal))
            assert all(torch.equal(value, found[0]) for value in found), frames
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("frames", [1, 4, 32, 33])
def test_a_long_signal_has_the_spectrogram_of_all_its_frames(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of STFT frames is computed at a time."""
    share = prepare(CPU, TINY.stage(0), stage_parameters(recipe_state(TINY, 3), 0)).mel
    signals = noise(TINY, 2, 8000)[0].squeeze(1)
    expected = share(signals)  # with gradients: all 32 frames of both signals at once
    monkeypatch.setattr(cpu_weights, "_FRAMES", frames)
    with torch.no_grad():
        assert relative_error(share(signals), expected) <= FLOOR


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_fewer_instruments_equal_four_of_which_the_others_are_out_of_the_softmax(
    isa: str, count: int, precision: Precision
) -> None:
    """One instrument alone has the sigmoid for its mask, as if it shared with another one that is always 0."""
    independent = dataclasses.replace(TINY, independent_params=True)
    config = independent.stage(0)
    weights = reference.generate(config, stage_parameters(recipe_state(independent, 3), 0))
    norm = weights.masking.norm_4
    norm.scale[count:] = 0
    norm.shift[count:] = -1e4
    if count == 1:
        norm.shift[1] = 0
    latent = noise(TINY, 2, 16 * 300)[0].view(2, 300, 16)
    expected = reference.mask(weights.masking, config, latent.transpose(1, 2), None)[:, :count].transpose(2, 3)
    named = {k: v[:count] if k.startswith("mask.") and v.ndim > 1 else v for k, v in weight_tensors(weights).items()}
    bfloat16 = precision is Precision.bfloat16
    fewer = {**sizes(config), "instruments": count, "softmax": count if count > 1 else 0}
    stage = native.load().CpuStage(isa, bfloat16, fewer, arrays(named))
    masked = torch.empty(2, count, 300, stage.latent_ld, dtype=precision.storage)
    stage.mask(latent, None, None, masked, None, 2)
    assert relative_error(masked[..., :16], expected) < (3e-2 if bfloat16 else 3 * FLOOR)
