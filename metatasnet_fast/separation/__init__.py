"""Separating whole recordings with a network: any length, sample rate and number of channels."""

from .progress import Progress
from .result import Separation, two_stems
from .separator import Separator

__all__ = ["Progress", "Separation", "Separator", "two_stems"]
