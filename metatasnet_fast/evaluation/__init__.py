"""How well a separation matches the true stems: BSSEval v4, in museval's numbers and museval's files.

:func:`bss_eval` scores arrays. It needs nothing but torch and NumPy, and no network.
"""

from __future__ import annotations

from .bss_eval import METRICS, BssScores, bss_eval
from .signals import EvaluationError, SilentSource, SilentSourceError, SilentSourceWarning

__all__ = [
    "METRICS",
    "BssScores",
    "EvaluationError",
    "SilentSource",
    "SilentSourceError",
    "SilentSourceWarning",
    "bss_eval",
]
