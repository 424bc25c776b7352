"""Run the stages of a network on a backend: separate, and compute the loss. The loss is put together only here."""

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
"""Function of a stage's index and its latent (b, N, T'); it returns dropout factors (b, I, N), or None for no
dropout."""


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
        """Prepare the parameters of every stage, and return the engine with these.

        If gradients are enabled, they flow back to ``parameters``, which has the parameters of each stage by name.
        """
        prepared = [backend.prepare(config.stage(s), stage, precision) for s, stage in enumerate(parameters)]
        return cls(config, backend, precision, prepared)

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        """Separate one chunk.

        Args:
            mixes: (b, 1, T 2^s) for each stage ``s``; T is cut down to a multiple of ``W``.
            wanted: stages whose waveforms are to be decoded.

        Returns:
            the estimates of the I instruments by wanted stage, (b, I, 1, T 2^s), in the dtype of the stage's mixture.
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
        """Return a function that draws dropout factors from torch's default generator; None for probability 0.

        It draws one factor for each item, instrument and channel, in the order of ``torch.nn.Dropout2d``.
        """
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
        """Return the loss of a batch, or the share that a micro-batch has in it. All shares add up to the batch's loss.

        Args:
            mixes: (b, 1, T 2^s) for each stage ``s``.
            sources: (b, I, 1, T 2^s) for each stage, of the I instruments.
            masks: (b, I, 1) for each stage, 1 where the source is not silent, else 0.
            dropout: function that returns the factors for the latent that goes into a stage's masking network; None for
                no dropout.
            divisors: for each stage, ``loss_divisors`` of the whole batch's mask; by default those of ``masks``.
            before: for the similarity loss, the sources (1, I, 1, T 2^s) and the masks (1, I, 1) for each stage of the
                item before the first one. By default this is the last item, which is right for a whole batch.

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
