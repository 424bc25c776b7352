"""The backend ``cuda-wgmma`` on a Hopper: what the emulator cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from metatasnet_fast.backends.cuda import CudaBackend, WgmmaBackend
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import noise, prepare, recipe, separate, stage_parameters
from tests.backends.cuda_support import EMULATED_WGMMA
from tests.backends.test_cuda_golden import limit
from tests.backends.test_cuda_wgmma import WIDE
from tests.backends.test_graphs import assert_graphs_give_the_same_bits
from tests.support import TINY, assert_parity, golden, recipe_state

WGMMA = WgmmaBackend()
BFLOAT16 = Precision.bfloat16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WGMMA.unavailable() is not None, reason=str(WGMMA.unavailable())),
]


def separated(config: MetaTasNetConfig, state: Mapping[str, Tensor], mixes: Sequence[Tensor]) -> list[Tensor]:
    there = {name: value.cuda() for name, value in state.items()}
    return [value.cpu() for value in separate(WGMMA, config, there, [mix.cuda() for mix in mixes], BFLOAT16)]


@pytest.mark.parametrize("config", [TINY, WIDE], ids=["tiny", "wide"])
def test_every_job_agrees_with_its_emulation(config: MetaTasNetConfig) -> None:
    """The same code on the same inputs; sums inside a tensor-core instruction may be rounded in another order."""
    state, mixes = recipe_state(config, 3), noise(config, 2, 3001)
    emulated = separate(EMULATED_WGMMA, config, state, mixes, BFLOAT16)
    for index, value in enumerate(separated(config, state, mixes)):
        assert_parity(f"result {index}", value, emulated[index], 3e-2)


def test_full_size_network_equals_the_recorded_one() -> None:
    recording = golden("full_size")
    state = recipe(recording.config, recording.meta["weight_seed"])
    found = separated(recording.config, state, recording.mixes(torch.float32))
    for s, estimate in enumerate(found[2::3]):
        strided = estimate[..., :: recording.meta["stride"]]
        assert_parity(f"estimate {s}", strided, recording[f"infer/stage{s}"], limit("full_size", BFLOAT16, "infer", s))


def test_every_run_has_the_same_bits() -> None:
    recording = golden("full_size")
    state = recipe(recording.config, recording.meta["weight_seed"])
    first, second = (separated(recording.config, state, recording.mixes(torch.float32)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_products_without_moments_have_the_sums_of_mma() -> None:
    """The decoder of both backends, within what an instruction may round otherwise."""
    stage = TINY.stage(1)
    parameters = {name: value.cuda() for name, value in stage_parameters(recipe_state(TINY, 3), 1).items()}
    latent = torch.randn(2, stage.N, 700, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    signals = [b.decode(prepare(b, stage, parameters, BFLOAT16), latent).cpu() for b in (CudaBackend(), WGMMA)]
    assert_parity("signal", signals[1], signals[0], 1e-2)


def test_inference_by_graphs_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert_graphs_give_the_same_bits("cuda-wgmma", monkeypatch, caplog)
