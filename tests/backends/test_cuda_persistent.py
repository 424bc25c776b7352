"""All blocks of a masking network in one launch, emulated: every length, order of thread blocks, and what does not fit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from metatasnet_fast import native
from metatasnet_fast.backends import cuda
from metatasnet_fast.backends.cuda import WgmmaBackend
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import REFERENCE, prepare, recipe, stage_parameters
from tests.backends.cuda_support import EMULATED, EMULATED_WGMMA, needs_the_module
from tests.support import TINY, recipe_state, relative_error

pytestmark = needs_the_module

BFLOAT16 = Precision.bfloat16
DILATED = MetaTasNetConfig(N=16, B=16, H=24, layers=6, stack=1, num_mels=8, stages_num=1, residual_bias=True)
"""Dilations up to 32, groups of two and of three channels."""


@pytest.fixture
def device() -> Iterator[Any]:
    """The emulated device, as it was afterwards."""
    module = native.load()
    yield module
    module.set_emulated_order(0)
    module.set_emulated_multiprocessors(132)


def stage_of(config: MetaTasNetConfig, index: int = 0) -> Any:
    return prepare(EMULATED_WGMMA, config.stage(index), stage_parameters(recipe(config), index), BFLOAT16)


def noise(config: MetaTasNetConfig, frames: int, items: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(items, config.stage(0).N, frames, generator=generator).bfloat16()


def launched(job: Callable[[], Any]) -> list[tuple[int, int, int]]:
    """The grids of the persistent launches of a job that is not computed."""
    return [grid for kernel, grid, *_ in native.load().record_emulated_launches(job) if "PersistentBlocks" in kernel]


def errors(config: MetaTasNetConfig, latent: torch.Tensor) -> tuple[float, float]:
    """How much the persistent launch errs, and eager in bfloat16."""
    stage, parameters = config.stage(0), stage_parameters(recipe(config), 0)
    exact = REFERENCE.mask(prepare(REFERENCE, stage, parameters, Precision.float64), latent.double(), None)
    ours, eager = (b.mask(prepare(b, stage, parameters, BFLOAT16), latent, None) for b in (EMULATED_WGMMA, REFERENCE))
    return relative_error(ours, exact), relative_error(eager, exact)


@pytest.mark.parametrize("frames", [1, 2, 17, 64, 65, 143, 160, 161, 289, 300])
def test_every_length_errs_no_more_than_eager(frames: int) -> None:
    """One thread block of a unit, with one to three warpgroups at work, and two and three that share its frames."""
    ours, eager = errors(DILATED, noise(DILATED, frames))
    assert ours <= eager


def test_the_order_of_threads_and_blocks_changes_no_bit(device: Any) -> None:
    """Odd orders let thread blocks drift apart: a unit's moments or borders that are read too early show as other bits."""
    prepared, latent = stage_of(DILATED), noise(DILATED, 300)
    expected = EMULATED_WGMMA.mask(prepared, latent, None)
    assert expected.isfinite().all()
    for order in (1, 2, 3, 5, 7):
        device.set_emulated_order(order)
        assert torch.equal(EMULATED_WGMMA.mask(prepared, latent, None), expected), order


def test_neither_the_batch_nor_the_device_changes_a_bit(device: Any) -> None:
    """12 units by three thread blocks: in one launch, four at once, and one at once."""
    prepared, latent = stage_of(DILATED), noise(DILATED, 300, items=3)
    expected = EMULATED_WGMMA.mask(prepared, latent, None)
    assert launched(lambda: EMULATED_WGMMA.mask(prepared, latent, None)) == [(3, 1, 12)]
    assert torch.equal(EMULATED_WGMMA.mask(prepared, latent[1:2], None), expected[1:2])
    for multiprocessors, grids in ((14, [(3, 1, 4)] * 3), (3, [(3, 1, 1)] * 12)):
        device.set_emulated_multiprocessors(multiprocessors)
        assert launched(lambda: EMULATED_WGMMA.mask(prepared, latent, None)) == grids
        assert torch.equal(EMULATED_WGMMA.mask(prepared, latent, None), expected)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_instruments(count: int) -> None:
    config = dataclasses.replace(TINY, stages_num=1, instruments=tuple(f"stem_{k}" for k in range(count)))
    ours, eager = errors(config, noise(config, 170))
    assert ours <= eager


