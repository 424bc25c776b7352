"""Score stems of any separator (``metatasnet-fast score``), or separate tracks and score the stems (``evaluate``)."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._io import reporting_write_errors, to_json, write_atomically
from ..errors import MetaTasNetError
from .common import (
    TrackReport,
    add_engine_options,
    add_json_option,
    add_page_options,
    add_workers_option,
    make_separator,
    names,
)

if TYPE_CHECKING:
    from ..evaluation import ScoringRun, TrackOutcome

__all__ = ["add_evaluate_arguments", "add_score_arguments"]

METRICS = """
metrics: SDR ISR SIR SAR (BSSEval v4: medians over one-second frames, then over tracks, as museval), uSDR MDX SI-SDR SI-SDRi
bleedless fullness L1freq (of whole tracks: means over tracks), log-WMSE (with its package); all; bsseval. Of SDR alone the
scoring takes a fiftieth of the time.

Each track's scores go to OUT/<subset>/<track>.json in museval's format, with the metrics that museval lacks behind; the
table, to OUT/scores.txt; all numbers, to OUT/scores.csv; with --page a page with the estimates, the true stems and the scores
of a track that is scored, to OUT/<subset>/<track>.html. A track that is scored already is kept; scores there of other audio,
another model or other settings are refused. Tracks that fail are named, the rest is done.

exit codes: 0 all done; 2 the command cannot be carried out; 3 some tracks failed.
"""

SCORE_EPILOG = f"""
REFERENCES and ESTIMATES are two files, two folders of stems, or two trees of these: MUSDB18 (wav or .stem.mp4), the output
of `separate`, of a catalogue or of another separator. Tracks and stems are paired by name.
{METRICS}
  metatasnet-fast score MUSDB18 separated/htdemucs --subset test -o scores
  metatasnet-fast score vocals.wav estimate.wav --metrics SDR,SI-SDR
  metatasnet-fast score compare scores/htdemucs scores/default
"""

EPILOG = f"""
{METRICS}
Scores of the 7-second excerpts of MUSDB18 are not comparable with published ones, which are of full tracks.

  metatasnet-fast evaluate --musdb MUSDB18 --model authors --mode reference
  metatasnet-fast evaluate --musdb MUSDB18 --metrics SDR
