"""Score a separation against the true stems: by BSSEval v4, with museval's numbers and files, and by newer metrics.

    run = score("references", "estimates")                                  # folders, MUSDB18, files: see .tracks
    print(score_table(run.scores))
    scores = evaluate_track(references, estimates, name="Artist - Title")   # stem name -> (samples, channels)
    scores.write("results")                                                 # results/test/Artist - Title.json

:func:`bss_eval` scores plain arrays. Only plots (matplotlib), Parquet (pyarrow) and log-WMSE need another package.
"""

from __future__ import annotations

from ..errors import EvaluationError, SilentSourceError
from .bss_eval import METRICS, BssScores, EmptyBand, EmptyBandWarning, SilentSourceWarning, bss_eval
from .runner import ScoringRun, TrackOutcome, score
from .scores import Comparison, Summary, TrackScores, compare, load_scores, summarise
from .table import PUBLISHED, caveats, comparison_table, latex_table, plot_scores, score_rows, score_table, write_rows
from .track import ALL_METRICS, DEFAULT_METRICS, Scoring, evaluate_track

__all__ = [
    "ALL_METRICS", "DEFAULT_METRICS", "METRICS", "PUBLISHED", "BssScores", "Comparison", "EmptyBand", "EmptyBandWarning",
    "EvaluationError", "Scoring", "ScoringRun", "SilentSourceError", "SilentSourceWarning", "Summary",
    "TrackOutcome", "TrackScores", "bss_eval", "caveats", "compare", "comparison_table", "evaluate_track", "latex_table",
    "load_scores", "plot_scores", "score", "score_rows", "score_table", "summarise", "write_rows",
]  # fmt: skip
