"""Inputs, an oracle in float64, and the recorded block, for the reference arithmetic and for the kernels alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metatasnet_fast.config import MetaTasNetConfig, StageConfig
from metatasnet_fast.ops import GroupNorm, depthwise, group_norm, group_statistics, pointwise
from metatasnet_fast.reference import generator
from metatasnet_fast.reference import network as oracle
from metatasnet_fast.reference.generator import BlockWeights, Convolution, MaskingWeights, Norm
from tests.support import Golden, allowed, assert_parity

NAMES = ("x", "weight", "bias", "gamma", "beta", "slope", "taps", "gamma_2", "beta_2", "slope_2", "slope_3", "residual")


@dataclass
class Case:
    """A product with everything switched on, then a depthwise pass: every tensor by its name in ``NAMES``."""

    tensors: dict[str, Tensor]
    dilation: int

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: value.detach().to(dtype, copy=True).requires_grad_() for name, value in self.tensors.items()}


def case(
    n: int = 2,
    frames: int = 37,
    inputs: int = 24,
    outputs: int = 16,
    dilation: int = 4,
    offset: float = 1.0,
    seed: int = 0,
    instruments: int = 4,
) -> Case:
    r = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=r, dtype=torch.float64)

    i = instruments
    shapes = {
        "x": (n, i, frames, inputs), "weight": (i, outputs, inputs), "bias": (i, outputs), "gamma": (i, inputs),
        "beta": (i, inputs), "slope": (1,), "taps": (i, outputs, 3), "gamma_2": (i, outputs), "beta_2": (i, outputs),
        "slope_2": (1,), "slope_3": (1,), "residual": (n, i, frames, outputs),
    }  # fmt: skip
    tensors = {name: normal(*shape) for name, shape in shapes.items()}
    tensors["x"] += offset
    for name in ("slope", "slope_2", "slope_3"):
        tensors[name] = 0.25 + 0.05 * tensors[name]
    return Case({name: value.float().double() for name, value in tensors.items()}, dilation)


def fused(p: dict[str, Tensor], dilation: int) -> tuple[Tensor, Tensor]:
    """The case by the fused operations: the product and the depthwise result."""
    norm = GroupNorm(group_statistics(p["x"], p["slope"]), p["gamma"], p["beta"])
    y, statistics = pointwise(
        p["x"], p["weight"], p["bias"],
        residual=p["residual"], norm=norm, slope=p["slope"], next_slope=p["slope_2"],
    )  # fmt: skip
    assert statistics is not None
    norm = GroupNorm(statistics, p["gamma_2"], p["beta_2"])
    return y, depthwise(y, p["taps"], dilation, p["slope_2"], norm, p["slope_3"])[0]


def plain(p: dict[str, Tensor], dilation: int) -> tuple[Tensor, Tensor]:
    """The same by the layers of the reference network, which hold channels before frames."""
    x = oracle.group_norm(F.prelu(p["x"].transpose(2, 3), p["slope"]), Norm(p["gamma"], p["beta"]))
    y = oracle.pointwise(x, Convolution(p["weight"][..., None], p["bias"])) + p["residual"].transpose(2, 3)
    m = oracle.group_norm(F.prelu(y, p["slope_2"]), Norm(p["gamma_2"], p["beta_2"]))
    b = F.prelu(oracle.depthwise(m, Convolution(p["taps"][:, :, None]), dilation), p["slope_3"])
    return y.transpose(2, 3), b.transpose(2, 3)


def fused_norm(p: dict[str, Tensor]) -> Tensor:
    """The case's input, normalised and stored."""
    return group_norm(p["x"], p["slope"], GroupNorm(group_statistics(p["x"], p["slope"]), p["gamma"], p["beta"]))


def plain_norm(p: dict[str, Tensor]) -> Tensor:
    """The same by the reference network's layer."""
    x = F.prelu(p["x"].transpose(2, 3), p["slope"])
    return oracle.group_norm(x, Norm(p["gamma"], p["beta"])).transpose(2, 3)


