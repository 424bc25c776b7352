"""The model and settings that a song is done for."""

from __future__ import annotations

from .._io import model_checksum
from ..separation import Separator
from ..separation.windows import WindowShape
from .settings import Identity, Settings

__all__ = ["identity_of"]


def identity_of(settings: Settings, separator: Separator, name: str) -> Identity:
    """What decides the outputs; ``name`` is what people call the model, and decides nothing."""
    window: WindowShape = separator.window
    return Identity(
        name,
        model_checksum(separator.network.config, separator.network.state_dict()),
        {
            "mode": separator.mode,
            "window": [window.window, window.context, window.fade],
            "precision": separator.precision.value,
            "stems": {output: list(parts) for output, parts in settings.recipe.items()},
            "format": settings.format,
            "subtype": settings.subtype,
            "mixture_consistency": settings.mixture_consistency,
        },
    )
