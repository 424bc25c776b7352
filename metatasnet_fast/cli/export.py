"""``metatasnet-fast export``: a network as a program for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .report import print_result

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write a model as ONNX, or as a program of torch.export",
        description=(
            "Write a model as a program of its own: .onnx for ONNX Runtime and others, .pt2 for torch.export.load. It takes "
            "the mixture at the sampling rate of every stage and gives the sources of the last; the metadata names them."
        ),
    )
    parser.add_argument("model", metavar="MODEL", help="a checkpoint file or folder, or a bundled model's name")
    parser.add_argument("target", metavar="TARGET", help="the file to write")
    parser.add_argument("--format", choices=("onnx", "pt2"), help="what to write (default: what TARGET ends in)")
    parser.add_argument(
        "--backend",
        choices=("reference", "triton"),
        default="reference",
        help="whose operators a .pt2 has; triton's need metatasnet_fast where it is loaded (default: reference)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of text: target, format, backend, bytes"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    target = Path(args.target)
    if target.exists() and not args.overwrite:
        raise CheckpointError(f"{target} exists; choose another name, or replace it with --overwrite.")
    from ..model import export, load_checkpoint

    export(load_checkpoint(args.model), target, args.format, args.backend)
    size, kind = target.stat().st_size, args.format or target.suffix.removeprefix(".")
    text = f"{target}: {size / 1e6:.1f} MB"
    print_result(args, text, target=str(target), format=kind, backend=args.backend, bytes=size)
    return 0
