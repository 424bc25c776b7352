"""Separate a catalogue, count what is done, or verify the stems: ``metatasnet-fast catalogue``."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

from .._io import to_json
from .._terminal import handling, say
from ..errors import ConfigError
from .common import add_engine_options, from_one, names

if TYPE_CHECKING:
    from ..catalogue import Event, Listener, RunEnded, Settings, Song

__all__ = ["add_arguments"]

RUN_EPILOG = """
MANIFEST is a folder, a pattern in quotes, a .txt list, or a .csv, .tsv, .jsonl or .parquet table with a column uri and, if
wanted, id, duration (seconds) and bytes. It, the songs and DEST may be local or anything that fsspec opens (s3://, gs://).

A song is done when the result in DEST/songs/ab/cd/<id>/, which is written last, holds for the file's content, the model and the
settings. The same command again does only what is missing; another model or other settings make everything again. Songs that
failed because of their file are tried again when the file changes, or with --retry-failed.

Ctrl-C and SIGTERM let the songs in flight finish; a second Ctrl-C ends at once. Either way nothing is half-written.

exit codes: 0 all songs are done; 2 the command cannot be carried out; 3 some failed, or were left when the run was stopped;
4 the run stopped itself, since one song after the other failed for a reason that is not theirs.

  metatasnet-fast catalogue run music/ --out stems
  metatasnet-fast catalogue run songs.csv --out s3://bucket/stems \\
      --stems vocals --shard 3/16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Separate a catalogue: nothing is lost, nothing is done twice."
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=type(parser))
    _add_run(actions)
    status = actions.add_parser(
        "status", help="what is done and what failed", description="Count what is done and what failed."
    )
    verify = actions.add_parser(
        "verify",
        help="check every stem",
        description="Compare every stem with its checksum; exit code 3 if any differs.",
    )
    for action in (status, verify):
        action.add_argument("destination", metavar="DEST", help="folder or fsspec URI of the stems")
        action.add_argument("--json", action="store_true", help="JSON on standard output")
    repair = "take away what does not hold, so that the next run makes it again"
    verify.add_argument("--repair", action="store_true", help=repair)
    verify.add_argument("--shard", default="1/1", metavar="I/N", help="only the i-th of n parts (default: 1/1)")
    verify.add_argument("--sample", type=float, default=1.0, metavar="X", help="share of the songs (default: 1)")
    status.set_defaults(run=run_status)
    verify.set_defaults(run=run_verify)


