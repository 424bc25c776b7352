"""Backends that would look fast, each by another lie, for the measurement to find out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metatasnet_fast.backends.reference import ReferenceBackend


class SlightlyWrong(ReferenceBackend):
    """Everything computed, and a thousandth too loud."""

    name = "slightly wrong"

    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        return 1.001 * super().decode(prepared, latent)


class Nothing(ReferenceBackend):
    """Zeros of the right shape."""

    name = "nothing"

    def encode(self, prepared: Any, signal: Tensor) -> Tensor:
        config = prepared.weights.config
        return signal.new_zeros(signal.shape[0], config.N, signal.shape[-1] // config.W)

    def mask(self, prepared: Any, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None) -> Tensor:
        return latent.new_zeros(latent.shape[0], 4, *latent.shape[1:])

    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        return latent.new_zeros(latent.shape[0], 1, latent.shape[-1] * prepared.weights.config.W)


class Remembering(ReferenceBackend):
    """Computes the first ``honest`` calls, then returns what it has: as a cache by address or shape would."""

    name = "remembering"

    def __init__(self, honest: int = 2) -> None:
        self.honest = honest
        self.calls = 0
        self._kept: dict[torch.Size, Tensor] = {}

    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= self.honest or latent.shape not in self._kept:
            self._kept[latent.shape] = super().decode(prepared, latent)
        return self._kept[latent.shape]


class Forgetful(ReferenceBackend):
    """Right forwards, and no gradient backwards but through the decoder."""

    name = "forgetful"

    def mask(self, prepared: Any, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None) -> Tensor:
        return super().mask(prepared, latent, partial, dropout).detach()


class Breaking(ReferenceBackend):
    """Raises where it should decode, after ``good`` calls that work."""

    name = "breaking"

    def __init__(self, good: int = 0) -> None:
        self.good = good

    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        self.good -= 1
        if self.good >= 0:
            return super().decode(prepared, latent)
        raise RuntimeError("no kernel image is available")
