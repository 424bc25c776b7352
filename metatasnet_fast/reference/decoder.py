"""The decoder: a 1x1 expansion, then transposed filters of several lengths, summed.

Source: Samuel et al. 2020, section 2.3; original ``model/decoder.py``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..config import StageConfig
from .weights import DecoderWeights

__all__ = ["decode"]


def decode(weights: DecoderWeights, config: StageConfig, latent: Tensor) -> Tensor:
    """Decode a latent into its signal.

    Args:
        latent: (n, N, frames).

    Returns:
        (n, 1, frames * W).

    Raises:
        ShapeError: for a latent of another shape.
    """
    config.check_latent(latent.shape)
    if latent.shape[0] == 0:
        return latent.new_empty(0, 1, latent.shape[-1] * config.W)
    x = F.conv_transpose1d(latent, weights.bottleneck).relu()
    parts = x.split(config.decoder_widths, dim=1)
    signals = [
        F.conv_transpose1d(part, kernel, stride=config.W, padding=(kernel.shape[-1] - config.W) // 2)
        for part, kernel in zip(parts, weights.filters, strict=True)
    ]
    return sum(signals[1:], signals[0])
