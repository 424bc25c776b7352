"""How well a separation matches the true stems: BSSEval v4, in museval's numbers and museval's files.

    scores = evaluate_track(references, estimates, name="Artist - Title")   # stem name -> (samples, channels)
    scores.write("results")                                                 # results/test/Artist - Title.json
    print(score_table(load_scores("results")))

:func:`bss_eval` scores plain arrays; ``metrics=("SDR",)`` is what to use during training. Everything but
:func:`plot_scores` (matplotlib) needs nothing but torch and NumPy, and no network.
"""

from __future__ import annotations

from .bss_eval import METRICS, BssScores, bss_eval
from .plots import plot_scores
from .scores import Median, TrackScores, aggregate, load_scores
from .signals import EvaluationError, SilentSource, SilentSourceError, SilentSourceWarning
from .table import PUBLISHED, caveats, score_table
from .track import evaluate_track

__all__ = [
    "METRICS",
    "PUBLISHED",
    "BssScores",
    "EvaluationError",
    "Median",
    "SilentSource",
    "SilentSourceError",
    "SilentSourceWarning",
    "TrackScores",
    "aggregate",
    "bss_eval",
    "caveats",
    "evaluate_track",
    "load_scores",
    "plot_scores",
    "score_table",
]
