"""The model and settings that a song is done for."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .._io import model_checksum
from ..model import load_checkpoint
from ..model.methods import NetworkMethods
from ..precision import Precision
from ..separation.windows import default_shape
from .settings import Identity, Settings

__all__ = ["find_identity", "identity_of"]


def identity_of(settings: Settings, network: NetworkMethods, precision: Precision) -> Identity:
    """Return what decides the outputs; the name that people give the model decides nothing."""
    window = default_shape(network.config)
    return Identity(
        Path(settings.model).name if os.path.exists(settings.model) else settings.model,
        model_checksum(network.config, network.state_dict()),
        {
            "mode": "fast",
            "window": [window.window, window.context, window.fade],
            "precision": precision.value,
            "stems": {output: list(parts) for output, parts in settings.recipe.items()},
            "format": settings.format,
            "subtype": settings.subtype,
            "mixture_consistency": settings.mixture_consistency,
        },
    )


def find_identity(settings: Settings) -> Identity:
    """Load the model, and return what the outputs of these settings depend on, without taking hold of the device.

    Raises:
        MetaTasNetError: if the model cannot be loaded, or has no such stems.
        ConfigError: for an unknown precision.
    """
    network = load_checkpoint(settings.model, revision=settings.revision, offline=settings.offline)
    kind = settings.device.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    default = Precision.float32 if kind == "cpu" else Precision.bfloat16
    precision = default if settings.dtype == "auto" else Precision.parse(settings.dtype)
    return identity_of(settings.of_model(network.config.instruments), network, precision)
