"""The backend ``triton``: training and inference in fused Triton kernels, on NVIDIA and AMD GPUs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .. import ops, reference
from ..config import StageConfig
from ..ops import codec
from ..ops.operator import interpreted
from ..precision import Precision
from ..reference import generator
from .base import Request
from .gpu import compiler_reason, no_gpu_reason
from .graphs import GraphedBackend, Graphs, switched_on
from .triton_weights import MaskWeights, mask_weights

__all__ = ["TritonBackend"]

Method = TypeVar("Method", bound=Callable[..., Any])


def _exactly(method: Method) -> Method:
    """Run a method without autocast, which would round the results of PyTorch's operations in the method."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **named: Any) -> Any:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return method(self, *args, **named)

    return cast(Method, run)


@dataclass(frozen=True)
class _Prepared:
    config: StageConfig
    precision: Precision
    encoder: codec.EncoderOperands
    decoder: codec.DecoderOperands
    masking: MaskWeights
    graphs: Graphs | None
    """Graphs of the whole network's inference jobs, kept with the first stage; None on a CPU, or if graphs are switched off."""

    @property
    def tf32(self) -> bool:
        return self.precision is Precision.tf32


class TritonBackend(GraphedBackend):
    """Triton kernels: every job is a few differentiable operations of :mod:`metatasnet_fast.ops`; see ``docs/triton.md``.

    Latents are stored frames by channels in the precision's dtype; statistics, sums and the softmax are float32. Results have
    the same bits in every run and do not depend on the other items of the batch.
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

    @_exactly
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

    @_exactly
    def encode(self, prepared: _Prepared, signal: Tensor) -> Tensor:
        return codec.encode(prepared.encoder, signal)

    @_exactly
    def mask(
        self, prepared: _Prepared, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        x, v = _checked(prepared.config, latent, partial, prepared.precision.storage)
        own = None if dropout is None else x[:, None] * dropout[:, :, None].to(x.dtype)
        return _masked(prepared.config, prepared.masking, prepared.tf32, x, v, own).transpose(2, 3)

    @_exactly
    def decode(self, prepared: _Prepared, latent: Tensor) -> Tensor:
        return codec.decode(prepared.decoder, latent)

    @_exactly
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
        """Compute the fused losses; use PyTorch's operations if the data need gradients, are float64, or have no items."""
        data = any(value.requires_grad for value in (target, mask, mix))
        plain = data or estimate.numel() == 0 or estimate.dtype == torch.float64
        loss = reference.stage_loss if plain else ops.stage_loss
        return loss(estimate, target, mask, latents, mix_estimate, mix, weights, divisors)


def _masked(
    config: StageConfig, w: MaskWeights, tf32: bool, x: Tensor, v: Tensor | None, own: Tensor | None = None
) -> Tensor:
    """Return masked latents (n, I, frames, N) of the latent ``x`` (n, frames, N).

    ``v`` (n, I, frames, N / 2) is the masked latent of the previous stage. ``own`` (n, I, frames, N) are the masking network's
    copies of the latent, if they differ from ``x`` (dropout).
    """
    prelu_1, prelu_2, prelu_3, prelu_4 = w.slopes
    y, statistics = ops.in_conv(
        x[:, None] if own is None else own, v, w.in_conv, prelu_1, *w.norm_1, prelu_2, tf32=tf32
    )
    norm = ops.GroupNorm(statistics, *w.norm_2)
    # Without gradients, `blocks` applies the first norm and returns the activation, and mask_output's result is not stored.
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
    """Check both latents; return them frames by channels, in ``dtype``."""
    config.check_latent(latent.shape)
    config.check_partial(None if partial is None else partial.shape, latent.shape)
    return latent.to(dtype).transpose(1, 2), None if partial is None else partial.to(dtype).transpose(2, 3)
