"""Make the cache that training reads (``metatasnet-fast prepare``), train a network on it or continue a run
(``train``), draw a run (``plot``)."""

from __future__ import annotations

import argparse
import dataclasses
import math
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._io import to_json
from .._terminal import ProgressBar, say
from ..config import MetaTasNetConfig
from ..errors import TrainingDataError
from ..training.journal import Display
from ..training.settings import TrainingSettings, read_settings_file
from .common import TrackReport, add_json_option, add_workers_option, check_writable, names, print_result, tell

if TYPE_CHECKING:
    from ..training.data.convert import Outcome
    from ..training.data.prepare import Preparation
    from ..training.data.sources import TrackSource
    from ..training.journal import Summary
    from ..training.launch import Plan
    from ..training.validation import ValidationScore

__all__ = ["TrainingDisplay", "add_plot_arguments", "add_prepare_arguments", "add_train_arguments"]

PREPARE_EPILOG = """
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

TRAIN_EPILOG = """
RUN holds settings.json, log.jsonl, last.pt (to go on from) and best.pt (to separate with). The same command again goes on with
the run exactly where it stopped; settings that are given again are changed, all others stay. Checkpoints are files of the
authors' format: their program reads them, and theirs are continued here with --checkpoint.

Several GPUs:  torchrun --nproc-per-node 4 -m metatasnet_fast train CACHE --out RUN

exit codes: 0 trained to the end, or SIGTERM: state saved; 2 the command cannot be carried out, or the loss exploded;
130 Ctrl-C: state saved (a second Ctrl-C ends without saving).

  metatasnet-fast prepare --musdb MUSDB18 --out cache
  metatasnet-fast train cache --out run
  metatasnet-fast plot run
