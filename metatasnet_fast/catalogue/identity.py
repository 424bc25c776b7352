"""The model and settings that a song is done for."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from ..separation import Separator
from ..separation.windows import WindowShape
from .settings import Identity, Settings

if TYPE_CHECKING:
    from ..model.methods import NetworkMethods

__all__ = ["identity_of", "model_checksum"]


def model_checksum(network: NetworkMethods) -> str:
    """SHA-256 of a network's configuration and weights, the same in whatever file they came."""
    digest = hashlib.sha256(json.dumps(network.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        data = value.detach().cpu().contiguous()
        digest.update(f"\0{name} {data.dtype} {tuple(data.shape)}\0".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identity_of(settings: Settings, separator: Separator, name: str) -> Identity:
    """What decides the outputs; ``name`` is what people call the model, and decides nothing."""
    window: WindowShape = separator.window
    return Identity(
        name,
        model_checksum(separator.network),
        {
            "mode": separator.mode,
            "window": [window.window, window.context, window.fade],
            "precision": separator.precision.value,
            "stems": {output: list(parts) for output, parts in settings.stems.items()},
            "format": settings.format,
            "subtype": settings.subtype,
            "mixture_consistency": settings.mixture_consistency,
        },
    )
