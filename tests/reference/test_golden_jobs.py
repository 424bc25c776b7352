"""The plain-PyTorch jobs against the recordings, forward and backward."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from metatasnet_fast import reference
from metatasnet_fast.config import MetaTasNetConfig, StageConfig
from metatasnet_fast.reference import generator, network
from tests.support import Golden, allowed, assert_parity, golden

PRECISIONS = ["float64", "float32"]
BLOCKS = ["blocks_generated", "blocks_independent", "blocks_residual_bias"]
CODECS = ["codec_8k", "codec_32k"]


def stage_of(recording: Golden, partial: bool) -> StageConfig:
    meta = recording.meta
    config = MetaTasNetConfig(
        N=meta["N"],
        B=meta["B"],
        H=meta["H"],
        E_1=meta["E_1"],
        E_2=meta["E_2"],
        layers=meta["layers"],
        stack=meta["stack"],
        independent_params=not meta["generated"],
        residual_bias=meta["residual_bias"],
        stages_num=1,
    )
    return dataclasses.replace(config.stage(0), index=int(partial))


def parameters_of(recording: Golden, prefix: str, name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    found = {name + k: v.to(dtype).requires_grad_() for k, v in recording.under(prefix).items()}
    if recording.meta.get("generated"):
        found["instrument_embedding.weight"] = recording["instrument"].to(dtype)
    return found


def check_gradients(recording: Golden, part: str, name: str, parameters: dict[str, Tensor], limit: float) -> None:
    expected = recording.under(f"{part}/grad/")
    assert_parity(f"{part}/grad", [parameters[name + k].grad for k in expected], list(expected.values()), limit)
    without = {k for k, p in parameters.items() if k.startswith(name) and p.grad is None}
    assert without == {name + k for k in recording.under(f"{part}/state/") if k not in expected}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", BLOCKS)
def test_block_equals_the_recorded_one(case: str, precision: str) -> None:
    recording, dtype = golden(case), getattr(torch, precision)
    parameters = parameters_of(recording, "layer/state/", "mask.tcn.0.", dtype)
    weights = generator.block_weights(stage_of(recording, False), parameters, "mask.tcn.0", last=False)
    x = recording["layer/x"].to(dtype).requires_grad_()
    residual, skip = network.block(x, weights, recording.meta["dilation"])
    assert residual is not None
    (residual * recording["layer/grad_residual"] + skip * recording["layer/grad_skip"]).sum().backward()
    for name, value in {"residual": residual, "skip": skip, "grad_x": x.grad}.items():
        assert_parity(name, value, recording[f"layer/{name}"], allowed(case, precision, f"layer/{name}"))
    limit = allowed(case, precision, "layer/grad (all parameters)")
    check_gradients(recording, "layer", "mask.tcn.0.", parameters, limit)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["mask", "mask_partial"])
@pytest.mark.parametrize("case", BLOCKS)
def test_masking_network_equals_the_recorded_one(case: str, part: str, precision: str) -> None:
    recording, dtype = golden(case), getattr(torch, precision)
    stage = stage_of(recording, part == "mask_partial")
    parameters = parameters_of(recording, f"{part}/state/", "mask.", dtype)
    inputs = [recording[f"{part}/x"].to(dtype).requires_grad_()]
    if f"{part}/partial" in recording:
        inputs.append(recording[f"{part}/partial"].to(dtype).requires_grad_())
    y = network.masking_network(generator.masking_weights(stage, parameters), stage, torch.cat(inputs, dim=2))
    (y * recording[f"{part}/grad_y"]).sum().backward()
    assert_parity("y", y, recording[f"{part}/y"], allowed(case, precision, f"{part}/y"))
    for name, value in zip(("grad_x", "grad_partial"), inputs, strict=False):
        assert_parity(name, value.grad, recording[f"{part}/{name}"], allowed(case, precision, f"{part}/{name}"))
    check_gradients(recording, part, "mask.", parameters, allowed(case, precision, f"{part}/grad (all parameters)"))


def codec_stage(recording: Golden) -> StageConfig:
    meta = recording.meta
    scale = meta["sampling_rate"] // 8000
    config = MetaTasNetConfig(
        N=8,
        L=meta["kernel_size"] // scale,
        W=meta["stride"] // scale,
        filters=meta["filters"],
        num_mels=meta["num_mels"],
        stages_num=3,
    )
    return dataclasses.replace(config.stage(scale.bit_length() - 1), N=meta["N"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CODECS)
def test_encoder_equals_the_recorded_one(case: str, precision: str) -> None:
    recording, dtype = golden(case), getattr(torch, precision)
    stage = codec_stage(recording)
    parameters = {"encoder." + k: v.to(dtype) for k, v in recording.under("encoder/state/").items()}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.rsplit(".", 1)[-1] not in ("window", "mean", "std"))
    weights = generator.encoder_weights(stage, parameters)
    x = recording["encoder/x"].to(dtype).requires_grad_()
    y = reference.encode(weights, stage, x)
    (y * recording["encoder/grad_y"]).sum().backward()
    assert_parity("y", y, recording["encoder/y"], allowed(case, precision, "encoder/y"))
    assert_parity("grad_x", x.grad, recording["encoder/grad_x"], allowed(case, precision, "encoder/grad_x"))
    check_gradients(
        recording, "encoder", "encoder.", parameters, allowed(case, precision, "encoder/grad (all parameters)")
    )


@pytest.mark.parametrize("case", CODECS)
def test_spectrogram_equals_the_recorded_one(case: str) -> None:
    recording = golden(case)
    stage = codec_stage(recording)
    parameters = {"encoder." + k: v.double() for k, v in recording.under("encoder/state/").items()}
    weights = generator.encoder_weights(stage, parameters).spectrogram
    x = recording["encoder/x"].double()
    assert_parity("log power", network.log_power(x, weights.window, stage), recording["encoder/log_power"], 1e-6)
    frames = recording["encoder/mel"].shape[-1]
    mel = network.mel_spectrogram(weights, stage, x, frames)
    assert_parity("mel", mel, recording["encoder/mel"], 1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CODECS)
def test_decoder_equals_the_recorded_one(case: str, precision: str) -> None:
    recording, dtype = golden(case), getattr(torch, precision)
    stage = codec_stage(recording)
    states = recording.under("decoder/state/").items()
    parameters = {"decoder." + k: v.to(dtype).requires_grad_() for k, v in states}
    x = recording["decoder/x"].to(dtype).requires_grad_()
    y = reference.decode(generator.decoder_weights(stage, parameters), stage, x)
    (y * recording["decoder/grad_y"]).sum().backward()
    assert_parity("y", y, recording["decoder/y"], allowed(case, precision, "decoder/y"))
    assert_parity("grad_x", x.grad, recording["decoder/grad_x"], allowed(case, precision, "decoder/grad_x"))
    check_gradients(
        recording, "decoder", "decoder.", parameters, allowed(case, precision, "decoder/grad (all parameters)")
    )


@pytest.mark.parametrize(("precision", "limit"), [("float64", 1e-6), ("float32", 3e-6)])
def test_losses_equal_the_recorded_ones(precision: str, limit: float) -> None:
    recording, dtype = golden("loss"), getattr(torch, precision)
    names = ("estimate", "target", "mask", "latents", "mix_estimate", "mix")
    inputs = {name: recording[name].to(dtype) for name in names}
    for name in ("estimate", "latents", "mix_estimate"):
        inputs[name].requires_grad_()
    loss, stats = reference.stage_loss(
        **inputs,
        weights=reference.LossWeights(
            recording.meta["similarity_loss_weight"],
            recording.meta["dissimilarity_loss_weight"],
            recording.meta["reconstruction_loss_weight"],
        ),
    )
    loss.backward()
    assert_parity("loss", loss, recording["loss"], limit)
    assert_parity("stats", stats, recording["stats"], limit)
    for name in ("estimate", "latents", "mix_estimate"):
        assert_parity(f"grad of {name}", inputs[name].grad, recording[f"grad_{name}"], limit)
    plain = reference.si_sdr(inputs["estimate"], inputs["target"]).mean(dim=(0, -1))
    assert_parity("sdr without mask", plain, recording["sdr"], limit)


def test_a_weight_of_zero_switches_its_term_off() -> None:
    recording = golden("loss")
    inputs = {name: recording[name] for name in ("estimate", "target", "mask", "mix")}
    loss, stats = reference.stage_loss(
        **inputs,
        latents=None,
        mix_estimate=None,
        weights=reference.LossWeights(0.0, -1.0, 0.0),
    )
    assert stats[4:].tolist() == [0, 0, 0]
    assert_parity("loss", loss, -stats[:4].sum(), 1e-6)
