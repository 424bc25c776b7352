"""The backend ``triton``: training and inference in fused Triton kernels, on NVIDIA and AMD GPUs.

The weights of the masking network are stacked over the blocks. One generator operation makes all of these weights.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import ops, reference
from ..config import StageConfig
from ..ops import BlockParameters, Section, codec, generated_parameters
from ..ops.operator import interpreted
from ..precision import Precision
from ..reference import generator
from .gpu import compiler_reason, no_gpu_reason
from .graphs import GraphedBackend, Graphs, switched_on
from .registry import Request, exactly

__all__ = ["MaskWeights", "TritonBackend", "mask_weights"]


@dataclass(frozen=True)
class _Prepared:
    config: StageConfig
    precision: Precision
    encoder: codec.EncoderOperands
    decoder: codec.DecoderOperands
    masking: MaskWeights
    graphs: Graphs | None
    """Graphs of the whole network's inference jobs; only those of the first stage are used. None with gradients, on a CPU, or
    if graphs are switched off."""

    @property
    def tf32(self) -> bool:
        return self.precision is Precision.tf32


class TritonBackend(GraphedBackend):
    """The backend of Triton kernels; see ``docs/triton.md``.

    Every job consists of a few differentiable operations of :mod:`metatasnet_fast.ops`. Latents are stored as (frames,
    channels), in the precision's dtype. Statistics, sums and the softmax are float32. Results have the same bits in every run,
    and do not depend on the other items of the batch.
    """

    name = "triton"
    summary = "fused Triton kernels; training and inference in float32, tf32 and bfloat16 on GPUs"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "the package triton is missing; `pip install triton` installs it."
        if interpreted():
            return None
        reason = no_gpu_reason()
        if reason is not None:
            return f"{reason} TRITON_INTERPRET=1 in the environment lets it serve CPU tensors, slowly, for tests."
        return compiler_reason()

    def supports(self, request: Request) -> str | None:
        device, precision = request.device, request.precision
        if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
            return f"it computes on GPUs, not on {device}; move the network there or choose another backend."
        if precision is Precision.float64:
            return "it has no float64; ask for float32, or choose the backend reference."
        if precision is Precision.float16:
            return "the norm of near silence overflows float16; ask for bfloat16, or choose the backend reference."
        if device.type == "cpu":
            return "TF32 exists on GPUs only; ask for float32." if precision is Precision.tf32 else None
        capability = torch.cuda.get_device_capability(device)
        if capability < (8, 0) and torch.version.hip is None:
            return f"it needs compute capability 8.0 or more, {device} has {capability[0]}.{capability[1]}."
        return None

    @exactly
    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> _Prepared:
        copy = not torch.is_grad_enabled()
        p = {name: value.to(torch.float32, copy=copy) for name, value in parameters.items()}
        masking = mask_weights(config, p)
        if copy:  # convert once, not in every run
            conv1d = masking.blocks.conv1d.to(precision.storage)
            masking = replace(masking, blocks=masking.blocks._replace(conv1d=conv1d))
        graphs = copy and switched_on() and next(iter(p.values())).is_cuda
        return _Prepared(
            config,
            precision,
            codec.prepare_encoder(generator.encoder_weights(config, p), config, precision),
            codec.prepare_decoder(generator.decoder_weights(config, p), config, precision),
            masking,
            Graphs(config.sampling_rate) if graphs else None,
        )

    @exactly
    def encode(self, prepared: _Prepared, signal: Tensor) -> Tensor:
        return codec.encode(prepared.encoder, signal)

    @exactly
    def mask(
        self, prepared: _Prepared, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        x, v = _checked(prepared.config, latent, partial, prepared.precision.storage)
        own = None if dropout is None else x[:, None] * dropout[:, :, None].to(x.dtype)
        return _masked(prepared.config, prepared.masking, prepared.tf32, x, v, own).transpose(2, 3)

    @exactly
    def decode(self, prepared: _Prepared, latent: Tensor) -> Tensor:
        return codec.decode(prepared.decoder, latent)

    @exactly
    def stage_loss(
        self,
        estimate: Tensor,
        target: Tensor,
        mask: Tensor,
        latents: Tensor | None,
        mix_estimate: Tensor | None,
        mix: Tensor,
        weights: reference.LossWeights,
        divisors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return loss and statistics of a stage, computed by the fused kernels.

        PyTorch's operations compute them if the data need gradients, are float64, or have no items.
        """
        data = any(value.requires_grad for value in (target, mask, mix))
        plain = data or estimate.numel() == 0 or estimate.dtype == torch.float64
        loss = reference.stage_loss if plain else ops.stage_loss
        return loss(estimate, target, mask, latents, mix_estimate, mix, weights, divisors)


