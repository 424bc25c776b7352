"""``metatasnet-fast convert``: checkpoints of the authors' program to folders, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .report import print_result

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "convert",
        help="convert a checkpoint to or from the authors' format",
        description=(
            "Convert a checkpoint file of the authors' program (.pt) into a folder of config.json and model.safetensors, or "
            "such a folder, or a bundled model, into a .pt file. Nothing is lost: a round trip is exact without --half."
        ),
    )
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file or folder, or a bundled model's name")
    parser.add_argument("target", metavar="TARGET", help="a name that ends in .pt or .pth, or else a folder to be made")
    parser.add_argument("--half", action="store_true", help="store a folder's weights in float16")
    parser.add_argument("--overwrite", action="store_true", help="replace a target that is there")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of text: target, its files, bytes"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    target = Path(args.target)
    if target.exists() and not args.overwrite:
        raise CheckpointError(f"{target} exists; choose another name, or replace it with --overwrite.")
    if args.half and target.suffix in (".pt", ".pth"):
        raise CheckpointError("--half is for folders only: the authors' program reads float32.")
    from ..model import convert

    convert(args.source, target, half=args.half)
    files = [target] if target.is_file() else sorted(target.iterdir())
    size = sum(file.stat().st_size for file in files)
    print_result(args, f"{target}: {size / 1e6:.1f} MB", target=str(target), files=list(map(str, files)), bytes=size)
    return 0
