"""Separate whole recordings with a network: any length and sample rate, up to 64 channels."""

from .result import Progress, Separation, two_stems
from .separator import Separator

__all__ = ["Progress", "Separation", "Separator", "two_stems"]
