"""The products of frames by wgmma and TMA, emulated: the same sums as by mma.sync, in every order of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from metatasnet_fast import native
from metatasnet_fast.backends import Request, available_backends, registry
from metatasnet_fast.backends.cuda import WgmmaBackend
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import REFERENCE, noise, prepare, recipe, stage_parameters
from tests.backends.cuda_support import EMULATED, EMULATED_WGMMA, LONG, needs_the_module
from tests.support import TINY, recipe_state, relative_error

BFLOAT16 = Precision.bfloat16
WIDE = MetaTasNetConfig(N=176, B=168, H=72, layers=2, stack=3, num_mels=8, stages_num=2)
"""Sums of one to nine chunks of 64 channels through three stages, and more outputs than a tile has."""


@pytest.fixture
def ascending() -> Iterator[None]:
    yield
    native.load().set_emulated_order(0)


@pytest.fixture
def separate_launches() -> Iterator[None]:
    """A device that does not run the blocks of a persistent launch at the same time (test_cuda_persistent.py)."""
    native.load().set_emulated_multiprocessors(1)
    yield
    native.load().set_emulated_multiprocessors(132)


@needs_the_module
@pytest.mark.parametrize("samples", [520, 3001])
@pytest.mark.parametrize(
    ("config", "index"), [(TINY, 1), (TINY, 2), (WIDE, 1), (LONG, 0)], ids=["tiny", "tiny, last", "wide", "long"]
)
def test_encoder_and_decoder_have_the_bits_of_mma(config: MetaTasNetConfig, index: int, samples: int) -> None:
    """Both begin with the biases and cut the sum after every 16 channels. One tile of frames, and several; filters of one tile
    of taps, and of two in the last stage."""
    parameters = stage_parameters(recipe_state(config, 3), index)
    mma, wgmma = (prepare(b, config.stage(index), parameters, BFLOAT16) for b in (EMULATED, EMULATED_WGMMA))
    signal = noise(config, 2, samples)[index]
    latent = EMULATED.encode(mma, signal)
    assert torch.equal(EMULATED_WGMMA.encode(wgmma, signal), latent)
    assert torch.equal(EMULATED_WGMMA.decode(wgmma, latent), EMULATED.decode(mma, latent))


@needs_the_module
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("config", [TINY, WIDE], ids=["tiny", "wide"])
def test_masks_err_as_those_by_mma(config: MetaTasNetConfig, index: int, separate_launches: None) -> None:
    """Sums have the same bits; a thread's rows are others, so moments are added up in another order. The wide second stage's
    partial latent begins in the middle of a chunk of 64 channels."""
    stage, parameters = config.stage(index), stage_parameters(recipe_state(config, 3), index)
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn(1, stage.N, 200, generator=generator).bfloat16()
    shape = (1, stage.instruments, stage.partial_channels, 200)
    partial = torch.randn(shape, generator=generator).bfloat16() if index else None
    doubled = None if partial is None else partial.double()
    exact = REFERENCE.mask(prepare(REFERENCE, stage, parameters, Precision.float64), latent.double(), doubled)
    mma, wgmma = (b.mask(prepare(b, stage, parameters, BFLOAT16), latent, partial) for b in (EMULATED, EMULATED_WGMMA))
    assert relative_error(wgmma, exact) <= 1.1 * relative_error(mma, exact)


@needs_the_module
def test_the_order_in_which_threads_run_changes_no_bit(ascending: None) -> None:
    """Odd orders let warps and the blocks of a cluster drift apart: a wait that is missing shows as NaN or an error.

    The skip sum is six chunks through three stages; three tiles are two clusters, one of them with an empty tile.
    """
    config = MetaTasNetConfig(N=16, B=16, H=104, layers=3, stack=1, num_mels=8, stages_num=1)
    stage = config.stage(0)
    prepared = prepare(EMULATED_WGMMA, stage, stage_parameters(recipe_state(config, 3), 0), BFLOAT16)
    latent = torch.randn(1, stage.N, 300, generator=torch.Generator().manual_seed(5)).bfloat16()
    expected = EMULATED_WGMMA.mask(prepared, latent, None)
    assert expected.isfinite().all()
    for order in (1, 2, 3, 5):
        native.load().set_emulated_order(order)
        assert torch.equal(EMULATED_WGMMA.mask(prepared, latent, None), expected), order


@needs_the_module
def test_strides_of_a_single_item_do_not_matter() -> None:
    """torch gives a dimension of one element any stride; TMA takes multiples of 16 bytes alone."""
    stage = TINY.stage(1)
    latent = torch.randn(1, stage.N, 130, generator=torch.Generator().manual_seed(1)).bfloat16()
    rows = latent.mT.contiguous()
    odd = rows.as_strided(rows.shape, (3, *rows.stride()[1:]))
    parameters = stage_parameters(recipe_state(TINY, 3), 1)
    signals = [b.decode(prepare(b, stage, parameters, BFLOAT16), odd.mT) for b in (EMULATED, EMULATED_WGMMA)]
    assert torch.equal(*signals)


@needs_the_module
@pytest.mark.parametrize("samples", [130, 256])
@pytest.mark.parametrize("config", [TINY, WIDE], ids=["tiny", "wide"])
def test_partial_latents_may_have_any_strides(config: MetaTasNetConfig, samples: int) -> None:
    """TMA reads units that are evenly apart, or one for all instruments; others are copied first."""
    stage = config.stage(1)
    prepared = prepare(EMULATED_WGMMA, stage, stage_parameters(recipe_state(config, 3), 1), BFLOAT16)
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, stage.N, samples, generator=generator).bfloat16()
    partial = torch.randn(2, 4, stage.partial_channels, samples, generator=generator).bfloat16()
    rows = partial.mT.contiguous()
    for view in (rows, rows.transpose(0, 1).contiguous().transpose(0, 1), rows[:, :1].expand(rows.shape)):
        expected = EMULATED_WGMMA.mask(prepared, latent, view.mT.contiguous())
        assert expected.isfinite().all() and torch.equal(EMULATED_WGMMA.mask(prepared, latent, view.mT), expected)


@needs_the_module
def test_latents_that_lie_apart_are_decoded_as_copies_are() -> None:
    """Those that follow each other are one product."""
    prepared = prepare(EMULATED_WGMMA, TINY.stage(1), stage_parameters(recipe_state(TINY, 3), 1), BFLOAT16)
    latents = torch.randn(5, 140, 32, generator=torch.Generator().manual_seed(3)).bfloat16()[..., : TINY.stage(1).N].mT
    copied = EMULATED_WGMMA.decode(prepared, latents[::2].mT.contiguous().mT)
    assert copied.isfinite().all() and torch.equal(EMULATED_WGMMA.decode(prepared, latents[::2]), copied)


@needs_the_module
def test_a_window_of_300_seconds_is_planned() -> None:
    """Launches of the default network's last stage, which are not computed: more frames than fit in a persistent one."""
    stage = MetaTasNetConfig().stage(2)
    prepared = prepare(EMULATED_WGMMA, stage, stage_parameters(recipe(MetaTasNetConfig()), 2), BFLOAT16)
    frames = 300 * stage.sampling_rate // stage.W

    def job() -> None:
        latent = EMULATED_WGMMA.encode(prepared, torch.empty(1, 1, frames * stage.W))
        assert latent.shape == (1, stage.N, frames)
        masked = EMULATED_WGMMA.mask(prepared, latent, torch.empty(1, 4, frames, stage.N // 2, dtype=latent.dtype).mT)
        assert EMULATED_WGMMA.decode(prepared, masked[0]).shape == (4, 1, frames * stage.W)

    launches = native.load().record_emulated_launches(job)
    assert not any("PersistentBlocks" in kernel for kernel, *_ in launches)
    assert sum("MixConv" in kernel for kernel, *_ in launches) == len(stage.dilations) - 1
    assert max(size for _, grid, *_ in launches for size in grid[1:]) <= 65535


@needs_the_module
def test_only_bfloat16_is_multiplied_by_wgmma() -> None:
    assert "bfloat16, not tf32" in str(WgmmaBackend().supports(Request(torch.device("cuda"), Precision.tf32)))
    with pytest.raises(ValueError, match="wgmma multiplies bfloat16"):
        prepare(EMULATED_WGMMA, TINY.stage(0), stage_parameters(recipe_state(TINY, 3), 0), Precision.float32)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_gpus_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = str(WgmmaBackend().supports(Request(torch.device("cuda"), BFLOAT16)))
    assert f"{capability[0]}.{capability[1]}" in reason and "compute capability 9.0" in reason


def test_it_serves_only_who_asks_for_it_by_name() -> None:
    assert "not yet run on a GPU" in available_backends()["cuda-wgmma"].summary
    assert all("cuda-wgmma" not in names for names in registry._PREFERENCE.values())