def _add_run(actions: Any) -> None:
    parser: argparse.ArgumentParser = actions.add_parser(
        "run",
        help="separate what is not done yet",
        description="Separate the songs of a manifest that are not done yet.",
        epilog=RUN_EPILOG,
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="folder, pattern, list or table of songs")
    parser.add_argument("--out", required=True, metavar="DEST", help="folder or fsspec URI for the stems")
    for flag, text in (
        ("--dry-run", "say what would be done, and do nothing"),
        ("--overwrite", "make again what is done"),
        ("--retry-failed", "try again what failed because of its file"),
        ("--partial", "separate what is there of files that are damaged or cut off"),
        ("--json", "one JSON object per event on standard output (but a song's beginning)"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument(
        "--listen", type=int, default=3, metavar="N", help="songs of which the report has a page to hear (default: 3)"
    )
    add_engine_options(parser)

    stems = parser.add_argument_group("stems")
    stems.add_argument("--stems", type=names, metavar="A,B", help="only these of the model's stems")
    stems.add_argument("--format", default="flac", help="flac, ogg, wav or mp3 (default: flac)")
    depth = stems.add_mutually_exclusive_group()
    depth.add_argument("--int24", dest="subtype", action="store_const", const="int24", help="24 bits instead of 16")
    depth.add_argument("--float32", dest="subtype", action="store_const", const="float32", help="floating point (wav)")
    stems.add_argument("--mixture-consistency", action="store_true", help="make the stems sum to the recording")

    scale = parser.add_argument_group("scale")
    scale.add_argument("--engine", default="local", choices=("local", "ray"), help="what runs it (default: local)")
    scale.add_argument("--address", help="of a Ray cluster (default: Ray is started here)")
    for flag, kind, metavar, default, text in (
        ("--shard", str, "I/N", "1/1", "only the i-th of n parts, i from 1 (default: 1/1)"),
        ("--workers", from_one, "N", None, "processes (default: one per GPU, or one)"),
        ("--threads", int, "N", None, "cores in all, with --engine ray of each worker (default: all there are)"),
        ("--batch-size", int, "N", None, "windows at once (default: by free memory)"),
        ("--songs-in-flight", int, "N", None, "open at once in a worker (default: by cores)"),
        ("--memory-gib", float, "G", None, "of songs in flight, per worker (default: a quarter)"),
        ("--max-hours", float, "H", 12.0, "longer songs fail (default: 12)"),
        ("--attempts", int, "N", 3, "tries of a song (default: 3)"),
        ("--grace", float, "S", 60.0, "for songs in flight at Ctrl-C (default: 60)"),
        ("--price-per-hour", float, "X", None, "of a machine, for the cost in the report"),
    ):
        scale.add_argument(flag, type=kind, metavar=metavar, default=default, help=text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the manifest, separate the songs and write the report; return an exit code of RUN_EPILOG."""
    from ..catalogue.inputs import parse_shard, read_manifest
    from ..catalogue.storage import local_path

    shard = parse_shard(args.shard)
    if not args.out:
        raise ConfigError("--out is empty: name a folder for the stems, `.` for this one.")
    path = local_path(args.out)
    args.out = args.out if path is None else os.path.abspath(path)
    if not 0 <= args.listen <= 100:
        raise ConfigError(f"--listen must be from 0 to 100, got {args.listen}.")
    for name in ("memory_gib", "grace", "price_per_hour"):
        value = getattr(args, name)
        # Gibibytes are converted to bytes later: the number of bytes must be finite, too.
        if value is not None and not 0 <= value * 2**30 < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} must be a number from 0 on, got {value:g}.")
    settings = _settings(args)
    songs = read_manifest(args.manifest, shard, exclude=args.out)
    if args.dry_run:
        return _dry_run(args, songs, settings)
    options = {name: getattr(args, name) for name in ("shard", "workers", "price_per_hour", "grace")}
    separate: Callable[..., RunEnded]
    if args.engine == "ray":
        from ..catalogue.ray_engine import run_ray

        separate = partial(run_ray, address=args.address)
    else:
        from ..catalogue.local import run_local as separate
    stop = threading.Event()
    with _stopping(stop), _listeners(args.json) as listener:
        ended = separate(songs, settings, args.out, listener, stop, **options)
    _report(args, ended, settings)
    return ended.exit_code


def _settings(args: argparse.Namespace) -> Settings:
    from ..audio import AudioWriter
    from ..catalogue import Settings
    from ..model import default_model
    from ..model.pretrained import means_bundled

    if args.mode != "fast":
        raise ConfigError("A catalogue is separated in fast mode only: leave --mode out, or use `separate`.")
    if args.engine != "ray" and args.address is not None:
        raise ConfigError("--address is that of a Ray cluster: add --engine ray.")
    args.format = args.format.lower()
    AudioWriter("stem", 44100, 1, format=args.format, subtype=args.subtype)
    args.model = args.model or default_model()
    if os.path.exists(args.model) and not means_bundled(args.model):
        args.model = os.path.abspath(args.model)  # workers may run in another folder
    args.stems = {name: (name,) for name in args.stems} if args.stems else None
    args.memory = None if args.memory_gib is None else int(args.memory_gib * 2**30)
    return Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})


def _dry_run(args: argparse.Namespace, songs: list[Song], settings: Settings) -> int:
    from ..catalogue.destination import Destination
    from ..catalogue.survey import count_missing, make_plan
    from ..catalogue.worker import find_identity

    plan = make_plan(songs, settings, find_identity(settings).key, Destination(args.out))
    missing, hours = count_missing(plan.todo), sum(song.expected_seconds() for song in plan.todo) / 3600
    counts = {
        "songs": len(songs),
        "todo": len(plan.todo) - missing,
        "done": len(plan.done),
        "failed": len(plan.failed),
        "missing": missing,
        "expected_hours": hours,
    }
    if args.json:
        print(to_json(counts))
        return 0
    print(
        f"{len(songs)} songs: {counts['todo']} to separate or to compare, {counts['done']} done, "
        f"{counts['failed']} failed before, {missing} not found"
    )
    print(f"{hours:.1f} hours of audio to separate, by the manifest and the files' sizes")
    return 0


def _stopping(stop: threading.Event) -> contextlib.AbstractContextManager[None]:
    """Set ``stop`` at the first Ctrl-C or SIGTERM; let a second Ctrl-C interrupt."""

    def ask(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        print("metatasnet-fast: stopping; songs in flight are being finished.", file=sys.stderr, flush=True)

    return handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), ask))


@contextlib.contextmanager
def _listeners(as_json: bool) -> Iterator[Listener]:
    from ..catalogue.events import SongStarted, WorkerLoad
    from ..catalogue.report import LiveDisplay

    def write(event: Event) -> None:
        if not isinstance(event, (SongStarted, WorkerLoad)):
            say(to_json(event.to_json()), sys.stdout)

    if as_json:
        yield write
        return
    with LiveDisplay() as show:
        yield show


def _report(args: argparse.Namespace, ended: RunEnded, settings: Settings) -> None:
    """Write the report; print where it is, and how many songs remain."""
    from ..catalogue.destination import Destination
    from ..catalogue.report import write_report

    destination = Destination(args.out)
    try:
        if destination.is_gone():
            raise FileNotFoundError(f"{destination.uri} was removed or unmounted")
        page = write_report(ended, destination, settings, args.price_per_hour, args.listen)
    except OSError as error:
        print(f"metatasnet-fast: warning: the report could not be written ({error}).", file=sys.stderr)
    else:
        print(f"report: {page}", file=sys.stderr if args.json else sys.stdout, flush=True)
    if ended.remaining:
        print(
            f"metatasnet-fast: {ended.remaining} songs remain; the same command goes on with them.",
            file=sys.stderr,
            flush=True,
        )


def run_status(args: argparse.Namespace) -> int:
    """Count the songs by state; return exit code 0."""
    from ..catalogue.destination import Destination
    from ..catalogue.survey import survey

    found = survey(Destination(args.destination))
    if not (found.done or found.damaged_results or found.runs):
        raise _nothing(args.destination)
    if args.json:
        print(to_json(found.to_dict()))
        return 0
    print(
        f"{found.done} songs done: {found.audio_seconds / 3600:.2f} hours of audio, {found.bytes / 1e9:.2f} GB of stems"
    )
    for name, count in found.models.most_common():
        print(f"  {count} with {name}")
    if found.damaged_results:
        print(f"{found.damaged_results} results are damaged; the next run makes them again")
    print(f"{len(found.failures)} songs failed" + (":" if found.failures else ""))
    for outcome in found.failures:
        print(f"  {outcome.id}: {outcome.failure.value if outcome.failure else ''}: {outcome.error} {outcome.hint}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check the outputs; return exit code 3 if anything is wrong."""
    from ..catalogue.destination import Destination
    from ..catalogue.inputs import parse_shard
    from ..catalogue.survey import Finding, verify

    if not 0 < args.sample <= 1:
        raise ConfigError(f"--sample must be a share above 0 and at most 1, got {args.sample:g}.")
    destination, shard = Destination(args.destination), parse_shard(args.shard)
    good = findings = 0
    for found in verify(destination, args.repair, shard, args.sample):
        if isinstance(found, Finding):
            findings += 1
            print(to_json(vars(found)) if args.json else f"{found.folder}: {found.problem}", flush=True)
        else:
            good += 1
    if not good and not findings and not any(destination.ledger_rows()):
        raise _nothing(args.destination)
    if args.json:
        print(to_json({"verified": good, "findings": findings, "repaired": bool(args.repair and findings)}))
    else:
        advice = (
            "the next run makes them again" if args.repair else "--repair makes way for the next run to make them again"
        )
        print(f"{good} songs verified, {findings} findings" + (f"; {advice}" if findings else ""))
    return 3 if findings else 0


def _nothing(destination: str) -> ConfigError:
    return ConfigError(f"There is no catalogue at {destination}: name the DEST of `catalogue run`.")
