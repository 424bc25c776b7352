"""Make the cache that training reads: ``metatasnet-fast prepare``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from .._terminal import ProgressBar
from ..errors import TrainingDataError
from .common import TrackReport, add_json_option, add_workers_option, check_writable, names, print_result, tell

if TYPE_CHECKING:
    from ..training.data.convert import Outcome
    from ..training.data.prepare import Preparation
    from ..training.data.sources import TrackSource

__all__ = ["add_arguments"]

EPILOG = """
Tracks with stems come from one of
  --musdb PATH     MUSDB18 (.stem.mp4) or MUSDB18-HQ (wav)
  --stems PATH     PATH/{train,valid,test}/<track>/<stem>.*, or
                   PATH/<track>/... with --held-out; stems of any names
  --original PATH  what the authors' program prepared:
                   PATH/train_8/0000.npz and so on

A track.json beside the stems, {"unknown": ["bass"]}, keeps stems out of the loss that are missing or hide in another.
Interrupt it whenever you like, and give the same command again: finished tracks are known by the content of their files and
skipped. A track that fails is named, the rest is done. Each process needs about 1.5 GB for a track of four minutes.

exit codes: 0 all done; 2 the command cannot be carried out; 3 some tracks failed, the rest is done.

  metatasnet-fast prepare --musdb MUSDB18 --out CACHE
  metatasnet-fast prepare --stems SONGS --held-out sodium --out CACHE
  metatasnet-fast prepare --stems QUARTETS --out CACHE \\
      --instruments violins=violin1+violin2,viola,cello
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Decode and resample tracks once, into a memory-mapped cache for training."
    parser.epilog = EPILOG
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--musdb", metavar="PATH", help="the folder of MUSDB18 or MUSDB18-HQ")
    source.add_argument("--stems", metavar="PATH", help="a folder of tracks, each a folder of stems")
    source.add_argument("--original", metavar="PATH", help="a folder prepared by the authors' program")
    parser.add_argument("-o", "--out", required=True, metavar="CACHE", help="folder of the cache")
    parser.add_argument(
        "--held-out",
        action="append",
        default=[],
        metavar="TRACK",
        help="validate on this track of --stems (repeatable)",
    )
    parser.add_argument(
        "--splits",
        type=names,
        default="train,valid,test",
        metavar="A,B",
        help="of train, valid and test (default: all)",
    )
    parser.add_argument(
        "--rates",
        default="8000,16000,32000",
        metavar="A,B",
        help="sampling rates of the network's stages, hertz (default: 8000,16000,32000)",
    )
    parser.add_argument(
        "--dtype",
        default="int16",
        choices=("int16", "float32"),
        help="how samples are stored; float32 takes twice the space (default: int16)",
    )
    parser.add_argument(
        "--instruments",
        metavar="A,B=C+D",
        help="select, order and sum stems: strings=violin+viola,drums (default: all stems that the tracks have)",
    )
    add_workers_option(parser, "prepared")
    add_json_option(parser, "a JSON object for each track, and one for the cache,")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rates = _rates(args.rates)
    tracks, source = _find(args, rates)
    from ..training.data.prepare import prepare, refuse_own_folder
    from ..training.data.sources import parse_instruments

    refuse_own_folder(Path(args.out), source)  # before a folder is created there
    check_writable(Path(args.out))

    if not args.json:
        print(f"{len(tracks)} tracks, {args.workers} at once", flush=True)
    with ProgressBar("preparing", "track", len(tracks), lines=False) as bar:
        report = TrackReport(args.json, len(tracks), bar)

        def tell_track(outcome: Outcome) -> None:
            line = f"{outcome.audio_seconds:.1f} s of audio in {outcome.seconds:.1f} s"
            report.add(outcome, line, dataclasses.asdict(outcome))

        result = prepare(
            tracks,
            args.out,
            rates=rates,
            dtype=args.dtype,
            stems=None if args.instruments is None else parse_instruments(args.instruments),
            workers=args.workers,
            source=source,
            report=tell_track,
        )
    _conclude(args, result)
    return report.finish()


def _rates(text: str) -> list[int]:
    try:
        return [int(rate) for rate in text.split(",")]
    except ValueError:
        raise TrainingDataError(f"--rates must be whole numbers of hertz with commas between, got {text!r}.") from None


def _find(args: argparse.Namespace, rates: list[int]) -> tuple[list[TrackSource], list[TrackSource]]:
    """Return the tracks of the chosen splits, and the tracks of all splits."""
    from ..training.data.sources import find_musdb, find_original, find_stems
    from ..training.data.store import SPLITS

    wrong = [split for split in args.splits if split not in SPLITS]
    if wrong:
        raise TrainingDataError(f"There is no split {wrong[0]!r}; --splits takes {', '.join(SPLITS)}.")
    if args.held_out and not args.stems:
        raise TrainingDataError("--held-out goes with --stems; the other sources name their validation tracks.")
    if args.stems:
        found = find_stems(args.stems, args.held_out)
    else:
        found = find_musdb(args.musdb) if args.musdb else find_original(args.original, rates)
    tracks = [track for track in found if track.split in args.splits]
    if not tracks:
        raise TrainingDataError(
            f"None of the {len(found)} tracks belongs to {', '.join(args.splits)}; choose other --splits."
        )
    return tracks, found


def _conclude(args: argparse.Namespace, result: Preparation) -> None:
    lengths = ", ".join(f"{seconds / 60:.1f} min {split}" for split, seconds in result.seconds.items() if seconds)
    lines = [f"{name}: moved from {old} to {new}" for name, old, new in result.migration.moved]
    text = "\n".join([*lines, f"{args.out}: {lengths or 'no audio'}"])
    print_result(args, text, cache=args.out, seconds=result.seconds, **dataclasses.asdict(result.migration))
    if result.migration.gone:
        tell(
            f"{args.out} still holds what this source no longer has: {', '.join(result.migration.gone)}; to remove a track, "
            "delete its folder there and prepare again."
        )
