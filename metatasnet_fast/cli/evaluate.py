"""``metatasnet-fast evaluate``: separate a data set and score it as the field does."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MetaTasNetError
from .engine import add_engine_options, make_separator

if TYPE_CHECKING:
    from ..evaluation.runner import EvaluationRun, TrackOutcome

__all__ = ["add_parser"]

EPILOG = """
Scores are BSSEval v4: medians over one-second frames, then over tracks. Each track's go to OUT/<subset>/<track>.json in
museval's format; the table, to OUT/scores.txt. A track that is scored already is kept; scores there of another model or of
other audio are refused. Tracks that fail are named, the rest is done. Scores of the 7-second excerpts of MUSDB18 are not
comparable with published ones, which are of full tracks.

exit codes: 0 all done; 2 the command cannot be carried out; 3 some tracks failed.

  metatasnet-fast evaluate --musdb MUSDB18 --model best_model.pt --mode reference
  metatasnet-fast evaluate --musdb MUSDB18 --metrics SDR
"""


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="separate MUSDB18 and score the stems",
        description="Separate MUSDB18 (or a folder laid out like it) and score the stems with BSSEval v4.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--musdb", required=True, metavar="PATH", help="the folder that holds train and test")
    parser.add_argument("--subset", default="test", help="test or train (default: test)")
    parser.add_argument("-o", "--out", default="scores", help="folder for the scores (default: scores)")
    parser.add_argument(
        "--engine", default="fast", help="fast, or museval: the original, for comparison (default: fast)"
    )
    parser.add_argument(
        "--metrics",
        default="SDR,ISR,SIR,SAR",
        metavar="A,B",
        help="of SDR,ISR,SIR,SAR; SDR alone is quickest (default: all)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, (os.cpu_count() or 2) // 2),
        help="tracks scored at once (default: half the cores)",
    )
    parser.add_argument("--plot", metavar="FILE", help="also draw boxplots into this image")
    parser.add_argument("--strict", action="store_true", help="stop at the first failure or silent stem")
    parser.add_argument("--overwrite", action="store_true", help="evaluate again what is scored already")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..evaluation import EvaluationError, plot_scores, score_table
    from ..evaluation.musdb18 import open_musdb
    from ..evaluation.runner import evaluate_tracks

    metrics = [metric.strip().upper() for metric in args.metrics.split(",")]
    if args.workers < 1:
        raise EvaluationError(f"--workers must be at least 1, got {args.workers}.")
    tracks = open_musdb(args.musdb, args.subset)
    separator, model = make_separator(args)
    print(f"{model}: {len(tracks)} tracks, {separator.describe()}, scored by {args.engine}", flush=True)
    result = evaluate_tracks(
        tracks,
        separator,
        args.out,
        subset=args.subset,
        engine=args.engine,
        metrics=metrics,
        workers=args.workers,
        strict=args.strict,
        overwrite=args.overwrite,
        report=_Printer(len(tracks)),
    )
    if result.scores:
        _write(score_table(result.scores, f"{model}, {args.mode} mode"), Path(args.out) / "scores.txt")
        if args.plot:
            print(f"plot: {plot_scores(result.scores, args.plot, title=model, metrics=metrics)}")
    return _conclude(result)


class _Printer:
    """One line for each track."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def __call__(self, outcome: TrackOutcome) -> None:
        self._done += 1
        place = f"[{self._done}/{self._total}] {outcome.name}"
        if outcome.status == "failed":
            print(f"metatasnet-fast: error: {outcome.name}: {outcome.error}", file=sys.stderr, flush=True)
        elif outcome.status == "kept":
            print(f"{place}: kept", flush=True)
        else:
            speed = outcome.audio_seconds / max(outcome.separation_seconds, 1e-9)
            print(f"{place}: {speed:.1f} x real time, scored in {outcome.scoring_seconds:.1f} s", flush=True)
        for warning in outcome.warnings:
            print(f"metatasnet-fast: warning: {outcome.name}: {warning}", file=sys.stderr, flush=True)


def _write(table: str, path: Path) -> None:
    print(f"\n{table}")
    try:
        path.write_text(table, "utf-8")
    except OSError as error:
        raise MetaTasNetError(f"{path} cannot be written ({error}).") from error


def _conclude(result: EvaluationRun) -> int:
    if not result.failures:
        return 0
    names = ", ".join(outcome.name for outcome in result.failures)
    print(f"metatasnet-fast: {len(result.failures)} tracks failed: {names}", file=sys.stderr)
    return 3
