"""Compute the training losses of one stage.

Source: Samuel et al. 2020, section 2.4; original ``utility/loss.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import MetaTasNetConfig

__all__ = ["LossWeights", "loss_divisors", "si_sdr", "stage_loss"]

EPSILON = 1e-8


class LossWeights(NamedTuple):
    """The weights of all loss terms except the SI-SDR of the estimates. A weight of 0 or less switches its term off."""

    similarity: float
    dissimilarity: float
    reconstruction: float

    @classmethod
    def of(cls, config: MetaTasNetConfig) -> LossWeights:
        """Return the weights in a configuration."""
        return cls(config.similarity_loss_weight, config.dissimilarity_loss_weight, config.reconstruction_loss_weight)

    @property
    def need_latents(self) -> bool:
        """Return whether a term compares the encoded sources."""
        return self.similarity > 0 or self.dissimilarity > 0


def loss_divisors(mask: Tensor) -> Tensor:
    """Return the divisors of a stage's means, from the mask of the whole batch.

    Args:
        mask: (items, I, 1), 1 where the source is not silent.

    Returns:
        (I + 3,). The first I divisors are, for each instrument, the number of items in which it is not silent. Then come
        the number of items; the number of pairs of instruments that are both not silent in one item; and the number of
        cases where an instrument is not silent in an item and in the item before it (the last item comes before the
        first). An epsilon makes each divisor except the number of items greater than zero.
    """
    sounds = mask.squeeze(-1) if mask.is_floating_point() else mask.squeeze(-1).float()
    items, instruments = sounds.shape
    first, second = torch.triu_indices(instruments, instruments, offset=1, device=mask.device)
    pairs = (sounds[:, first] * sounds[:, second]).sum() + EPSILON
    neighbours = (sounds * sounds.roll(1, dims=0)).sum().clamp(min=EPSILON)
    sounding = sounds.sum(0).clamp(min=EPSILON)
    return torch.cat([sounding, torch.stack([sounding.new_tensor(items), pairs, neighbours])])


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio over the last axis, in dB. No mean is removed.

    For an estimate e and a target s this is ``10 (log10 max(|a s|^2, 1e-8) - log10 max(|e - a s|^2, 1e-8))`` with
    ``a = <s, e> / (|s|^2 + 1e-8)``.
    """
    scale = (target * estimate).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + EPSILON)
    projection = scale * target
    power = projection.square().sum(-1).clamp(min=EPSILON)
    residual = (estimate - projection).square().sum(-1).clamp(min=EPSILON)
    return 10 * (torch.log10(power) - torch.log10(residual))


def _directions(latents: Tensor) -> Tensor:
    """Return the latents scaled to unit length along the last axis.

    The divisor is that of ``torch.nn.functional.cosine_similarity``.
    """
    norm: Tensor = torch.linalg.vector_norm(latents, dim=-1, keepdim=True)
    return latents / norm.clamp(min=EPSILON)


def _dissimilarity(directions: Tensor) -> Tensor:
    """Return the cosine similarities of absolute latents, summed over items and pairs of instruments: (frames,).

    ``directions`` (I, items, frames, N) are latents of unit length.
    """
    stems = directions.abs()
    pairs = [(stems[i] * stems[j]).sum(-1) for i in range(len(stems)) for j in range(i + 1, len(stems))]
    return torch.stack(pairs).sum(dim=(0, 1)) if pairs else stems.new_zeros(stems.shape[2])


def stage_loss(
    estimate: Tensor,
    target: Tensor,
    mask: Tensor,
    latents: Tensor | None,
    mix_estimate: Tensor | None,
    mix: Tensor,
    weights: LossWeights,
    divisors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return loss and statistics of one stage, for a whole batch or a micro-batch.

    The results for all parts of a batch add up to the loss and the statistics of the batch, if each part is given the divisors
    of the batch, and the item before the part's first one.

    Args:
        estimate, target: (b, I, 1, T), of I instruments.
        mask: (c + b, I, 1), 1 where the source is not silent, else 0. With c = 1, the first row is the item before the
            batch. With c = 0, the batch is whole, and its last item comes before its first.
        latents: (c + b, I, frames, N), the encoded sources; None if both cosine weights are 0 or less.
        mix_estimate, mix: (b, 1, T), ``decoder(encoder(mix))`` and the mix; ``mix_estimate`` is None if the weight of
            the reconstruction is 0 or less.
        weights: the weights of the loss terms.
        divisors: (I + 3,), from :func:`loss_divisors` of the whole batch's mask; by default of the mask of these b items.

    Returns:
        the loss, a scalar, and the statistics, (I + 3,): the SI-SDR of I instruments and of the reconstruction, in dB,
        the dissimilarity and the similarity.
    """
    instruments = estimate.shape[1]
    carried = len(mask) - len(estimate)
    if divisors is None:
        divisors = loss_divisors(mask[carried:])
    sdr = (si_sdr(estimate, target) * mask[carried:]).sum(dim=(0, -1)) / divisors[:instruments]
    loss = -sdr.sum()
    stats = [sdr, sdr.new_zeros(1), sdr.new_zeros(1), sdr.new_zeros(1)]
    items, pairs, neighbours = divisors[instruments:]
    if weights.reconstruction > 0:
        assert mix_estimate is not None
        reconstruction = si_sdr(mix_estimate, mix).sum() / items
        loss = loss - weights.reconstruction * reconstruction
        stats[1] = reconstruction.reshape(1)
    if weights.need_latents:
        assert latents is not None
        directions = _directions((latents * mask[..., None]).transpose(0, 1))
        own = directions[:, carried:]
        if weights.dissimilarity > 0:
            value = (_dissimilarity(own) / pairs).mean()
            loss = loss + weights.dissimilarity * value
            stats[2] = value.reshape(1)
        if weights.similarity > 0:
            previous = directions[:, :-1] if carried else own.roll(1, dims=1)
            value = ((own * previous).sum(-1).sum(dim=(0, 1)) / neighbours).mean()
            loss = loss - weights.similarity * value
            stats[3] = value.reshape(1)
    return loss, torch.cat(stats)
