"""Training: the authors' optimiser and learning-rate schedule."""

from .ranger import Ranger
from .schedule import SGDR

__all__ = ["SGDR", "Ranger"]
