"""Meta-TasNet's training step for one CPU core: the arithmetic of `MultiTasNet.forward` without the cosine losses, faster.

Three things make it so. Activations are (4, n, frames, channels), so every pointwise convolution is one batched matrix
product, in bfloat16 if asked for (master weights, encoder, losses and sums stay float32). What lies between the products is
one C++ function per block (`elementwise.cpp`) that works in the cache. And nothing that no loss reads is computed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils.cpp_extension import load

from metatasnet_fast.config import StageConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.reference.generator import generate
from metatasnet_fast.reference.losses import si_sdr
from metatasnet_fast.reference.weights import BlockWeights, Convolution, MaskingWeights

from .codec import decode, encode, parameters

__all__ = ["bright", "separate", "step_loss"]


@cache
def elementwise() -> Any:
    """The compiled functions; the first call compiles them (half a minute)."""
    flags = ["-O3", "-march=native", "-ffast-math", "-std=c++20", "-Wno-unknown-pragmas"]
    os.environ.setdefault("MAX_JOBS", "1")
    return load("metatasnet_recipe_elementwise", [str(Path(__file__).with_name("elementwise.cpp"))], extra_cflags=flags)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(4, n, T, in) times (4, in, out)."""
    _, n, frames, width = x.shape
    return torch.bmm(x.view(4, n * frames, width), weight).view(4, n, frames, -1)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """(4, in, out) of (4, n, T, in) and (4, n, T, out): the gradient of a product's weight."""
    return torch.bmm(x.flatten(1, 2).transpose(1, 2), y.flatten(1, 2)).float()


class Norm(Function):
    """Group norm of PReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        gamma, beta = gamma.contiguous(), beta.contiguous()
        y, mean, rstd = elementwise().norm_forward(x, slope.item(), gamma, beta)
        ctx.save_for_backward(x, slope, gamma, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, slope, gamma, mean, rstd = ctx.saved_tensors
        dx, dslope, dgamma, dbeta = elementwise().norm_backward(dy.contiguous(), x, slope.item(), gamma, mean, rstd)
        return dx, dslope.sum().reshape(1), dgamma.sum(1), dbeta.sum(1)


class Blocks(Function):
    """The sum of the skip outputs of all blocks; ten weights for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dilations: tuple[int, ...], *weights: Tensor) -> Tensor:
        width, last = x.shape[-1], len(dilations) - 1
        saved, skips = [], torch.zeros_like(x)
        for index, dilation in enumerate(dilations):
            w_in, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, w_out = weights[9 * index : 9 * index + 9]
            w_in, w_out = w_in.to(x.dtype), w_out.to(x.dtype)
            u = product(x, w_in)
            m, v, *moments = elementwise().block_forward(
                u, slope_1.item(), gamma_1, beta_1, taps, dilation, slope_2.item(), gamma_2, beta_2
            )
            saved += [x, u, v, m, w_in, w_out, *moments]
            out = product(m, w_out)
            skips += out[..., -width:]
            if index < last:
                x = x + out[..., :width]
        ctx.save_for_backward(*saved, *weights)
        ctx.dilations = dilations
        return skips

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dilations, count = ctx.dilations, len(ctx.dilations)
        saved, weights = ctx.saved_tensors[: 10 * count], ctx.saved_tensors[10 * count :]
        width = grad.shape[-1]
        # The gradient of every block's output: that of the stream before it, and that of the skips, the same for all.
        both = torch.cat([torch.zeros_like(grad), grad], dim=-1)
        grads: list[Tensor | None] = [None] * (9 * count)
        for index in reversed(range(count)):
            x, u, v, m, w_in, w_out, mean_1, rstd_1, mean_2, rstd_2 = saved[10 * index : 10 * index + 10]
            _, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, _, _ = weights[9 * index : 9 * index + 9]
            dout = both if index < count - 1 else grad.contiguous()
            dm = product(dout, w_out.transpose(1, 2))
            dw_out = outer(m, dout)
            du, dslope_1, dgamma_1, dbeta_1, dtaps, dslope_2, dgamma_2, dbeta_2 = elementwise().block_backward(
                *(dm, u, v, slope_1.item(), gamma_1, beta_1, mean_1, rstd_1, taps, dilations[index]),
                *(slope_2.item(), gamma_2, mean_2, rstd_2),
            )
            both[..., :width] += product(du, w_in.transpose(1, 2))
            small = (dslope_1.sum().reshape(1), dgamma_1.sum(1), dbeta_1.sum(1), dtaps.sum(1).view(taps.shape))
            more = (dslope_2.sum().reshape(1), dgamma_2.sum(1), dbeta_2.sum(1))
            grads[9 * index : 9 * index + 9] = [outer(x, du), *small, *more, dw_out]
        return both[..., :width].contiguous(), None, *grads


