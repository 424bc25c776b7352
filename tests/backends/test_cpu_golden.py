"""The backend ``cpu`` on every instruction set against the recordings of the authors' program."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from metatasnet_fast.config import MetaTasNetConfig, StageConfig
from metatasnet_fast.precision import Precision
from tests.backends.cpu_support import (  # noqa: F401
    CPU,
    PRECISIONS,
    isa,
    needs_the_module,
    prepare,
    recipe,
    separate,
    stage_parameters,
)
from tests.support import Golden, allowed, assert_parity, golden

pytestmark = needs_the_module


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["train_generated", "train_independent", "train_residual_bias"])
def test_network_equals_the_recorded_one(case: str, precision: Precision, isa: str) -> None:  # noqa: F811
    recording = golden(case)
    found = separate(CPU, recording.config, recording.under("state/"), recording.mixes(torch.float32), precision)
    for s in range(recording.config.stages_num):
        limit = allowed(case, precision.value, "infer", s)
        latent, masked, estimate = found[3 * s : 3 * s + 3]
        assert_parity(f"latent {s}", latent, recording[f"encoder/stage{s}"], limit)
        assert_parity(f"masked latent {s}", masked, recording[f"stage{s}/hidden"], limit)
        assert_parity(f"estimate {s}", estimate[:1], recording[f"infer/stage{s}"], limit)


def codec(recording: Golden) -> tuple[StageConfig, dict[str, torch.Tensor]]:
    """The recorded encoder and decoder, with any masking network between them."""
    meta = recording.meta
    config = MetaTasNetConfig(
        N=meta["N"],
        L=meta["kernel_size"],
        W=meta["stride"],
        filters=meta["filters"],
        num_mels=meta["num_mels"],
        sampling_rate=meta["sampling_rate"],
        B=8,
        H=8,
        layers=1,
        stack=1,
        stages_num=1,
    )
    parameters = stage_parameters(recipe(config), 0)
    for part in ("encoder", "decoder"):
        parameters.update({f"{part}.{k}": v for k, v in recording.under(f"{part}/state/").items()})
    return config.stage(0), parameters


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["codec_8k", "codec_32k"])
def test_encoder_and_decoder_equal_the_recorded_ones(case: str, precision: Precision, isa: str) -> None:  # noqa: F811
    recording = golden(case)
    prepared = prepare(CPU, *codec(recording), precision)
    latent = CPU.encode(prepared, recording["encoder/x"])
    assert_parity("latent", latent, recording["encoder/y"], allowed(case, precision.value, "encoder/y"))
    signal = CPU.decode(prepared, recording["decoder/x"])
    assert_parity("signal", signal, recording["decoder/y"], allowed(case, precision.value, "decoder/y"))


def masking(recording: Golden, part: str) -> tuple[StageConfig, dict[str, torch.Tensor]]:
    """The recorded masking network, between any encoder and decoder."""
    meta = recording.meta
    config = MetaTasNetConfig(
        **{name: meta[name] for name in ("N", "B", "H", "E_1", "E_2", "layers", "stack", "residual_bias")},
        independent_params=not meta["generated"],
        num_mels=8,
        stages_num=1,
    )
    parameters = stage_parameters(recipe(config), 0)
    parameters.update({f"mask.{k}": v for k, v in recording.under(f"{part}/state/").items()})
    if meta["generated"]:
        parameters["instrument_embedding.weight"] = recording["instrument"]
    return dataclasses.replace(config.stage(0), index=int(part == "mask_partial")), parameters


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["mask", "mask_partial"])
@pytest.mark.parametrize("case", ["blocks_generated", "blocks_independent", "blocks_residual_bias"])
def test_masking_network_equals_the_recorded_one(case: str, part: str, precision: Precision, isa: str) -> None:  # noqa: F811
    """The recorded network reads another latent for each instrument, as with dropout."""
    recording = golden(case)
    stage, parameters = masking(recording, part)
    prepared = prepare(CPU, stage, parameters, precision)

    x = recording[f"{part}/x"]
    partial = recording[f"{part}/partial"] if stage.index else None
    masks = CPU.mask(prepared, torch.ones(len(x), stage.N, x.shape[-1]), partial, dropout=None)
    assert_parity("sum of the masks", masks.float().sum(1), torch.ones_like(masks[:, 0]), 1e-2)
    out = torch.empty(len(x), 4, x.shape[-1], prepared.stage.latent_ld, dtype=precision.storage)
    prepared.stage.mask(
        torch.ones(len(x), x.shape[-1], stage.N),
        x.transpose(2, 3).contiguous(),
        None if partial is None else partial.transpose(2, 3).contiguous(),
        out,
        None,
        1,
    )
    masks = out[..., : stage.N].transpose(2, 3)
    assert_parity("masks", masks, recording[f"{part}/y"], allowed(case, precision.value, f"{part}/y"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_full_size_network_equals_the_recorded_one(precision: Precision) -> None:
    recording = golden("full_size")
    state = recipe(recording.config, recording.meta["weight_seed"])
    found = separate(CPU, recording.config, state, recording.mixes(torch.float32), precision)
    for s, estimate in enumerate(found[2::3]):
        limit = allowed("full_size", precision.value, "infer", s)
        strided = estimate[..., :: recording.meta["stride"]]
        assert_parity(f"estimate {s}", strided, recording[f"infer/stage{s}"], limit)
