"""Save memory in training: a backend that keeps only the inputs of its jobs, and computes each job again in backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..backends import Backend, Request
from ..config import StageConfig
from ..precision import Precision

__all__ = ["Recomputing"]


class Recomputing(Backend):
    """Wraps another backend, with one more forward pass in each step: about a third more time.

    Between forward and backward nothing is kept but latents and waveforms; in backward, the activations of one job at a time.
    """

    name = "recomputing"
    summary = "another backend, its forward pass computed again in backward"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def unavailable(self) -> str | None:
        return self._backend.unavailable()

    def supports(self, request: Request) -> str | None:
        return self._backend.supports(request)

    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> Any:
        return self._backend.prepare(config, parameters, precision)

    def encode(self, prepared: Any, signal: Tensor) -> Tensor:
        return _recomputed(self._backend.encode, prepared, signal)

    def mask(self, prepared: Any, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None) -> Tensor:
        return _recomputed(self._backend.mask, prepared, latent, partial, dropout)

    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        return _recomputed(self._backend.decode, prepared, latent)

    def stage_loss(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self._backend.stage_loss(*arguments)


def _recomputed(job: Callable[..., Tensor], *arguments: Any) -> Tensor:
    # No job draws random numbers, so there is no state of a generator to keep.
    result: Tensor = checkpoint(job, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