"""

NETWORK_HELP = {
    "B": "channels of the residual stream",
    "H": "hidden channels of a block",
    "N": "latent channels of the first stage",
    "L": "shortest encoder kernel of the first stage, samples",
    "W": "encoder stride of the first stage, samples",
    "E_1": "width of an instrument's embedding",
    "E_2": "width in front of each generated layer",
    "filters": "encoder filters",
    "kernel": "taps of the dilated convolutions",
    "layers": "blocks in a stack",
    "stack": "stacks",
    "num_mels": "learned mel bands of the encoder, 0 for no spectrogram branch",
    "stages_num": "stages",
    "sampling_rate": "of the first stage, hertz",
    "dropout": "of the masking network's input",
    "independent_params": "one network for each instrument instead of generated ones",
    "residual_bias": "biases in the blocks' outputs",
    "similarity_loss_weight": "0 for none",
    "dissimilarity_loss_weight": "0 for none",
    "reconstruction_loss_weight": "0 for none",
    "instruments": "what is separated, of the cache's instruments; the others are in the mixture only",
}


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Decode and resample tracks once, into a memory-mapped cache for training."
    parser.epilog = PREPARE_EPILOG
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
    parser.set_defaults(run=run_prepare)


def run_prepare(args: argparse.Namespace) -> int:
    rates = _rates(args.rates)
    tracks, source = _find_tracks(args, rates)
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
    _conclude_preparation(args, result)
    return report.finish()


def _rates(text: str) -> list[int]:
    try:
        return [int(rate) for rate in text.split(",")]
    except ValueError:
        raise TrainingDataError(f"--rates must be whole numbers of hertz with commas between, got {text!r}.") from None


def _find_tracks(args: argparse.Namespace, rates: list[int]) -> tuple[list[TrackSource], list[TrackSource]]:
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


def _conclude_preparation(args: argparse.Namespace, result: Preparation) -> None:
    lengths = ", ".join(f"{seconds / 60:.1f} min {split}" for split, seconds in result.seconds.items() if seconds)
    lines = [f"{name}: moved from {old} to {new}" for name, old, new in result.migration.moved]
    text = "\n".join([*lines, f"{args.out}: {lengths or 'no audio'}"])
    print_result(args, text, cache=args.out, seconds=result.seconds, **dataclasses.asdict(result.migration))
    if result.migration.gone:
        tell(
            f"{args.out} still holds what this source no longer has: {', '.join(result.migration.gone)}; to remove a track, "
            "delete its folder there and prepare again."
        )


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a network on a cache made by `prepare`, by the authors' recipe."
    parser.epilog = TRAIN_EPILOG
    parser.add_argument("cache", metavar="CACHE", type=Path, help="the folder that `prepare` made")
    parser.add_argument("-o", "--out", metavar="RUN", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="settings by name in JSON or TOML; flags come before it"
    )
    parser.add_argument(
        "--checkpoint",
        "--from",
        metavar="FILE",
        type=Path,
        help="start a new run from this: optimiser and steps too, if it has them",
    )
    parser.add_argument(
        "--add-instrument",
        metavar="NAME",
        help="give the checkpoint's network one more instrument and train its embedding; more with --unfreeze",
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's files")
    add_json_option(parser, "one JSON object for each event of the run")
    _add_settings(parser.add_argument_group("training"), TrainingSettings, {})
    _add_settings(parser.add_argument_group("network"), MetaTasNetConfig, NETWORK_HELP)
    parser.set_defaults(run=run_train)


def _add_settings(group: argparse._ArgumentGroup, settings: type[Any], texts: Mapping[str, str]) -> None:
    """Add a flag for every field of ``settings``, in the authors' spelling and with hyphens. ``texts`` has lines of
    help by field. A flag that the user omits sets nothing."""
    for field in dataclasses.fields(settings):
        flags = [f"--{field.name}", *([f"--{field.name.replace('_', '-')}"] if "_" in field.name else [])]
        default = "none" if field.default is None else field.default
        if field.name == "added_instruments":
            continue  # --add-instrument sets it
        text = f"{texts.get(field.name) or field.metadata['help']} (default: {default})"
        kind = str(field.type).removesuffix(" | None")
        if field.name == "instruments":
            text = f"{texts[field.name]} (default: the cache's)"
            group.add_argument(*flags, type=names, default=argparse.SUPPRESS, metavar="A,B", help=text)
        elif kind == "bool":
            for name, shown in zip(flags, (text, argparse.SUPPRESS), strict=False):
                group.add_argument(
                    name, dest=field.name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=shown
                )
        else:
            convert = {"int": int, "float": float, "str": str}[kind]
            metavar = {"int": "N", "float": "X", "str": "NAME"}[kind]
            group.add_argument(*flags, type=convert, default=argparse.SUPPRESS, metavar=metavar, help=text)


def run_train(args: argparse.Namespace) -> int:
    try:
        return _train(args)
    except SystemExit as leaving:
        # SIGTERM before the first step or after the last: no step is running, so nothing is lost.
        if leaving.code != 128 + signal.SIGTERM:
            raise
        text = f"terminated between steps, nothing is lost; the same command goes on with {args.out}"
        print_result(args, text, event="end", run=str(args.out), interrupted=True)
        return 0


def _train(args: argparse.Namespace) -> int:
    from ..training.launch import plan_run, train
    from ..training.runtime import World

    plan = plan_run(args.out, _given_settings(args), args.checkpoint, args.cache, args.add_instrument)
    first = World.from_environment().first
    if first:
        _announce_run(args, plan)
    with TrainingDisplay(args.json) as display:
        ended = train(
            args.cache,
            args.out,
            plan,
            tensorboard=args.tensorboard,
            display=display if first else None,
            command=" ".join(sys.argv),
        )
    if first and (args.json or ended is not None):
        text = f"interrupted; the same command goes on from {args.out}"
        print_result(args, text, event="end", run=str(args.out), interrupted=ended is not None)
    return 130 if ended == signal.SIGINT else 0


def _given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the user gave: the flags' values take precedence over the file's."""
    values = read_settings_file(args.config) if args.config is not None else {}
    fields = (*dataclasses.fields(TrainingSettings), *dataclasses.fields(MetaTasNetConfig))
    values.update({field.name: getattr(args, field.name) for field in fields if hasattr(args, field.name)})
    return values


