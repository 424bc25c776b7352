"""A part's share of the training loss: the shares of all parts of a batch add up to the loss of the whole batch.

The formulas are those of ``metatasnet_fast.reference.losses``, with two differences. Means divide by :class:`Totals` of the
whole batch. And the cosines are products of latents that were normalised once, instead of one pair of copies for each
of the six pairs of instruments.

Source: Samuel et al. 2020, section 2.4; original ``utility/loss.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..config import MetaTasNetConfig
from ..model.engine import Engine
from ..reference import si_sdr
from .parts import EPSILON, Part, Totals

__all__ = ["Dropout", "loss_share", "uses_neighbours"]


class Dropout:
    """The factors of a step's dropout: a function of seed, step and stage, whatever parts the batch is computed in."""

    def __init__(self, probability: float, seed: int, step: int) -> None:
        self.probability, self.seed, self.step = probability, seed, step

    def factors(self, stage: int, channels: int, part: Part, items: int) -> Tensor | None:
        """(n, 4, channels) for a part of a batch of ``items``; None without dropout."""
        if self.probability <= 0:
            return None
        (entropy,) = np.random.SeedSequence([self.seed, self.step, stage]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy) >> 1)
        draws = torch.rand(items, 4, channels, generator=generator)[part.first : part.first + len(part.items)]
        return (draws >= self.probability).to(part.items.sources[stage]) / (1 - self.probability)


def uses_neighbours(config: MetaTasNetConfig) -> bool:
    """Whether an item's loss depends on the item before it."""
    return config.similarity_loss_weight > 0


def loss_share(engine: Engine, part: Part, totals: Sequence[Totals], dropout: Dropout) -> tuple[Tensor, Tensor]:
    """A part's share in the loss, a scalar, and in the statistics, (4 * stages + 3,), as ``MultiTasNet.forward`` has them.

    Args:
        totals: of every stage.
    """
    config, backend = engine.config, engine.backend
    losses, stats = [], []
    partial: Tensor | None = None
    for index, (prepared, total) in enumerate(zip(engine.prepared, totals, strict=True)):
        sources, mask = part.items.sources[index], part.items.masks[index]
        mix = sources.sum(1)
        latent = backend.encode(prepared, mix)
        factors = dropout.factors(index, config.stage(index).N, part, total.items)
        partial = backend.mask(prepared, latent, partial, factors)
        estimate = backend.decode(prepared, partial.flatten(0, 1)).view(sources.shape).to(sources.dtype)
        sdr = (si_sdr(estimate, sources) * mask).sum((0, 2)) / total.sounding
        loss, reconstruction = -sdr.sum(), sdr.new_zeros(())
        if config.reconstruction_loss_weight > 0:
            again = backend.decode(prepared, latent).to(mix.dtype)
            reconstruction = si_sdr(again, mix).sum() / total.items
            loss = loss - config.reconstruction_loss_weight * reconstruction
        alike, similar = _cosines(engine, index, part, total)
        if config.dissimilarity_loss_weight > 0:
            loss = loss + config.dissimilarity_loss_weight * alike
        if config.similarity_loss_weight > 0:
            loss = loss - config.similarity_loss_weight * similar
        losses.append(loss)
        stats.append(sdr.detach())
        if index == config.stages_num - 1:
            stats.append(torch.stack([reconstruction, alike, similar]).detach())
    return torch.stack(losses).sum(), torch.cat(stats)


def _cosines(engine: Engine, index: int, part: Part, totals: Totals) -> tuple[Tensor, Tensor]:
    """Shares in the dissimilarity and the similarity of a stage; 0 for a term that is switched off."""
    config, sources, mask = engine.config, part.items.sources[index], part.items.masks[index]
    alike = similar = sources.new_zeros(())
    if config.similarity_loss_weight <= 0 and config.dissimilarity_loss_weight <= 0:
        return alike, similar
    before = part.before if uses_neighbours(config) else None
    if before is not None:
        sources = torch.cat([before.sources[index], sources])
        mask = torch.cat([before.masks[index], mask])
    latents = engine.backend.encode(engine.prepared[index], sources.flatten(0, 1)).unflatten(0, (-1, 4))
    directions = _directions(latents.transpose(2, 3), mask)
    own = directions if before is None else directions[1:]
    frames = directions.shape[2]
    if config.dissimilarity_loss_weight > 0:
        stems = own.abs().transpose(1, 2)
        products = (stems @ stems.transpose(2, 3)).sum((0, 1))
        alike = torch.triu(products, diagonal=1).sum() / (totals.pairs * frames)
    if config.similarity_loss_weight > 0:
        previous = directions.roll(1, dims=0) if before is None else directions[:-1]
        similar = (own * previous).sum() / (totals.neighbours * frames)
    return alike, similar


def _directions(latents: Tensor, mask: Tensor) -> Tensor:
    """Latents (n, 4, frames, N) at unit length along N, 0 where the stem does not count; as ``cosine_similarity`` sees them."""
    masked = latents * mask[..., None]
    directions: Tensor = masked / torch.linalg.vector_norm(masked, dim=-1, keepdim=True).clamp(min=EPSILON)
    return directions
