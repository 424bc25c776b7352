"""The kernels of the backend ``cuda``, emulated on the host, against the recordings of the authors' program."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import prepare, recipe, separate, stage_parameters
from tests.backends.cuda_support import EMULATED, PRECISIONS, needs_the_module
from tests.backends.test_cpu_golden import codec
from tests.support import allowed, assert_parity, golden

pytestmark = needs_the_module


def limit(case: str, precision: Precision, key: str, stage: int | None = None) -> float:
    """tf32 has bfloat16's operations with three bits more: a quarter of what bfloat16 may err."""
    if precision is Precision.tf32:
        return allowed(case, "bfloat16", key, stage) / 4
    return allowed(case, precision.value, key, stage)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["codec_8k", "codec_32k"])
def test_encoder_and_decoder_equal_the_recorded_ones(case: str, precision: Precision) -> None:
    recording = golden(case)
    prepared = prepare(EMULATED, *codec(recording), precision)
    latent = EMULATED.encode(prepared, recording["encoder/x"])
    assert_parity("latent", latent, recording["encoder/y"], limit(case, precision, "encoder/y"))
    signal = EMULATED.decode(prepared, recording["decoder/x"])
    assert_parity("signal", signal, recording["decoder/y"], limit(case, precision, "decoder/y"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["mask", "mask_partial"])
@pytest.mark.parametrize("case", ["blocks_generated", "blocks_independent", "blocks_residual_bias"])
def test_masking_network_equals_the_recorded_one(case: str, part: str, precision: Precision) -> None:
    """The recorded network reads another latent for each instrument, as with dropout."""
    recording = golden(case)
    meta = recording.meta
    config = MetaTasNetConfig(
        **{name: meta[name] for name in ("N", "B", "H", "E_1", "E_2", "layers", "stack", "residual_bias")},
        independent_params=not meta["generated"],
        num_mels=8,
        stages_num=1,
    )
    stage = dataclasses.replace(config.stage(0), index=int(part == "mask_partial"))
    parameters = stage_parameters(recipe(config), 0)
    parameters.update({f"mask.{k}": v for k, v in recording.under(f"{part}/state/").items()})
    if meta["generated"]:
        parameters["instrument_embedding.weight"] = recording["instrument"]
    prepared = prepare(EMULATED, stage, parameters, precision)

    x = recording[f"{part}/x"]
    partial = recording[f"{part}/partial"] if stage.index else None
    size = prepared.stage.mask_bytes(len(x), x.shape[-1], True)
    out = torch.full((len(x), 4, x.shape[-1], prepared.stage.latent_ld), torch.nan, dtype=prepared.storage)
    prepared.stage.mask(
        torch.ones(len(x), x.shape[-1], stage.N, dtype=prepared.storage),
        x.transpose(2, 3).contiguous().to(prepared.storage),
        None if partial is None else partial.transpose(2, 3).contiguous().to(prepared.storage),
        out,
        torch.full((size,), 0xFF, dtype=torch.uint8),
        0,
    )
    masks = out[..., : stage.N].transpose(2, 3)
    assert_parity("masks", masks, recording[f"{part}/y"], limit(case, precision, f"{part}/y"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["train_generated", "train_independent", "train_residual_bias"])
def test_network_equals_the_recorded_one(case: str, precision: Precision) -> None:
    recording = golden(case)
    found = separate(EMULATED, recording.config, recording.under("state/"), recording.mixes(torch.float32), precision)
    for s in range(recording.config.stages_num):
        latent, masked, estimate = found[3 * s : 3 * s + 3]
        most = limit(case, precision, "infer", s)
        assert_parity(f"latent {s}", latent, recording[f"encoder/stage{s}"], most)
        assert_parity(f"masked latent {s}", masked, recording[f"stage{s}/hidden"], most)
        assert_parity(f"estimate {s}", estimate[:1], recording[f"infer/stage{s}"], most)