def _announce_run(args: argparse.Namespace, plan: Plan) -> None:
    """Print all settings, the checkpoint that the run goes on from, and the settings that were changed."""
    settings = {"network": plan.config.to_dict(), "training": plan.settings.to_dict()}
    steps = (plan.checkpoint.steps or 0) if plan.checkpoint else 0
    lines = [f"{title}: " + ", ".join(f"{k}={v}" for k, v in values.items()) for title, values in settings.items()]
    if plan.origin is not None:
        lines.append(f"{args.out} goes on from {plan.origin}, step {steps}")
    lines += [f"changed: {name} from {before} to {now}" for name, (before, now) in plan.changes.items()]
    origin = None if plan.origin is None else str(plan.origin)
    place = {"event": "start", "run": str(args.out), "origin": origin, "step": steps}
    print_result(args, "\n".join(lines), **place, **settings, changes=plan.changes)
    sys.stdout.flush()


class TrainingDisplay(Display):
    """Display of a training: validations and notes as lines; steps as a bar on a terminal with tqdm, else as lines.

    With ``as_json``, each line is a JSON object: ``event`` (``summary``, ``validation``, ``note``) and its fields.
    """

    def __init__(self, as_json: bool = False) -> None:
        self._bar: ProgressBar | None = None
        self._json = as_json

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def preparing(self, what: str, done: int, total: int, unit: str) -> None:
        if self._bar is None:
            self._bar = ProgressBar(what, unit, total)
        self._bar.update(done)
        if done >= total:
            self._bar.close()
            self._bar = None

    def step(self, step: int, total: int | None, loss: float) -> None:
        if self._bar is None:
            self._bar = ProgressBar("training", "step", total, initial=step - 1, lines=False)
        self._bar.update(step)

    def summary(self, summary: Summary) -> None:
        speed = f"{summary.steps_per_second:.2f} steps/s, {summary.audio_per_second:.1f} audio-s/s"
        if self._bar is not None and self._bar.is_bar:
            self._bar.update(summary.step, f"loss {summary.loss:.1f}, {speed}")
            if not self._json:
                return
        total = "" if summary.total is None else f" of {summary.total}"
        left = "" if summary.remaining is None else f", {_duration(summary.remaining)} left"
        text = f"step {summary.step}{total}: loss {summary.loss:.2f}, SI-SDR {_decibels(summary.sdr)}, {speed}{left}"
        self._print("summary", text, dataclasses.asdict(summary))

    def validation(self, step: int, sdr: dict[str, float], score: ValidationScore, seconds: float, best: bool) -> None:
        mark = ", best so far" if best else ""
        text = f"validation at step {step}: SDR {_decibels(sdr)} ({score.tracks} tracks, {seconds:.0f} s){mark}"
        fields = {"step": step, "sdr": sdr, "tracks": score.tracks, "seconds": seconds, "best": best}
        self._print("validation", text, fields)

    def note(self, text: str) -> None:
        self._print("note", text, {"text": text})

    def _print(self, event: str, text: str, fields: Mapping[str, Any]) -> None:
        line = to_json({"event": event, **fields}) if self._json else text
        say(line, sys.stdout) if self._bar is None else self._bar.write(line, sys.stdout)


def _decibels(values: dict[str, float]) -> str:
    """Return a text of the scores in dB, by the name of the stem; a stem without a score (NaN) gets a dash."""
    return ", ".join(f"{name} {'-' if math.isnan(value) else f'{value:.2f}'}" for name, value in values.items()) + " dB"


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes}:{int(seconds) % 60:02d} min"


def add_plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Draw loss, scores of every stem and learning rate of a run, while it goes on or afterwards."
    parser.add_argument("folder", metavar="RUN", type=Path, help="the folder that `train` was given as --out")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the image (default: RUN/run.png)")
    add_json_option(parser, "one JSON object (run, image)")
    parser.set_defaults(run=run_plot)


def run_plot(args: argparse.Namespace) -> int:
    from ..training.journal import plot_run

    image = plot_run(args.folder, args.output or args.folder / "run.png")
    print_result(args, str(image), run=str(args.folder), image=str(image))
    return 0
