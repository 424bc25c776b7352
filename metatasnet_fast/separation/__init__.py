"""Separate whole recordings with a network: any length, sample rate and number of channels."""

from .result import Progress, Separation, two_stems
from .separator import Separator

__all__ = ["Progress", "Separation", "Separator", "two_stems"]
