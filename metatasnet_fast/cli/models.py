"""List, fetch and add models by name: ``metatasnet-fast models``.

``convert`` and ``export`` write a model in another form.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .common import add_json_option, print_result, refuse_existing

__all__ = ["add_arguments", "add_convert_arguments", "add_export_arguments"]

EPILOG = """
`fetch authors` gets the weights that the network's authors published, from the address in their README; no download was ever
tried by those who wrote this command, so the link may be dead. The SHA-256 of the first download is pinned in
~/.cache/metatasnet-fast/models.json (METATASNET_HOME names another folder); another file is refused later. A download that is
cut off goes on where it ended.

  metatasnet-fast models
  metatasnet-fast models fetch authors
  metatasnet-fast separate song.mp3 --model authors
  metatasnet-fast models add mine run/best.pt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = "List the models that --model takes by name; fetch or add one.", EPILOG
    add_json_option(parser, "one JSON object per model")
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    fetch = actions.add_parser("fetch", help="fetch a known model")
    add = actions.add_parser("add", help="give a file or an address a name, and fetch it")
    for action in (fetch, add):
        action.add_argument("name", metavar="NAME")
        add_json_option(action, "one JSON object, the model's as `models --json` prints it,", nested=True)
        action.set_defaults(run=_fetch)
    add.add_argument("location", metavar="FILE|URL", help="a checkpoint of the authors' format")
    add.add_argument("--sha256", help="what its checksum must be")


def _list(args: argparse.Namespace) -> int:
    from ..model import bundled_models, default_model
    from ..model.registry import known_models

    for name, folder in bundled_models().items():
        text = f"{name}: comes with this installation{', used by default' if name == default_model() else ''}"
        print_result(args, text, name=name, bundled=True, here=True, path=str(folder))
    for model in known_models().values():
        fields = _fields(model)
        place = model.path if fields["here"] else f"not here; `metatasnet-fast models fetch {model.name}` fetches it"
        lines = [
            f"{model.name}: {model.title or model.url}",
            f"  {place}",
            f"  licence: {model.licence}; scores: {model.scores}",
            f"  SHA-256: {model.sha256 or 'pinned at the first download'}",
        ]
        print_result(args, "\n".join(lines), **fields)
    return 0


def _fields(model: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(model), "bundled": False, "here": model.path.is_file(), "path": str(model.path)}


def _fetch(args: argparse.Namespace) -> int:
    """Fetch a model; if the user gives a location, add the model first."""
    from ..model.registry import add_model, fetch_model

    if "location" in args:
        model = add_model(args.name, args.location, args.sha256, _progress())
    else:
        model = fetch_model(args.name, _progress())
    text = f"{model.path}: {(model.bytes or 0) / 1e6:.1f} MB, SHA-256 {model.sha256}; use it as --model {model.name}"
    print_result(args, text, **_fields(model))
    return 0


def _progress() -> Any:
    if not sys.stderr.isatty():
        return None

    def show(have: int, total: int | None) -> None:
        of = "" if total is None else f" of {total / 1e6:.1f}"
        print(f"\r{have / 1e6:.1f}{of} MB", end="\n" if have == total else "", file=sys.stderr, flush=True)

    return show


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Convert a checkpoint file of the authors' program (.pt) into a folder of config.json and model.safetensors, or "
        "such a folder, or a bundled model, into a .pt file. Nothing is lost: a round trip is exact without --half."
    )
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint file or folder, or a bundled model's name")
    parser.add_argument("target", metavar="TARGET", help="a name that ends in .pt or .pth, or else a folder to be made")
    parser.add_argument("--half", action="store_true", help="a folder to publish: float16, no optimiser")
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
