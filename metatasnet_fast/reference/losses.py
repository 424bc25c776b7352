"""The training losses of one stage.

Source: Samuel et al. 2020, section 2.4; original ``utility/loss.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dissimilarity", "masked_mean", "si_sdr", "similarity", "stage_loss"]

EPSILON = 1e-8


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio over the last axis, in dB; no mean is removed.

    ``a = <s, e> / (|s|^2 + 1e-8)``; ``10 (log10 max(|a s|^2, 1e-8) - log10 max(|e - a s|^2, 1e-8))``.
    """
    scale = (target * estimate).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + EPSILON)
    projection = scale * target
    power = projection.square().sum(-1).clamp(min=EPSILON)
    residual = (estimate - projection).square().sum(-1).clamp(min=EPSILON)
    return 10 * (torch.log10(power) - torch.log10(residual))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the items in which the source sounds: (b, 4, 1) and (b, 4, 1) to (4,)."""
    return (values * mask).sum(dim=(0, -1)) / mask.sum(dim=(0, -1)).clamp(min=EPSILON)


def dissimilarity(latents: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarity of the absolute latents of each of the six instrument pairs.

    Args:
        latents: (4, b, frames, N), already multiplied by the mask.
        mask: (b, 4), 1 where the source sounds.

    Returns:
        a scalar: summed over pairs and items, divided by the number of pairs in which both sound, mean over frames.
    """
    first, second = torch.triu_indices(4, 4, offset=1, device=latents.device)
    count = (mask[:, first] * mask[:, second]).sum() + EPSILON
    cosine = F.cosine_similarity(latents[first].abs(), latents[second].abs(), dim=-1)
    return (cosine.sum(dim=(0, 1)) / count).mean()


def similarity(latents: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarity of each source's latent and that of the item before it in the batch; shapes as above."""
    count = (mask * mask.roll(1, dims=0)).sum().clamp(min=EPSILON)
    cosine = F.cosine_similarity(latents, latents.roll(1, dims=1), dim=-1)
    return (cosine.sum(dim=(0, 1)) / count).mean()


def stage_loss(
    estimate: Tensor,
    target: Tensor,
    mask: Tensor,
    latents: Tensor | None,
    mix_estimate: Tensor | None,
    mix: Tensor,
    similarity_weight: float,
    dissimilarity_weight: float,
    reconstruction_weight: float,
) -> tuple[Tensor, Tensor]:
    """Loss and statistics of one stage.

    Args:
        estimate, target: (b, 4, 1, T).
        mask: (b, 4, 1), 1 where the source sounds.
        latents: (b, 4, frames, N), the encoded sources; may be None if both cosine weights are 0 or less.
        mix_estimate, mix: (b, 1, T), ``decoder(encoder(mix))`` and the mix; the former may be None if its weight is off.
        similarity_weight, dissimilarity_weight, reconstruction_weight: a weight of 0 or less switches its term off.

    Returns:
        the loss, a scalar, and (7,): four SI-SDR in dB, reconstruction SI-SDR in dB, dissimilarity, similarity.
    """
    sdr = masked_mean(si_sdr(estimate, target), mask)
    loss = -sdr.sum()
    stats = [sdr, sdr.new_zeros(1), sdr.new_zeros(1), sdr.new_zeros(1)]
    if reconstruction_weight > 0:
        assert mix_estimate is not None
        reconstruction = si_sdr(mix_estimate, mix).mean()
        loss = loss - reconstruction_weight * reconstruction
        stats[1] = reconstruction.reshape(1)
    if similarity_weight > 0 or dissimilarity_weight > 0:
        assert latents is not None
        sounds = mask.squeeze(-1)
        by_source = (latents * sounds[..., None, None]).transpose(0, 1)
        if dissimilarity_weight > 0:
            value = dissimilarity(by_source, sounds)
            loss = loss + dissimilarity_weight * value
            stats[2] = value.reshape(1)
        if similarity_weight > 0:
            value = similarity(by_source, sounds)
            loss = loss - similarity_weight * value
            stats[3] = value.reshape(1)
    return loss, torch.cat(stats)
