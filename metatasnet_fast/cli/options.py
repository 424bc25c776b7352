"""Options that several commands share, and the ``Separator`` that some of them describe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:
    from ..separation import Separator

__all__ = [
    "add_engine_options",
    "add_json_option",
    "add_page_options",
    "add_workers_option",
    "from_one",
    "make_separator",
    "model_name",
    "names",
    "refuse_existing",
]


RUN_FILES = ("best.pt", "last.pt", "failed.pt")
"""Names of the checkpoints of every run of ``train``."""


def from_one(text: str) -> int:
    """Parse an option whose value is a whole number of at least 1."""
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text}")


def names(text: str) -> list[str]:
    """Parse an option whose value is a list of names separated by commas."""
    return [name.strip() for name in text.split(",")]


def add_json_option(parser: argparse.ArgumentParser, what: str, nested: bool = False) -> None:
    """Add ``--json``; `nested` for a command below one that has it too, where it may stand before the inner one's name."""
    default = argparse.SUPPRESS if nested else False
    parser.add_argument("--json", action="store_true", default=default, help=f"print {what} instead of text")


def add_workers_option(parser: argparse.ArgumentParser, done: str) -> None:
    default = max(1, (os.cpu_count() or 2) // 2)
    parser.add_argument(
        "--workers", type=from_one, default=default, help=f"tracks {done} at once (default: half the cores)"
    )


def add_page_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup, place: str) -> None:
    """Add options that set ``page`` to ``file``, ``folder`` or None."""
    group = parser.add_mutually_exclusive_group()
    for flag, kind, text in (
        ("--page", "file", f"also write a page to listen to, {place}, one file"),
        ("--page-files", "folder", "the same with its sounds in a folder, for recordings longer than 10 minutes"),
    ):
        group.add_argument(flag, dest="page", action="store_const", const=kind, help=text)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and machine")
    group.add_argument(
        "--model",
        metavar="M",
        help="a checkpoint file or folder, a bundled model's name or a hub id owner/name (default: the bundled one)",
    )
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    group.add_argument("--offline", action="store_true", help="use only what is on this machine already")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    group.add_argument("--backend", default="auto", help="auto, or a name that `info` lists (default: auto)")
    group.add_argument(
        "--dtype", default="auto", help="auto, float64, float32, tf32, bfloat16 or float16 (default: auto)"
    )
    group.add_argument(
        "--mode", default="fast", help="fast, or reference: as the authors evaluate, slower (default: fast)"
    )


def make_separator(args: argparse.Namespace, mixture_consistency: bool = False) -> tuple[Separator, str]:
    """Return the separator that the options describe, and the name of its model.

    Raises:
        MetaTasNetError: as ``Separator``; or if no model is named and none is bundled.
    """
    from ..model import default_model, load_checkpoint
    from ..separation import Separator

    model = args.model or default_model()
    network = load_checkpoint(model, revision=args.revision, offline=args.offline)
    separator = Separator(
        network, args.device, args.backend, args.dtype, args.mode, mixture_consistency=mixture_consistency
    )
    return separator, model_name(model)


def model_name(model: str) -> str:
    """Return the name of the folder of a model's stems: the checkpoint's name without its suffix.

    A checkpoint that ``train`` wrote is named after the folder of its run, too, as in ``run-best``.
    """
    path = Path(model)
    if not path.exists():
        return model
    path = path.resolve()
    if path.is_dir():
        return path.name
    if path.name in RUN_FILES and path.parent.name:
        return f"{path.parent.name}-{path.stem}"
    return path.parent.name if path.name in ("config.json", "model.safetensors") else path.stem


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raise :class:`CheckpointError` if a target is there that is not to be replaced."""
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists; choose another name, or replace it with --overwrite.")
