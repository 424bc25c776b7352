"""``metatasnet-fast catalogue run``: from the arguments to a run, and what is said of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from .._terminal import say
from ..errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ..catalogue import Event, Listener, RunEnded, Settings, Song

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Read the manifest, run, report; exit code 0, or 3 if songs failed or are left."""
    from ..catalogue.manifest import parse_shard, read_manifest

    shard = parse_shard(args.shard)
    args.out = _destination(args.out)
    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {args.workers}.")
    if not 0 <= args.listen <= 100:
        raise ConfigError(f"--listen must be from 0 to 100, got {args.listen}.")
    for name in ("memory_gib", "grace", "price_per_hour"):
        value = getattr(args, name)
        # Gibibytes become bytes later: their number must be finite, too.
        if value is not None and not 0 <= value * 2**30 < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} must be a number from 0 on, got {value:g}.")
    settings = _settings(args)
    songs = read_manifest(args.manifest, shard, exclude=args.out)
    if args.dry_run:
        return _dry_run(args, songs, settings)
    stop = threading.Event()
    with _stopping(stop), _listeners(args.json) as listener:
        ended = _separate(args, songs, settings, listener, stop)
    _report(args, ended, settings)
    return ended.exit_code


def _separate(
    args: argparse.Namespace, songs: list[Song], settings: Settings, listener: Listener, stop: threading.Event
) -> RunEnded:
    separate: Callable[..., RunEnded]
    if args.engine == "ray":
        from ..catalogue.ray_engine import run_ray

        separate = partial(run_ray, address=args.address)
    else:
        from ..catalogue.local import run_local

        separate = run_local
    return separate(
        songs,
        settings,
        args.out,
        listener,
        stop,
        shard=args.shard,
        workers=args.workers,
        price_per_hour=args.price_per_hour,
        grace=args.grace,
    )


def _settings(args: argparse.Namespace) -> Settings:
    from ..audio import AudioWriter
    from ..catalogue import Settings

    if args.mode != "fast":
        raise ConfigError("A catalogue is separated in fast mode only: leave --mode out, or use `separate`.")
    if args.engine != "ray" and args.address is not None:
        raise ConfigError("--address is that of a Ray cluster: add --engine ray.")
    args.format = args.format.lower()
    AudioWriter("stem", 44100, 1, format=args.format, subtype=args.subtype)
    wanted: dict[str, tuple[str, ...]] | None = None
    if args.stems is not None:
        wanted = {name: (name,) for name in map(str.strip, args.stems.split(","))}
    plain = (
        "revision offline format subtype mixture_consistency dtype device backend threads batch_size songs_in_flight "
    )
    plain += "max_hours attempts overwrite retry_failed"
    return Settings(
        _model(args.model),
        stems=wanted,
        memory=None if args.memory_gib is None else int(args.memory_gib * 2**30),
        **{name: getattr(args, name) for name in plain.split()},
    )


def _model(name: str | None) -> str:
    """Return the model's name, or its absolute path, as workers may run in another folder."""
    from ..model import bundled_models
    from ..model.pretrained import means_bundled

    if name is None:
        bundled = list(bundled_models())
        if not bundled:
            raise CheckpointError("No model comes with this installation: name a checkpoint with --model.")
        return bundled[0]
    return os.path.abspath(name) if os.path.exists(name) and not means_bundled(name) else name


def _destination(text: str) -> str:
    from ..catalogue.storage import local_path

    if not text:
        raise ConfigError("--out is empty: name a folder for the stems, `.` for this one.")
    path = local_path(text)
    return text if path is None else os.path.abspath(path)


def _dry_run(args: argparse.Namespace, songs: list[Song], settings: Settings) -> int:
    from ..catalogue.destination import Destination
    from ..catalogue.resources import find_identity
    from ..catalogue.survey import count_missing, make_plan

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
        print(json.dumps(counts))
        return 0
    print(
        f"{len(songs)} songs: {counts['todo']} to separate or to compare, {counts['done']} done, "
        f"{counts['failed']} failed before, {missing} not found"
    )
    print(f"{hours:.1f} hours of audio to separate, by the manifest and the files' sizes")
    return 0


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` at the first Ctrl-C or SIGTERM; let a second Ctrl-C interrupt."""

    def ask(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        print("metatasnet-fast: stopping; songs in flight are being finished.", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = [(number, signal.signal(number, ask)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def _listeners(as_json: bool) -> Iterator[Listener]:
    from ..catalogue.events import SongStarted, WorkerLoad
    from ..catalogue.report import LiveDisplay

    def write(event: Event) -> None:
        if not isinstance(event, (SongStarted, WorkerLoad)):
            say(json.dumps(event.to_json()), sys.stdout)

    if as_json:
        yield write
        return
    with LiveDisplay() as show:
        yield show


def _report(args: argparse.Namespace, ended: RunEnded, settings: Settings) -> None:
    """Print where the report is, and what remains to be done."""
    from ..catalogue.destination import Destination
    from ..catalogue.report import write_report

    try:
        page = write_report(ended, Destination(args.out), settings, args.price_per_hour, args.listen)
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
