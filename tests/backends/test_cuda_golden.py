"""The kernels of the backend ``cuda``, emulated on the host, against the recordings of the authors' program."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import prepare, separate
from tests.backends.cuda_support import EMULATED, EMULATED_WGMMA, PRECISIONS, needs_the_module
from tests.backends.test_cpu_golden import codec, masking
from tests.support import allowed, assert_parity, golden

pytestmark = needs_the_module

WAYS = [*((EMULATED, precision) for precision in PRECISIONS), (EMULATED_WGMMA, Precision.bfloat16)]
each_way = pytest.mark.parametrize(("backend", "precision"), WAYS, ids=[f"{b.name} {p.value}" for b, p in WAYS])


def limit(case: str, precision: Precision, key: str, stage: int | None = None) -> float:
    """tf32 has bfloat16's operations with three bits more: a quarter of what bfloat16 may err."""
    if precision is Precision.tf32:
        return allowed(case, "bfloat16", key, stage) / 4
    return allowed(case, precision.value, key, stage)


@each_way
@pytest.mark.parametrize("case", ["codec_8k", "codec_32k"])
def test_encoder_and_decoder_equal_the_recorded_ones(case: str, backend: CudaBackend, precision: Precision) -> None:
    recording = golden(case)
    prepared = prepare(backend, *codec(recording), precision)
    latent = backend.encode(prepared, recording["encoder/x"])
    assert_parity("latent", latent, recording["encoder/y"], limit(case, precision, "encoder/y"))
    signal = backend.decode(prepared, recording["decoder/x"])
    assert_parity("signal", signal, recording["decoder/y"], limit(case, precision, "decoder/y"))


def masks_of(prepared: Any, x: torch.Tensor, partial: torch.Tensor | None = None) -> torch.Tensor:
    """The masks of networks that read another latent for each instrument, as with dropout."""

    def by_frames(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(-1, -2).contiguous().to(prepared.storage)

    n, instruments, channels, frames = x.shape
    out = torch.full((n, instruments, frames, prepared.stage.latent_ld), torch.nan, dtype=prepared.storage)
    workspace = torch.full((prepared.stage.mask_bytes(n, frames, True),), 0xFF, dtype=torch.uint8)
    ones = torch.ones(n, frames, channels, dtype=prepared.storage)
    prepared.stage.mask(ones, by_frames(x), None if partial is None else by_frames(partial), out, workspace, 0)
    return out[..., :channels].transpose(2, 3)


@each_way
@pytest.mark.parametrize("part", ["mask", "mask_partial"])
@pytest.mark.parametrize("case", ["blocks_generated", "blocks_independent", "blocks_residual_bias"])
def test_masking_network_equals_the_recorded_one(
    case: str, part: str, backend: CudaBackend, precision: Precision
) -> None:
    recording = golden(case)
    partial = recording[f"{part}/partial"] if part == "mask_partial" else None
    masks = masks_of(prepare(backend, *masking(recording, part), precision), recording[f"{part}/x"], partial)
    assert_parity("masks", masks, recording[f"{part}/y"], limit(case, precision, f"{part}/y"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("chosen", [(2, 1), (3, 0, 1), (0, 1, 2, 3, 3), (0, 1, 2, 3, 2, 1, 0)])
def test_softmax_over_chosen_instruments_follows_from_the_recorded_one(
    chosen: tuple[int, ...], precision: Precision
) -> None:
    """Networks of instruments that were chosen, some of them twice, have the recorded logits: masks keep their ratios."""
    recording = golden("blocks_independent")
    stage, parameters = masking(recording, "mask")
    own = {
        name: value.unflatten(0, (4, -1))[list(chosen)].flatten(0, 1)
        if name.startswith("mask.") and len(value) > 1
        else value
        for name, value in parameters.items()
    }
    stage = dataclasses.replace(stage, instruments=len(chosen), softmax=len(chosen))
    masks = masks_of(prepare(EMULATED, stage, own, precision), recording["mask/x"][:, list(chosen)])
    recorded = recording["mask/y"][:, list(chosen)]
    expected = recorded / recorded.sum(1, keepdim=True)
    assert_parity("masks", masks, expected, limit("blocks_independent", precision, "mask/y"))


@pytest.mark.slow
@each_way
@pytest.mark.parametrize("case", ["train_generated", "train_independent", "train_residual_bias"])
def test_network_equals_the_recorded_one(case: str, backend: CudaBackend, precision: Precision) -> None:
    recording = golden(case)
    found = separate(backend, recording.config, recording.under("state/"), recording.mixes(torch.float32), precision)
    for s in range(recording.config.stages_num):
        latent, masked, estimate = found[3 * s : 3 * s + 3]
        most = limit(case, precision, "infer", s)
        assert_parity(f"latent {s}", latent, recording[f"encoder/stage{s}"], most)
        assert_parity(f"masked latent {s}", masked, recording[f"stage{s}/hidden"], most)
        assert_parity(f"estimate {s}", estimate[:1], recording[f"infer/stage{s}"], most)