def test_constant_latents_stay_constant() -> None:
    """Each norm's input is the same in all frames but those beside the ends, where taps drop out."""
    config = dataclasses.replace(DILATED, layers=2)
    latent = torch.full((1, config.stage(0).N, 300), 0.7).bfloat16()
    masked = EMULATED_WGMMA.mask(stage_of(config), latent, None)
    assert masked.isfinite().all() and torch.equal(
        masked[..., 10:290], masked[..., 10:11].expand_as(masked[..., 10:290])
    )
    assert torch.equal(
        EMULATED_WGMMA.mask(stage_of(config), torch.zeros_like(latent), None),
        torch.zeros(1, 4, *latent.shape[1:]).bfloat16(),
    )


def test_a_window_of_the_default_network_is_two_launches() -> None:
    """24 s of four instruments: two units by 66 thread blocks at a time."""
    prepared = stage_of(MetaTasNetConfig())
    latent = torch.empty(1, MetaTasNetConfig().stage(0).N, 9600).bfloat16()
    assert launched(lambda: EMULATED_WGMMA.mask(prepared, latent, None)) == [(66, 1, 2)] * 2
    assert prepared.stage.separate_launches(9600) == prepared.stage.separate_launches(1) == ""


@pytest.mark.parametrize(
    ("change", "frames", "reason"),
    [
        ({"B": 168}, 300, "B and H must be at most 160"),
        ({"layers": 1, "stack": 1}, 300, "2 to 32 blocks"),
        ({"layers": 8}, 300, "dilations must be at most 32"),
        ({}, 132 * 160 + 1, "21120 frames at most"),
    ],
)
def test_what_does_not_fit_is_served_by_separate_launches(change: dict[str, Any], frames: int, reason: str) -> None:
    config = dataclasses.replace(DILATED, **change)
    prepared = stage_of(config)
    assert reason in prepared.stage.separate_launches(frames)
    assert not launched(lambda: EMULATED_WGMMA.mask(prepared, noise(config, frames), None))


def test_a_device_that_runs_too_few_blocks_at_once_gets_separate_launches(device: Any) -> None:
    prepared, latent = stage_of(DILATED), noise(DILATED, 300)
    device.set_emulated_multiprocessors(2)
    assert "3 of its blocks at the same time" in prepared.stage.separate_launches(300)
    assert not launched(lambda: EMULATED_WGMMA.mask(prepared, latent, None))
    exact = errors(DILATED, latent)
    assert exact[0] <= exact[1]


def test_products_by_mma_are_never_persistent() -> None:
    prepared = prepare(EMULATED, TINY.stage(0), stage_parameters(recipe_state(TINY, 3), 0), BFLOAT16)
    assert "mma" in prepared.stage.separate_launches(100)


def test_what_serves_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    cuda._log_launches.cache_clear()  # whatever other tests have logged
    prepared = stage_of(DILATED)
    backend = type("Backend", (WgmmaBackend,), {"device_type": "cpu", "_stream": lambda self, device: 0})()
    with caplog.at_level(logging.INFO, logger="metatasnet_fast"):
        for frames in (100, 100, 21121):
            native.load().record_emulated_launches(lambda f=frames: backend.mask(prepared, noise(DILATED, f), None))
    found = [record.getMessage() for record in caplog.records if "cuda-wgmma" in record.getMessage()]
    assert [("persistent" in text, "21120 frames at most" in text) for text in found] == [(True, False), (False, True)]
