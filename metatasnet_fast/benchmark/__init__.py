"""Measure this library on this machine, and check that its results are right here.

``metatasnet-fast bench`` and ``selftest`` use this package; ``bench/`` runs the same cases under pytest-benchmark.
"""

from .cases import EAGER, Case, Implementation, Participants
from .measure import Effort, checked, measure
from .results import Change, Row, compare, comparison_table, read_rows, text_table, write_rows
from .roofline import Peaks, measure_peaks
from .suite import SIZES, run

__all__ = [
    "EAGER", "SIZES", "Case", "Peaks", "Change", "Implementation", "Effort", "Participants", "Row", "checked",
    "compare", "comparison_table", "measure", "measure_peaks", "read_rows", "run", "text_table", "write_rows",
]  # fmt: skip
