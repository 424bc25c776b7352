"""Running the stages of a network through a backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import Backend
from ..config import MetaTasNetConfig
from ..errors import ShapeError
from ..precision import Precision

__all__ = ["Engine", "collect_parameters"]


def collect_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, also those of a ``DataParallel`` replica, which are plain tensors there."""
    found: dict[str, Tensor] = {}
    for path, child in module.named_modules():
        own = getattr(child, "_former_parameters", None) or child._parameters
        found.update({f"{path}.{name}" if path else name: p for name, p in own.items() if p is not None})
    return found


@dataclass(frozen=True)
class Engine:
    """A network ready to run: its configuration, a backend, and what that prepared for each stage."""

    config: MetaTasNetConfig
    backend: Backend
    precision: Precision
    prepared: Sequence[Any]

    def separate(self, mixes: Sequence[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
        """Separate one chunk.

        Args:
            mixes: (b, 1, T 2^s) for each stage ``s``, T a multiple of ``W`` or cut down to one.
            wanted: stages whose waveforms are to be decoded.

        Returns:
            (b, 4, 1, T 2^s) for each wanted stage, in the dtype of its mixture.
        """
        estimates: dict[int, Tensor] = {}
        partial: Tensor | None = None
        for index in range(max(wanted) + 1):
            mix, prepared = mixes[index], self.prepared[index]
            partial = self.backend.mask(prepared, self.backend.encode(prepared, mix), partial)
            if index in wanted:
                signal = self.backend.decode(prepared, partial.flatten(0, 1))
                estimates[index] = signal.view(mix.shape[0], 4, 1, signal.shape[-1]).to(mix.dtype)
        return estimates

    def loss(
        self, mixes: Sequence[Tensor], sources: Sequence[Tensor], masks: Sequence[Tensor], dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Loss summed over the stages, a scalar, and statistics, (4 * stages + 3,). Shapes as in ``MultiTasNet.forward``."""
        losses, stats = [], []
        partial: Tensor | None = None
        for index, (mix, source, sounds) in enumerate(zip(mixes, sources, masks, strict=True)):
            loss, stage_stats, partial = self._stage_loss(index, mix, source, sounds, partial, dropout)
            losses.append(loss)
            stats.append(stage_stats)
        return torch.stack(losses).sum(), torch.cat([*(s[:4] for s in stats), stats[-1][4:]])

    def _stage_loss(
        self, index: int, mix: Tensor, source: Tensor, sounds: Tensor, partial: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, backend, prepared = self.config, self.backend, self.prepared[index]
        batch, channels = mix.shape[0], config.stage(index).N
        latent = backend.encode(prepared, mix)
        latents = None
        if config.similarity_loss_weight > 0 or config.dissimilarity_loss_weight > 0:
            latents = backend.encode(prepared, source.flatten(0, 1)).unflatten(0, (batch, 4)).transpose(2, 3)
        factors = None
        if dropout > 0:
            # One draw per (item, instrument, channel), in the order in which Dropout2d draws.
            factors = latent.new_empty(batch, 4, channels).bernoulli_(1 - dropout).div_(1 - dropout)
        separated = backend.mask(prepared, latent, partial, factors)
        estimate = backend.decode(prepared, separated.flatten(0, 1)).view(source.shape).to(source.dtype)
        mix_estimate = None
        if config.reconstruction_loss_weight > 0:
            mix_estimate = backend.decode(prepared, latent).to(mix.dtype)
        loss, stats = backend.stage_loss(
            estimate,
            source,
            sounds,
            latents,
            mix_estimate,
            mix,
            config.similarity_loss_weight,
            config.dissimilarity_loss_weight,
            config.reconstruction_loss_weight,
        )
        return loss, stats, separated


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
