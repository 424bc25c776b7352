"""Run the stages of a network through a backend: inference, and the loss, which is put together only here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..backends import Backend
from ..config import MetaTasNetConfig
from ..errors import ShapeError
from ..precision import Precision
from ..reference import LossWeights

__all__ = ["Dropout", "Engine", "check_mixes"]

Dropout: TypeAlias = Callable[[int, Tensor], Tensor | None]
"""Function of a stage's index and latent (b, N, T') that returns dropout factors (b, I, N), or None for no dropout."""


@dataclass(frozen=True)
class Engine:
    """A network ready to run: configuration, backend, and the weights that the backend prepared for each stage."""

    config: MetaTasNetConfig
    backend: Backend
    precision: Precision
    prepared: Sequence[Any]

    @classmethod
    def of(
        cls,
        config: MetaTasNetConfig,
        backend: Backend,
        precision: Precision,
        parameters: Sequence[Mapping[str, Tensor]],
    ) -> Engine:
        """Return an engine with the prepared parameters of every stage; differentiable if gradients are enabled."""
        prepared = [backend.prepare(config.stage(s), stage, precision) for s, stage in enumerate(parameters)]
        return cls(config, backend, precision, prepared)

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        """Separate one chunk.

        Args:
            mixes: (b, 1, T 2^s) for each stage ``s``; T is cut down to a multiple of ``W``.
            wanted: stages whose waveforms are to be decoded.

        Returns:
            (b, I, 1, T 2^s) for each wanted stage and I instruments, in the dtype of its mixture.
        """
        order = sorted(set(wanted))
        inputs = [mixes[index] for index in range(order[-1] + 1)]
        job = functools.partial(self._separated, order)
        return dict(zip(order, self.backend.repeat(self.prepared, job, tuple(order), inputs), strict=True))

    def _separated(self, wanted: Collection[int], *mixes: Tensor) -> tuple[Tensor, ...]:
        estimates: list[Tensor] = []
        partial: Tensor | None = None
        for index, (mix, prepared) in enumerate(zip(mixes, self.prepared, strict=False)):
            partial = self.backend.mask(prepared, self.backend.encode(prepared, mix), partial)
            if index in wanted:
                signal = self.backend.decode(prepared, partial.flatten(0, 1))
                estimates.append(signal.unflatten(0, partial.shape[:2]).to(mix.dtype))
        return tuple(estimates)

    def random_dropout(self, probability: float) -> Dropout | None:
        """Return a function that draws dropout factors from torch's default generator, one per (item, instrument,
        channel) in the order of Dropout2d; None for probability 0."""
        keep, instruments = 1 - probability, len(self.config.instruments)
        if keep == 1:
            return None
        return lambda stage, latent: (
            latent.new_empty(latent.shape[0], instruments, latent.shape[1]).bernoulli_(keep).div_(keep)
        )

    def loss(
        self,
        mixes: Sequence[Tensor],
        sources: Sequence[Tensor],
        masks: Sequence[Tensor],
        *,
        dropout: Dropout | None = None,
        divisors: Sequence[Tensor] | None = None,
        before: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, or a micro-batch's share of it: the shares of all micro-batches add up to the loss.

        Args:
            mixes: (b, 1, T 2^s) for each stage ``s``.
            sources: (b, I, 1, T 2^s) for each stage and I instruments.
            masks: (b, I, 1) for each stage, 1 where the source is not silent.
            dropout: for a stage and its latent, factors (b, I, N) on the masking network's input latent, or None.
            divisors: for each stage, ``loss_divisors`` of the whole batch's mask; by default of ``masks``.
            before: sources and masks, (1, I, 1, T 2^s) and (1, I, 1) for each stage, of the item before the first one, for the
                similarity loss; by default the last item, which is right for a whole batch.

        Returns:
            the loss summed over the stages, a scalar, and statistics, (I * stages + 3,), as in ``MultiTasNet.forward``.
        """
        losses, stats = [], []
        partial: Tensor | None = None
        weights = LossWeights.of(self.config)
        for index, (mix, source, mask) in enumerate(zip(mixes, sources, masks, strict=True)):
            backend, prepared = self.backend, self.prepared[index]
            latent = backend.encode(prepared, mix)
            latents, loss_mask = None, mask
            if weights.need_latents:
                compared = source
                if before is not None and weights.similarity > 0:
                    compared = torch.cat([before[0][index], source])
                    loss_mask = torch.cat([before[1][index], mask])
                latents = backend.encode(prepared, compared.flatten(0, 1))
                latents = latents.unflatten(0, compared.shape[:2]).transpose(2, 3)
            factors = None if dropout is None else dropout(index, latent)
            partial = backend.mask(prepared, latent, partial, factors)
            estimate = backend.decode(prepared, partial.flatten(0, 1)).view(source.shape).to(source.dtype)
            mix_estimate = backend.decode(prepared, latent).to(mix.dtype) if weights.reconstruction > 0 else None
            loss, stage_stats = backend.stage_loss(
                estimate, source, loss_mask, latents, mix_estimate, mix, weights, divisors[index] if divisors else None
            )
            losses.append(loss)
            stats.append(stage_stats)
        count = len(self.config.instruments)
        return torch.stack(losses).sum(), torch.cat([*(s[:count] for s in stats), stats[-1][count:]])


def check_mixes(config: MetaTasNetConfig, mixes: Sequence[Tensor], device: torch.device) -> None:
    """Raise :class:`ShapeError` unless there is one (b, 1, T 2^s) floating-point mixture for each stage on ``device``."""
    if not isinstance(mixes, (Sequence, Tensor)):
        raise ShapeError(f"Mixtures come as a list, one tensor for each stage, not as {type(mixes).__name__}.")
    strange = [type(mix).__name__ for mix in mixes if not isinstance(mix, Tensor)]
    if strange:
        raise ShapeError(f"Mixtures must be tensors, got {strange[0]}: convert it with torch.from_numpy.")
    if len(mixes) != config.stages_num:
        raise ShapeError(
            f"The network has {config.stages_num} stages and needs one mixture for each, got {len(mixes)}."
        )
    first = mixes[0].shape
    for index, mix in enumerate(mixes):
        if mix.dim() != 3 or mix.shape[1] != 1 or mix.shape[0] != first[0]:
            raise ShapeError(f"Mixture {index} must have shape (batch, 1, samples), got {tuple(mix.shape)}.")
        if mix.shape[-1] != first[-1] * 2**index:
            raise ShapeError(
                f"Mixture {index} must be {2**index} times as long as mixture 0 ({first[-1]} samples), got {mix.shape[-1]}."
            )
        if not mix.is_floating_point():
            raise ShapeError(f"Mixture {index} must be floating point, got {mix.dtype}.")
        if mix.device != device:
            raise ShapeError(f"Mixture {index} is on {mix.device}, the network on {device}: move one of them.")