class Masking(Function):
    """Softmax over the instruments, times the mixture's latent."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, latent: Tensor) -> Tensor:
        ctx.save_for_backward(z, latent)
        masked: Tensor = elementwise().mask_forward(z, latent)
        return masked

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        dz, dlatent = elementwise().mask_backward(grad.contiguous(), *ctx.saved_tensors)
        return dz, dlatent


def matrix(convolution: Convolution) -> Tensor:
    """(4, in, out)."""
    return convolution.weight[..., 0].transpose(1, 2)


def block_arguments(block: BlockWeights) -> list[Tensor]:
    """The nine weights of a block that `Blocks` takes."""
    out = matrix(block.skip_out)
    if block.res_out is not None:
        out = torch.cat([matrix(block.res_out), out], dim=2)
    norm_1 = [block.norm_1.scale.contiguous(), block.norm_1.shift.contiguous()]
    norm_2 = [block.norm_2.scale.contiguous(), block.norm_2.shift.contiguous()]
    taps = block.dconv1d.weight[:, :, 0].transpose(1, 2).contiguous()
    return [matrix(block.conv1d), block.prelu_1, *norm_1, taps, block.prelu_2, *norm_2, out]


class Product(Function):
    """`product` with the weight in the activations' dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rounded = weight.to(x.dtype)
        ctx.save_for_backward(x, rounded)
        return product(x, rounded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        return product(grad, weight.transpose(1, 2)), outer(x, grad)


def masking_network(weights: MaskingWeights, config: StageConfig, x: Tensor) -> Tensor:
    """What the softmax takes: (4, n, T, N) of (4, n, T, in)."""

    def norm(y: Tensor, slope: Tensor, affine: Any) -> Tensor:
        result: Tensor = Norm.apply(y, slope, affine.scale, affine.shift)
        return result

    x = Product.apply(norm(x, weights.prelu_1, weights.norm_1), matrix(weights.in_conv))
    x = norm(x, weights.prelu_2, weights.norm_2)
    arguments = [w for block in weights.blocks for w in block_arguments(block)]
    skips = Blocks.apply(x, config.dilations, *arguments)
    x = Product.apply(norm(skips, weights.prelu_3, weights.norm_3), matrix(weights.mask_output))
    return norm(x, weights.prelu_4, weights.norm_4)


def separate(network: MultiTasNet, mixes: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Estimates (4, n, T) of every stage, float32, of mixtures (n, T)."""
    partial, estimates = None, []
    for index, (mix, values) in enumerate(zip(mixes, parameters(network), strict=True)):
        config = network.config.stage(index)
        weights = generate(config, values)
        latent = encode(weights.encoder, config, mix).to(dtype)
        x = latent[None].expand(4, -1, -1, -1)
        x = x.contiguous() if partial is None else torch.cat([x, partial], dim=-1)
        partial = Masking.apply(masking_network(weights.masking, config, x), latent)
        estimates.append(decode(weights.decoder, config, partial.flatten(0, 1)).unflatten(0, (4, -1)))
    return estimates


def bright(signal: Tensor, rate: int) -> Tensor:
    """Zero-phase high-pass f^2 / (f^2 + (2 kHz)^2). Music holds most of its energy below: plain SI-SDR lets a network, its
    encoder and decoder first, leave out what makes a stem sound bright."""
    square = torch.fft.rfftfreq(signal.shape[-1], 1 / rate).square()
    return torch.fft.irfft(torch.fft.rfft(signal) * (square / (square + 2000.0**2)), n=signal.shape[-1])


def sounding(sources: Tensor) -> Tensor:
    """(4, n), 1 where a stem and the rest each hold at least 1% of the energy of their sum: (4, n, T)."""
    power = sources.square().mean(-1)
    rest = (sources.sum(0) - sources).square().mean(-1)
    return ((power > 1e-2 * (power + rest)) & (rest > 1e-2 * (power + rest)) & (power > 1e-8)).float()


def step_loss(
    network: MultiTasNet,
    mixes: Sequence[Tensor],
    sources: Sequence[Tensor],
    counts: Tensor,
    dtype: torch.dtype,
    stem_weights: Tensor,
    stage_weights: Tensor,
    emphasis: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The training loss, and the stages' SI-SDR in dB, (stages, 4), over the stems that count (nan where none does).

    Args:
        mixes: (n, T_s) for each stage.
        sources: (4, n, T_s) for each stage.
        counts: (4, n), 1 where a stem of an item counts.
        stem_weights, stage_weights: (4,) and (stages,), factors of the loss; all 1 in the authors' loss.
        emphasis: share of the loss that hears high frequencies (see :func:`bright`), for the stems that sound there; 0 in
            the authors' loss.
    """
    pairs = list(zip(separate(network, mixes, dtype), sources, strict=True))
    sdr = torch.stack([(si_sdr(e, s) * counts).sum(1) for e, s in pairs])
    number = counts.sum(1)
    heard = (1 - emphasis) * sdr / number.clamp(min=1.0)
    if emphasis > 0:
        for index, (found, expected) in enumerate(pairs):
            rate = network.config.stage(index).sampling_rate
            there = bright(expected, rate)
            both = counts * sounding(there)
            high = (si_sdr(bright(found, rate), there) * both).sum(1) / both.sum(1).clamp(min=1.0)
            heard = heard + emphasis * F.one_hot(torch.tensor(index), len(pairs))[:, None] * high
    loss = -(stage_weights[:, None] * stem_weights * heard).sum()
    return loss, (sdr / number).detach()
