"""What the tests of the backend ``cpu`` share."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from metatasnet_fast import native
from metatasnet_fast.backends.cpu import ISA_VARIABLE, CpuBackend
from metatasnet_fast.backends.reference import ReferenceBackend
from metatasnet_fast.backends.registry import Backend
from metatasnet_fast.config import MetaTasNetConfig, StageConfig
from metatasnet_fast.precision import Precision
from tests.support import recipe_state

CPU = CpuBackend()
REFERENCE = ReferenceBackend()
PRECISIONS = [Precision.float32, Precision.bfloat16]
SIGNALS = {
    "silence": lambda t: torch.zeros_like(t),
    "direct current": lambda t: torch.full_like(t, 0.7),
    "a clipped square wave": lambda t: (t * 440 * 6.2832).sin().sign(),
    "one click": lambda t: (t == t[100]).float(),
    "hardly anything": lambda t: 1e-20 * (t * 1000).sin(),
    "much too loud": lambda t: 1e4 * (t * 1000).sin(),
    "half silence": lambda t: (t > t[len(t) // 2]) * (t * 1000).sin(),
}
"""Waves by the time in seconds of each sample."""

MODULE = native.load()
ISAS = MODULE.cpu_isas() if MODULE else []
NOT_HERE = MODULE.unusable_cpu_isas() if MODULE else {}
EVERY_ISA = [
    *ISAS,
    *(pytest.param(name, marks=pytest.mark.skip(reason=f"{name}: {why}")) for name, why in NOT_HERE.items()),
]

needs_the_module = pytest.mark.skipif(native.load() is None, reason=str(native.reason()))


@pytest.fixture(params=EVERY_ISA)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that was compiled, forced in turn; those that this machine lacks are skipped."""
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


@functools.lru_cache(maxsize=4)
def recipe(config: MetaTasNetConfig, seed: int = 3) -> Mapping[str, Tensor]:
    return recipe_state(config, seed)


def stage_parameters(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    prefix = f"stages.{index}."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def prepare(
    backend: Backend, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision = Precision.float32
) -> Any:
    with torch.no_grad():
        return backend.prepare(config, parameters, precision)


def separate(
    backend: Backend,
    config: MetaTasNetConfig,
    state: Mapping[str, Tensor],
    mixes: Sequence[Tensor],
    precision: Precision = Precision.float32,
) -> list[Tensor]:
    """Latent, masked latent and estimate of every stage, in this order."""
    found: list[Tensor] = []
    masked: Tensor | None = None
    for index, mix in enumerate(mixes):
        prepared = prepare(backend, config.stage(index), stage_parameters(state, index), precision)
        with torch.no_grad():
            latent = backend.encode(prepared, mix)
            masked = backend.mask(prepared, latent, masked)
            found += [latent, masked, backend.decode(prepared, masked.flatten(0, 1)).unflatten(0, masked.shape[:2])]
    return found


def noise(config: MetaTasNetConfig, batch: int, samples: int, seed: int = 1) -> list[Tensor]:
    """A mixture of white noise for every stage; ``samples`` at the base rate."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 1, samples * 2**s, generator=generator) for s in range(config.stages_num)]
