"""The options that choose a model and what it runs on, and the ``Separator`` that they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..separation import Separator

__all__ = ["add_engine_options", "make_separator", "model_name"]


RUN_FILES = ("best.pt", "last.pt", "failed.pt")
"""Names that ``train`` gives to the checkpoints of every run."""


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
    """The separator that the options describe, and the name of its model.

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

    One that ``train`` wrote is called by the folder of its run too, as in ``run-best``.
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