"""


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Score stems of any separator against the true ones, or compare two sets of scores."
    parser.usage = "%(prog)s [options] REFERENCES ESTIMATES\n       %(prog)s compare SCORES_A SCORES_B"
    parser.epilog = SCORE_EPILOG
    parser.add_argument("paths", nargs="+", metavar="PATH", help="REFERENCES ESTIMATES, or compare SCORES_A SCORES_B")
    parser.add_argument("--subset", help="a folder of REFERENCES, such as test (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; float64 everywhere (default: auto)")
    _add_scoring_options(parser, metrics="all that need no other package")
    parser.set_defaults(run=run_score)


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Separate MUSDB18 (or any tree of tracks with stems) and score the stems."
    parser.epilog = EPILOG
    parser.add_argument("--musdb", required=True, metavar="PATH", help="the folder that holds train and test")
    parser.add_argument("--subset", default="test", help="test or train, or . for all of PATH (default: test)")
    _add_scoring_options(parser, metrics="SDR,ISR,SIR,SAR")
    add_engine_options(parser)
    parser.set_defaults(run=run_evaluate)


def _add_scoring_options(parser: argparse.ArgumentParser, metrics: str) -> None:
    parser.add_argument("-o", "--out", default="scores", help="folder for the scores (default: scores)")
    parser.add_argument("--metrics", type=names, metavar="A,B", help=f"what to compute, see below (default: {metrics})")
    parser.add_argument(
        "--silence",
        default="museval",
        help="which silence voids a frame: museval: that of any stem; own: the stem's own (default: museval)",
    )
    parser.add_argument(
        "--regularise",
        action="store_true",
        help="make ISR, SIR, SAR of band-limited references independent of rounding",
    )
    add_workers_option(parser, "scored")
    parser.add_argument(
        "--table", action="append", default=[], metavar="FILE", help="also write .csv, .parquet or .tex"
    )
    parser.add_argument("--plot", metavar="FILE", help="also draw boxplots into this image")
    add_page_options(parser, "for each track")
    add_json_option(parser, "one JSON object for each track")
    parser.add_argument("--strict", action="store_true", help="stop at the first failure or silent stem")
    parser.add_argument("--overwrite", action="store_true", help="score again what is scored already")


def run_score(args: argparse.Namespace) -> int:
    if args.paths[0] == "compare" and len(args.paths) == 3:
        return _compare(args.paths[1], args.paths[2], args.json)
    if len(args.paths) != 2:
        raise MetaTasNetError("Name REFERENCES and ESTIMATES, or compare and two folders of scores.")
    import torch

    from ..evaluation import DEFAULT_METRICS, Scoring, score

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    scoring = Scoring(args.metrics or DEFAULT_METRICS, args.silence, args.regularise, args.strict, device)
    report = TrackReport(args.json)
    references, estimates = args.paths
    result = score(references, estimates, scoring, subset=args.subset, **_run_options(args, report))
    return _finish(args, result, Path(estimates).resolve().name, report)


def run_evaluate(args: argparse.Namespace) -> int:
    from ..evaluation import METRICS, Scoring
    from ..evaluation.runner import evaluate_tracks
    from ..evaluation.tracks import open_tracks

    scoring = Scoring(args.metrics or METRICS, args.silence, args.regularise, args.strict)
    tracks = open_tracks(args.musdb, args.subset)
    separator, model = make_separator(args)
    if not args.json:
        print(f"{model}: {len(tracks)} tracks, {separator.describe()}", flush=True)
    report = TrackReport(args.json, len(tracks))
    result = evaluate_tracks(tracks, separator, scoring=scoring, subset=args.subset, **_run_options(args, report))
    return _finish(args, result, f"{model}, {args.mode} mode", report)


def _run_options(args: argparse.Namespace, report: TrackReport) -> dict[str, Any]:
    def tell(outcome: TrackOutcome) -> None:
        """Report a track as a line, or as JSON with all fields of the outcome (scores: stem -> metric -> number)."""
        speed = outcome.audio_seconds / max(outcome.reading_seconds, 1e-9)
        listen = f"; open {outcome.page} to listen" if outcome.page else ""
        line = f"read at {speed:.1f} x real time, scored in {outcome.scoring_seconds:.1f} s{listen}"
        fields = {name: value for name, value in vars(outcome).items() if name != "scores"}
        numbers = {} if outcome.scores is None else {"scores": outcome.scores.numbers()}
        report.add(outcome, line, fields | numbers)

    plain = {name: getattr(args, name) for name in ("out", "workers", "overwrite", "page")}
    return {**plain, "report": tell}


def _finish(args: argparse.Namespace, result: ScoringRun, title: str, report: TrackReport) -> int:
    from ..evaluation import plot_scores, score_table, write_rows

    if result.scores:
        table, path = score_table(result.scores, title), Path(args.out, "scores.txt")
        if not args.json:
            print(f"\n{table}")
        with reporting_write_errors(path, MetaTasNetError):
            write_atomically(path, table)
        for file in [str(Path(args.out, "scores.csv")), *args.table]:
            write_rows(result.scores, file)
        if args.plot:
            plot = plot_scores(result.scores, args.plot, title=title)
            if not args.json:
                print(f"plot: {plot}")
    return report.finish()


def _compare(first: str, second: str, as_json: bool) -> int:
    from ..evaluation import compare, comparison_table, load_scores

    comparisons = compare(load_scores(first, None), load_scores(second, None))
    if as_json:
        for comparison in comparisons:
            print(to_json(dataclasses.asdict(comparison)))
    else:
        print(comparison_table(comparisons, (Path(first).resolve().name, Path(second).resolve().name)), end="")
    return 0
