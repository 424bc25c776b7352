"""``metatasnet-fast train``: train a network on a prepared cache, or go on with a run."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import MetaTasNetConfig
from ..training.settings import TrainingSettings, read_settings_file
from .progress import TrainingDisplay

if TYPE_CHECKING:
    from ..training.launch import Plan

__all__ = ["add_parser"]

EPILOG = """
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


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train a network, resumably",
        description="Train a network on a cache made by `prepare`, by the authors' recipe.",
        epilog=EPILOG,
    )
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
    _add_settings(parser.add_argument_group("training"), TrainingSettings, {})
    _add_settings(parser.add_argument_group("network"), MetaTasNetConfig, NETWORK_HELP)
    parser.set_defaults(run=run)


def _add_settings(group: argparse._ArgumentGroup, settings: type[Any], texts: Mapping[str, str]) -> None:
    """A flag for every field, in the authors' spelling and with hyphens; absent unless given."""
    for field in dataclasses.fields(settings):
        names = [f"--{field.name}", *([f"--{field.name.replace('_', '-')}"] if "_" in field.name else [])]
        default = "none" if field.default is None else field.default
        if field.name == "added_instruments":
            continue  # --add-instrument
        text = f"{texts.get(field.name) or field.metadata['help']} (default: {default})"
        kind = str(field.type).removesuffix(" | None")
        if field.name == "instruments":
            text = f"{texts[field.name]} (default: the cache's)"
            group.add_argument(*names, type=_names, default=argparse.SUPPRESS, metavar="A,B", help=text)
        elif kind == "bool":
            for name, shown in zip(names, (text, argparse.SUPPRESS), strict=False):
                group.add_argument(
                    name, dest=field.name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=shown
                )
        else:
            convert = {"int": int, "float": float, "str": str}[kind]
            metavar = {"int": "N", "float": "X", "str": "NAME"}[kind]
            group.add_argument(*names, type=convert, default=argparse.SUPPRESS, metavar=metavar, help=text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def run(args: argparse.Namespace) -> int:
    try:
        return _train(args)
    except SystemExit as leaving:
        # SIGTERM before the first step or after the last: there is no step at hand, so nothing is lost.
        if leaving.code != 128 + signal.SIGTERM:
            raise
        print(f"terminated between steps, nothing is lost; the same command goes on with {args.out}", flush=True)
        return 0


def _train(args: argparse.Namespace) -> int:
    from ..training.distributed import World
    from ..training.launch import plan_run, train

    plan = plan_run(args.out, _given(args), args.checkpoint, args.cache, args.add_instrument)
    first = World.from_environment().first
    if first:
        _announce(args.out, plan)
    with TrainingDisplay() as display:
        ended = train(
            args.cache,
            args.out,
            plan,
            tensorboard=args.tensorboard,
            display=display if first else None,
            command=" ".join(sys.argv),
        )
    if first and ended is not None:
        print(f"interrupted; the same command goes on from {args.out}", flush=True)
    return 130 if ended == signal.SIGINT else 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that the user gave: the file's, and before them the flags'."""
    values = read_settings_file(args.config) if args.config is not None else {}
    fields = (*dataclasses.fields(TrainingSettings), *dataclasses.fields(MetaTasNetConfig))
    values.update({field.name: getattr(args, field.name) for field in fields if hasattr(args, field.name)})
    return values


def _announce(out: Path, plan: Plan) -> None:
    """Print all settings."""
    for title, values in (("network", plan.config.to_dict()), ("training", plan.settings.to_dict())):
        print(f"{title}: " + ", ".join(f"{name}={value}" for name, value in values.items()))
    if plan.origin is not None:
        print(f"{out} goes on from {plan.origin}, step {(plan.checkpoint.steps or 0) if plan.checkpoint else 0}")
    for name, (before, now) in plan.changes.items():
        print(f"changed: {name} from {before} to {now}")
    sys.stdout.flush()