def of_norm(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The leaves that the norm reads."""
    return {name: leaves[name] for name in ("x", "slope", "gamma", "beta")}


def gradients(p: dict[str, Tensor], outputs: Sequence[Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Gradients of every leaf for random gradients of the outputs, rounded to float32 in every dtype."""
    r = torch.Generator().manual_seed(seed)
    given = [torch.randn(y.shape, generator=r, dtype=torch.float64).float().to(y) for y in outputs]
    found = torch.autograd.grad(list(outputs), list(p.values()), given)
    return dict(zip(p, found, strict=True))


def recorded_weights(
    recording: Golden, part: str, name: str, dtype: torch.dtype, device: str = "cpu"
) -> tuple[StageConfig, dict[str, Tensor]]:
    """The recording's stage and its parameters under the network's names, leaves; float64 or, below it, float32."""
    meta = recording.meta
    config = MetaTasNetConfig(
        N=meta["N"], B=meta["B"], H=meta["H"], E_1=meta["E_1"], E_2=meta["E_2"], layers=meta["layers"],
        stack=meta["stack"], independent_params=not meta["generated"], residual_bias=meta["residual_bias"],
        stages_num=1,
    )  # fmt: skip
    stored = torch.float64 if dtype == torch.float64 else torch.float32
    state = recording.under(f"{part}/state/")
    found = {name + k: v.to(device, stored, copy=True).requires_grad_() for k, v in state.items()}
    if meta["generated"]:
        found["instrument_embedding.weight"] = recording["instrument"].to(device, stored)
    return dataclasses.replace(config.stage(0), index=int(part == "mask_partial")), found


def norm_of(statistics: Tensor | None, weights: Norm) -> GroupNorm:
    assert statistics is not None
    return GroupNorm(statistics, weights.scale, weights.shift)


def fused_block(
    x: Tensor, w: BlockWeights, dilation: int, x_added: Tensor | None, skips: Tensor | None
) -> list[Tensor]:
    """Skips with this block's added, and ``x_added`` with its residual, unless it is the last; (n, 4, frames, B)."""
    c, statistics = pointwise(x, w.conv1d.weight[..., 0], next_slope=w.prelu_1)
    norm = norm_of(statistics, w.norm_1)
    b, statistics = depthwise(c, w.dconv1d.weight[:, :, 0], dilation, w.prelu_1, norm, w.prelu_2)
    norm = norm_of(statistics, w.norm_2)
    found = [pointwise(b, w.skip_out.weight[..., 0], w.skip_out.bias, norm=norm, residual=skips)[0]]
    if w.res_out is not None:
        found.append(pointwise(b, w.res_out.weight[..., 0], w.res_out.bias, norm=norm, residual=x_added)[0])
    return found


def fused_network(weights: MaskingWeights, config: StageConfig, x: Tensor) -> Tensor:
    """The whole masking network by the fused operations up to its last norm; masks from (n, 4, channels, frames)."""
    w, z = weights, x.transpose(2, 3).contiguous()
    norm = norm_of(group_statistics(z, w.prelu_1), w.norm_1)
    z, statistics = pointwise(z, w.in_conv.weight[..., 0], norm=norm, slope=w.prelu_1, next_slope=w.prelu_2)
    z, skips = group_norm(z, w.prelu_2, norm_of(statistics, w.norm_2)), None
    for block_weights, dilation in zip(w.blocks, config.dilations, strict=True):
        skips, *residual = fused_block(z, block_weights, dilation, z, skips)
        z = residual[0] if residual else z
    assert skips is not None
    norm = norm_of(group_statistics(skips, w.prelu_3), w.norm_3)
    m, statistics = pointwise(skips, w.mask_output.weight[..., 0], norm=norm, slope=w.prelu_3, next_slope=w.prelu_4)
    return group_norm(m, w.prelu_4, norm_of(statistics, w.norm_4)).softmax(1).transpose(2, 3)


def network(recording: Golden, part: str, dtype: torch.dtype) -> None:
    """The recorded masking network, forward and backward; asserts parity."""
    precision, name = str(dtype).removeprefix("torch."), recording.name
    stage, parameters = recorded_weights(recording, part, "mask.", dtype)
    inputs = {"grad_x": recording[f"{part}/x"].to(dtype).requires_grad_()}
    if f"{part}/partial" in recording:
        inputs["grad_partial"] = recording[f"{part}/partial"].to(dtype).requires_grad_()
    y = fused_network(generator.masking_weights(stage, parameters), stage, torch.cat(list(inputs.values()), dim=2))
    y.backward(recording[f"{part}/grad_y"].to(dtype))
    assert_parity("y", y, recording[f"{part}/y"], allowed(name, precision, f"{part}/y"))
    for key, value in inputs.items():
        assert_parity(key, value.grad, recording[f"{part}/{key}"], allowed(name, precision, f"{part}/{key}"))
    expected = recording.under(f"{part}/grad/")
    limit = allowed(name, precision, f"{part}/grad (all parameters)")
    assert_parity("grad", [parameters["mask." + k].grad for k in expected], list(expected.values()), limit)
    without = {k for k, p in parameters.items() if k.startswith("mask.") and p.grad is None}
    assert without == {"mask." + k for k in recording.under(f"{part}/state/") if k not in expected}


def block(recording: Golden, dtype: torch.dtype, device: str = "cpu") -> None:
    """One recorded block of the masking network, forward and backward, by the fused operations; asserts parity."""
    precision, name, prefix = str(dtype).removeprefix("torch."), recording.name, "mask.tcn.0."
    stage, parameters = recorded_weights(recording, "layer", prefix, dtype, device)
    w = generator.block_weights(stage, parameters, prefix[:-1], last=False)
    x = recording["layer/x"].to(device, dtype).requires_grad_()
    skip, residual = fused_block(x.transpose(2, 3).contiguous(), w, recording.meta["dilation"], None, None)
    residual, skip = residual.transpose(2, 3), skip.transpose(2, 3)
    given = [recording[f"layer/grad_{name}"].to(device, dtype) for name in ("residual", "skip")]
    torch.autograd.backward([residual, skip], given)
    for key, value in {"residual": residual, "skip": skip, "grad_x": x.grad}.items():
        assert value is not None
        assert_parity(key, value.cpu(), recording[f"layer/{key}"], allowed(name, precision, f"layer/{key}"))
    expected = recording.under("layer/grad/")
    limit = allowed(name, precision, "layer/grad (all parameters)")
    found = [parameters[prefix + k].grad.cpu() for k in expected]  # type: ignore[union-attr]
    assert_parity("grad", found, list(expected.values()), limit)
