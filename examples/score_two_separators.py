"""Score the stems of two separators, and say whether their difference could be chance.

python examples/score_two_separators.py references/ estimates_a/ estimates_b/
"""

import sys

from metatasnet_fast.evaluation import Scoring, compare, comparison_table, score, score_table

references, first, second = sys.argv[1:4]
runs = [score(references, estimates, Scoring(("SDR", "SI-SDR"))) for estimates in (first, second)]
for run in runs:
    print(score_table(run.scores))
print(comparison_table(compare(runs[0].scores, runs[1].scores), ("first", "second")))
