"""``metatasnet-fast convert`` and ``export``: a model in another form."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import CheckpointError
from .options import add_json_option, refuse_existing
from .report import print_result

__all__ = ["add_convert_arguments", "add_export_arguments"]


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert a checkpoint file of the authors' program (.pt) into a folder of config.json and model.safetensors, or "
        "such a folder, or a bundled model, into a .pt file. Nothing is lost: a round trip is exact without --half."
    )
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file or folder, or a bundled model's name")
    parser.add_argument("target", metavar="TARGET", help="a name that ends in .pt or .pth, or else a folder to be made")
    parser.add_argument("--half", action="store_true", help="store a folder's weights in float16")
    parser.add_argument("--overwrite", action="store_true", help="replace a target that is there")
    add_json_option(parser, "one JSON object (target, files, bytes)")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> int:
    target = Path(args.target)
    refuse_existing(target, args.overwrite)
    if args.half and target.suffix in (".pt", ".pth"):
        raise CheckpointError("--half is for folders only: the authors' program reads float32.")
    from ..model import convert

    convert(args.source, target, half=args.half)
    files = [target] if target.is_file() else sorted(target.iterdir())
    size = sum(file.stat().st_size for file in files)
    print_result(args, f"{target}: {size / 1e6:.1f} MB", target=str(target), files=list(map(str, files)), bytes=size)
    return 0


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a model as a program of its own: .onnx for ONNX Runtime and others, .pt2 for torch.export.load. It takes "
        "the mixture at the sampling rate of every stage and gives the sources of the last; the metadata names them."
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
    add_json_option(parser, "one JSON object (target, format, backend, bytes)")
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    target = Path(args.target)
    refuse_existing(target, args.overwrite)
    from ..model import export, load_checkpoint

    export(load_checkpoint(args.model), target, args.format, args.backend)
    size, kind = target.stat().st_size, args.format or target.suffix.removeprefix(".")
    text = f"{target}: {size / 1e6:.1f} MB"
    print_result(args, text, target=str(target), format=kind, backend=args.backend, bytes=size)
    return 0