def _masked(
    config: StageConfig, w: MaskWeights, tf32: bool, x: Tensor, v: Tensor | None, own: Tensor | None = None
) -> Tensor:
    """Return masked latents (n, I, frames, N) of the latent ``x`` (n, frames, N).

    ``v`` (n, I, frames, N / 2) is the masked latent of the previous stage. With dropout, ``own`` (n, I, frames, N) holds the
    copies of the latent that the masking network reads instead of ``x``.
    """
    prelu_1, prelu_2, prelu_3, prelu_4 = w.slopes
    y, statistics = ops.in_conv(
        x[:, None] if own is None else own, v, w.in_conv, prelu_1, *w.norm_1, prelu_2, tf32=tf32
    )
    norm = ops.GroupNorm(statistics, *w.norm_2)
    # Without gradients, `blocks` applies the norm at its start and returns the activation of the skips, and `masked_latent`
    # does not store the result of mask_output.
    activated = not torch.is_grad_enabled()
    start = (prelu_2, norm) if activated else None
    if start is None:
        y = ops.group_norm(y, prelu_2, norm)
    y, statistics = ops.blocks(y, w.blocks, config.dilations, prelu_3, tf32=tf32, activated=activated, start=start)
    norm = ops.GroupNorm(statistics, *w.norm_3)
    if activated:
        return ops.masked_latent(y, w.mask_output, norm, prelu_4, *w.norm_4, x, config.softmax, tf32=tf32)
    m, last = ops.pointwise(y, w.mask_output, norm=norm, slope=prelu_3, next_slope=prelu_4, tf32=tf32)
    assert last is not None
    return ops.mask_tail(m, x, prelu_4, ops.GroupNorm(last, *w.norm_4), config.softmax)


