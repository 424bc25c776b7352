"""Run the masking network: a temporal convolutional network for all instruments at once.

Activations are (n, instruments, channels, frames); the instruments are groups of one grouped convolution.

Source: Samuel et al. 2020, section 2; original ``model/mask_tcn.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import GROUPS, StageConfig
from .generator import BlockWeights, Convolution, MaskingWeights, Norm

__all__ = ["block", "depthwise", "group_norm", "instrument_masks", "mask", "masking_network", "pointwise"]

EPSILON = 1e-8
"""Added to the biased variance of every group."""


def pointwise(x: Tensor, weights: Convolution) -> Tensor:
    """Apply a 1x1 convolution per instrument: (n, instruments, in, frames) to (n, instruments, out, frames)."""
    instruments, out, channels, _ = weights.weight.shape
    y = F.conv1d(x.flatten(1, 2), weights.weight.reshape(instruments * out, channels, 1), groups=instruments)
    y = y.view(y.shape[0], instruments, out, -1)
    return y if weights.bias is None else y + weights.bias[:, :, None]


def depthwise(x: Tensor, weights: Convolution, dilation: int) -> Tensor:
    """Apply a dilated depthwise convolution of three taps, zero-padded to the same length: (n, instruments, H, frames)."""
    kernel = weights.weight.reshape(-1, 1, 3)
    y = F.conv1d(x.flatten(1, 2), kernel, padding=dilation, dilation=dilation, groups=len(kernel))
    return y.view(x.shape)


def group_norm(x: Tensor, weights: Norm) -> Tensor:
    """Apply a group norm with 8 groups per instrument over (channels of the group, frames), biased variance, eps 1e-8."""
    scale, shift = weights.scale.reshape(-1), weights.shift.reshape(-1)
    return F.group_norm(x.flatten(1, 2), x.shape[1] * GROUPS, scale, shift, EPSILON).view(x.shape)


def block(x: Tensor, weights: BlockWeights, dilation: int) -> tuple[Tensor | None, Tensor]:
    """Run one block; return the residual to add to ``x`` (None in the last block) and the skip output, both shaped as
    ``x``."""
    h = group_norm(F.prelu(pointwise(x, weights.conv1d), weights.prelu_1), weights.norm_1)
    h = group_norm(F.prelu(depthwise(h, weights.dconv1d, dilation), weights.prelu_2), weights.norm_2)
    residual = None if weights.res_out is None else pointwise(h, weights.res_out)
    return residual, pointwise(h, weights.skip_out)


def masking_network(weights: MaskingWeights, config: StageConfig, x: Tensor) -> Tensor:
    """Return the masks: a softmax over the first ``config.softmax`` instruments, a sigmoid for each other instrument.

    Args:
        x: (n, instruments, in channels, frames).

    Returns:
        (n, instruments, N, frames).
    """
    x = pointwise(group_norm(F.prelu(x, weights.prelu_1), weights.norm_1), weights.in_conv)
    x = group_norm(F.prelu(x, weights.prelu_2), weights.norm_2)
    skips: Tensor | None = None
    for block_weights, dilation in zip(weights.blocks, config.dilations, strict=True):
        residual, skip = block(x, block_weights, dilation)
        skips = skip if skips is None else skips + skip
        if residual is not None:
            x = x + residual
    assert skips is not None
    x = pointwise(group_norm(F.prelu(skips, weights.prelu_3), weights.norm_3), weights.mask_output)
    return instrument_masks(group_norm(F.prelu(x, weights.prelu_4), weights.norm_4), config.softmax)


def instrument_masks(x: Tensor, softmax: int) -> Tensor:
    """Apply a softmax over the first ``softmax`` rows of dimension 1, and a sigmoid to every other row."""
    if softmax == x.shape[1]:
        return F.softmax(x, dim=1)
    if softmax == 0:
        return torch.sigmoid(x)
    return torch.cat([F.softmax(x[:, :softmax], dim=1), torch.sigmoid(x[:, softmax:])], dim=1)


def mask(
    weights: MaskingWeights, config: StageConfig, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
) -> Tensor:
    """Return the latents of all instruments: the mixture's latent times the masks.

    Args:
        latent: (n, N, frames), the latent of the mixture.
        partial: (n, instruments, N / 2, frames), the masked latent of the previous stage; None in the first stage.
        dropout: (n, instruments, N), factors on the network's copy of the latent; None for no dropout.

    Returns:
        (n, instruments, N, frames).

    Raises:
        ShapeError: if ``partial`` does not fit the stage.
    """
    config.check_latent(latent.shape)
    config.check_partial(None if partial is None else partial.shape, latent.shape)
    if latent.shape[0] == 0:
        return latent.new_empty(0, config.instruments, config.N, latent.shape[-1])
    latents = latent[:, None].expand(-1, config.instruments, -1, -1)
    x = latents if dropout is None else latents * dropout[..., None]
    if partial is not None:
        x = torch.cat([x, partial], dim=2)
    return latents * masking_network(weights, config, x)
