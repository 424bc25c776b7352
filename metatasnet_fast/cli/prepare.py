"""``metatasnet-fast prepare``: make the cache that training reads."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._terminal import ProgressBar, say
from ..errors import TrainingDataError
from .outputs import check_writable

if TYPE_CHECKING:
    from ..training.data.convert import Outcome
    from ..training.data.prepare import Preparation
    from ..training.data.sources import TrackSource

__all__ = ["add_parser"]

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


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "prepare",
        help="make the cache of tracks that training reads",
        description="Decode and resample tracks once, into a memory-mapped cache for training.",
        epilog=EPILOG,
    )
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
        "--splits", default="train,valid,test", metavar="A,B", help="of train, valid and test (default: all)"
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
    parser.add_argument(
        "--workers",
        type=int,
        default=max(1, (os.cpu_count() or 2) // 2),
        help="tracks prepared at once (default: half the cores)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object for each track, and one for the cache, instead of text"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    rates = _rates(args.rates)
    tracks, source = _find(args, rates)
    from ..training.data.instruments import parse_instruments
    from ..training.data.prepare import prepare
    from ..training.data.splits import refuse_own_folder

    refuse_own_folder(Path(args.out), source)  # before a folder is made there
    check_writable(Path(args.out))

    if not args.json:
        print(f"{len(tracks)} tracks, {args.workers} at once", flush=True)
    with _Display(len(tracks), args.json) as display:
        result = prepare(
            tracks,
            args.out,
            rates=rates,
            dtype=args.dtype,
            stems=None if args.instruments is None else parse_instruments(args.instruments),
            workers=args.workers,
            source=source,
            report=display,
        )
    return _conclude(result, args.out, args.json)


def _rates(text: str) -> list[int]:
    try:
        return [int(rate) for rate in text.split(",")]
    except ValueError:
        raise TrainingDataError(f"--rates must be whole numbers of hertz with commas between, got {text!r}.") from None


def _find(args: argparse.Namespace, rates: list[int]) -> tuple[list[TrackSource], list[TrackSource]]:
    """The tracks of the chosen splits, and all of them."""
    from ..training.data.entry import SPLITS
    from ..training.data.sources import find_musdb, find_original, find_stems

    splits = [split.strip() for split in args.splits.split(",")]
    wrong = [split for split in splits if split not in SPLITS]
    if wrong:
        raise TrainingDataError(f"There is no split {wrong[0]!r}; --splits takes {', '.join(SPLITS)}.")
    if args.held_out and not args.stems:
        raise TrainingDataError("--held-out goes with --stems; the other sources name their validation tracks.")
    if args.stems:
        found = find_stems(args.stems, args.held_out)
    else:
        found = find_musdb(args.musdb) if args.musdb else find_original(args.original, rates)
    tracks = [track for track in found if track.split in splits]
    if not tracks:
        raise TrainingDataError(
            f"None of the {len(found)} tracks belongs to {', '.join(splits)}; choose other --splits."
        )
    return tracks, found


class _Display:
    """A bar on a terminal that has tqdm, a line for each track elsewhere; failures and warnings always."""

    def __init__(self, total: int, as_json: bool) -> None:
        self._total, self._done, self._json = total, 0, as_json
        self._bar = ProgressBar("preparing", "track", total, lines=False)

    def __enter__(self) -> _Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def __call__(self, outcome: Outcome) -> None:
        self._done += 1
        if outcome.error is not None:
            self._bar.write(f"metatasnet-fast: error: {outcome.error}", sys.stderr)
        for warning in outcome.warnings:
            self._bar.write(f"metatasnet-fast: warning: {outcome.name}: {warning}", sys.stderr)
        self._bar.update(self._done)
        if self._json:
            self._bar.write(json.dumps(dataclasses.asdict(outcome)), sys.stdout)
        elif self._bar.is_bar:
            pass
        elif outcome.status == "kept":
            say(f"[{self._done}/{self._total}] {outcome.name}: kept", sys.stdout)
        elif outcome.status == "done":
            what = f"{outcome.audio_seconds:.1f} s of audio in {outcome.seconds:.1f} s"
            say(f"[{self._done}/{self._total}] {outcome.name}: {what}", sys.stdout)


def _conclude(result: Preparation, out: str, as_json: bool) -> int:
    lengths = ", ".join(f"{seconds / 60:.1f} min {split}" for split, seconds in result.seconds.items() if seconds)
    if as_json:
        print(json.dumps({"cache": out, "seconds": result.seconds, **dataclasses.asdict(result.migration)}))
    else:
        for name, old, new in result.migration.moved:
            print(f"{name}: moved from {old} to {new}")
        print(f"{out}: {lengths or 'no audio'}")
    if result.migration.gone:
        print(
            f"metatasnet-fast: warning: {out} still holds what this source no longer has: {', '.join(result.migration.gone)}; "
            "to remove a track, delete its folder there and prepare again.",
            file=sys.stderr,
        )
    if not result.failures:
        return 0
    names = ", ".join(outcome.name for outcome in result.failures)
    print(f"metatasnet-fast: {len(result.failures)} tracks failed: {names}", file=sys.stderr)
    return 3