def _checked(
    config: StageConfig, latent: Tensor, partial: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Check both latents; return them as (..., frames, channels), in ``dtype``."""
    config.check_latent(latent.shape)
    config.check_partial(None if partial is None else partial.shape, latent.shape)
    return latent.to(dtype).transpose(1, 2), None if partial is None else partial.to(dtype).transpose(2, 3)


Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class MaskWeights:
    """The weights of the masking network.

    Each slope is (1,). A norm is a pair (gamma, beta), each (I, channels). A 1x1 convolution is (I, out, in).
    """

    slopes: tuple[Tensor, Tensor, Tensor, Tensor]
    norm_1: tuple[Tensor, Tensor]
    in_conv: Tensor
    norm_2: tuple[Tensor, Tensor]
    blocks: BlockParameters
    norm_3: tuple[Tensor, Tensor]
    mask_output: Tensor
    norm_4: tuple[Tensor, Tensor]


def mask_weights(config: StageConfig, p: Parameters) -> MaskWeights:
    """Return the masking network's weights, given the parameters of the stage by the original's names.

    The weights are differentiable. One operation makes all generated parameters of the stage. The last block's ``res_out`` is
    left out: its output is never used, so its parameters get no gradient, as in the original.
    """
    named = _generated(config, p) if config.generated else _independent(config, p)
    count = range(len(config.dilations))
    slopes = {i: torch.cat([p[f"mask.tcn.{block}.prelu_{i}.weight"] for block in count]) for i in (1, 2)}
    return MaskWeights(
        slopes=(p["mask.prelu_1.weight"], p["mask.prelu_2.weight"], p["mask.prelu_3.weight"], p["mask.prelu_4.weight"]),
        norm_1=(named["norm_1.gamma"], named["norm_1.beta"]),
        in_conv=named["in_conv"],
        norm_2=(named["norm_2.gamma"], named["norm_2.beta"]),
        blocks=BlockParameters(
            named["conv1d"], slopes[1], named["tcn.norm_1.gamma"], named["tcn.norm_1.beta"], named["dconv1d"], slopes[2],
            named["tcn.norm_2.gamma"], named["tcn.norm_2.beta"], named["out"], named.get("bias"),
        ),
        norm_3=(named["norm_3.gamma"], named["norm_3.beta"]),
        mask_output=named["mask_output"],
        norm_4=(named["norm_4.gamma"], named["norm_4.beta"]),
    )  # fmt: skip


def _shapes(config: StageConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all generated weights by name, in the order in which the weights lie in memory."""
    count, instruments, b, h = len(config.dilations), config.instruments, config.B, config.H
    shapes: dict[str, tuple[int, ...]] = {}
    for name, channels in (("norm_1", config.in_channels), ("norm_2", b), ("norm_3", b), ("norm_4", config.N)):
        shapes[f"{name}.gamma"] = shapes[f"{name}.beta"] = (instruments, channels)
    shapes["in_conv"] = (instruments, b, config.in_channels)
    shapes["mask_output"] = (instruments, config.N, b)
    shapes["conv1d"] = (count, instruments, h, b)
    shapes["dconv1d"] = (count, instruments, h, 3)
    for name in ("tcn.norm_1", "tcn.norm_2"):
        shapes[f"{name}.gamma"] = shapes[f"{name}.beta"] = (count, instruments, h)
    shapes["out"] = (count, instruments, 2 * b, h)
    if config.residual_bias:
        shapes["bias"] = (count, instruments, 2 * b)
    return shapes


@dataclass(frozen=True)
class _Plan:
    """The plan by which the generated layers of a stage become weights.

    ``layers`` and ``matrices`` are names of parameters. ``sections`` tell where the rows of the matrices go. ``shapes`` are
    those of :func:`_shapes`.
    """

    layers: tuple[str, ...]
    matrices: tuple[str, ...]
    sections: tuple[Section, ...]
    shapes: dict[str, tuple[int, ...]]

    @property
    def sizes(self) -> list[int]:
        return [_size(shape) for shape in self.shapes.values()]


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


class _Planner:
    """A builder of plans: it collects layers and sections one by one."""

    def __init__(self, config: StageConfig) -> None:
        self.shapes = _shapes(config)
        self.instruments = config.instruments
        self.layers: list[str] = []
        self.matrices: list[str] = []
        self.sections: list[Section] = []
        self.rows = 0
        ends = itertools.accumulate(_size(shape) for shape in self.shapes.values())
        self.places = {name: end - _size(shape) for (name, shape), end in zip(self.shapes.items(), ends, strict=True)}

    def place(self, name: str, block: int | None, row: int = 0) -> tuple[int, int]:
        """Return where a weight starts in the buffer of all generated weights, and the stride between instruments, both in
        elements.

        Args:
            name: a name of :func:`_shapes`.
            block: number of the block to which the weight belongs; None if it belongs to no block.
            row: the row of the weight at which to start.
        """
        shape = self.shapes[name] if block is None else self.shapes[name][1:]
        stride = _size(shape[1:])
        return self.places[name] + (block or 0) * self.instruments * stride + row * _size(shape[2:]), stride

    def add(self, layer: str, matrix: str, rows: int, *targets: tuple[int, int]) -> None:
        """Add a matrix that has ``rows`` rows for each target, a pair (place, stride).

        Add ``layer``, too, unless it is the layer that was added last.
        """
        if not self.layers or self.layers[-1] != layer:
            self.layers.append(layer)
        self.matrices.append(f"{layer}.{matrix}")
        for place, stride in targets:
            self.sections.append(Section(len(self.layers) - 1, self.rows, rows, place, stride))
            self.rows += rows

    def norm(self, layer: str, name: str, block: int | None = None) -> None:
        channels = self.shapes[f"{name}.gamma"][-1]
        self.add(layer, "affine", channels, self.place(f"{name}.gamma", block), self.place(f"{name}.beta", block))

    def convolution(self, layer: str, name: str, block: int | None = None, row: int = 0, rows: int = 0) -> None:
        shape = self.shapes[name]
        self.add(layer, "kernel", (rows or shape[-2]) * shape[-1], self.place(name, block, row))
        if name == "out" and "bias" in self.shapes:
            self.add(layer, "bias", rows, self.place("bias", block, row))


@functools.lru_cache(maxsize=16)
def _plan(config: StageConfig) -> _Plan:
    planner, last = _Planner(config), len(config.dilations) - 1
    for i in (1, 2, 3, 4):
        planner.norm(f"mask.norm_{i}", f"norm_{i}")
    planner.convolution("mask.in_conv", "in_conv")
    planner.convolution("mask.mask_output", "mask_output")
    for block in range(last + 1):
        name = f"mask.tcn.{block}"
        planner.convolution(f"{name}.conv1d", "conv1d", block)
        planner.convolution(f"{name}.dconv1d", "dconv1d", block)
        planner.norm(f"{name}.norm_1", "tcn.norm_1", block)
        planner.norm(f"{name}.norm_2", "tcn.norm_2", block)
        if block < last:
            planner.convolution(f"{name}.res_out", "out", block, 0, config.B)
        planner.convolution(f"{name}.skip_out", "out", block, config.B, config.B)
    return _Plan(tuple(planner.layers), tuple(planner.matrices), tuple(planner.sections), planner.shapes)


def _generated(config: StageConfig, p: Parameters) -> dict[str, Tensor]:
    plan = _plan(config)
    made = generated_parameters(
        p["instrument_embedding.weight"],
        [p[f"{name}.bottleneck.weight"] for name in plan.layers],
        [p[f"{name}.bottleneck.bias"] for name in plan.layers],
        [p[f"{name}.weight"] for name in plan.matrices],
        [p[f"{name}.bias"] for name in plan.matrices],
        plan.sections,
        sum(plan.sizes),
    )
    parts = made.split_with_sizes(plan.sizes)
    return {name: part.view(shape) for (name, shape), part in zip(plan.shapes.items(), parts, strict=True)}


def _independent(config: StageConfig, p: Parameters) -> dict[str, Tensor]:
    """Return the same weights as :func:`_generated`, for a stage without generated layers: its parameters, stacked."""
    shapes, count, b, instruments = _shapes(config), len(config.dilations), config.B, config.instruments
    named: dict[str, Tensor] = {}
    for i in (1, 2, 3, 4):
        for kind, parameter in (("gamma", "weight"), ("beta", "bias")):
            named[f"norm_{i}.{kind}"] = p[f"mask.norm_{i}.group_norm.{parameter}"].view(instruments, -1)
    for name in ("in_conv", "mask_output"):
        named[name] = p[f"mask.{name}.conv.weight"].reshape(shapes[name])
    for name in ("conv1d", "dconv1d"):
        stacked = torch.stack([p[f"mask.tcn.{block}.{name}.conv.weight"] for block in range(count)])
        named[name] = stacked.reshape(shapes[name])
    for i in (1, 2):
        for kind, parameter in (("gamma", "weight"), ("beta", "bias")):
            stacked = torch.stack([p[f"mask.tcn.{block}.norm_{i}.group_norm.{parameter}"] for block in range(count)])
            named[f"tcn.norm_{i}.{kind}"] = stacked.view(count, instruments, -1)
    for name, parameter in (("out", "weight"), ("bias", "bias")):
        if name not in shapes:
            continue
        rows = []
        for block in range(count):
            skip = p[f"mask.tcn.{block}.skip_out.conv.{parameter}"].view(instruments, b, -1)
            used = block < count - 1
            residual = (
                p[f"mask.tcn.{block}.res_out.conv.{parameter}"].view(instruments, b, -1)
                if used
                else torch.zeros_like(skip)
            )
            rows.append(torch.cat([residual, skip], dim=1))
        named[name] = torch.stack(rows).view(shapes[name])
    return named
