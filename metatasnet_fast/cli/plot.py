"""``metatasnet-fast plot``: draw a training run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .report import print_result

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "plot",
        help="draw a training run",
        description="Draw loss, scores of every stem and learning rate of a run, while it goes on or afterwards.",
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="the folder that `train` was given as --out")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the image (default: RUN/run.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text: run, image")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..training.plot import plot_run

    image = plot_run(args.folder, args.output or args.folder / "run.png")
    print_result(args, str(image), run=str(args.folder), image=str(image))
    return 0
