"""``metatasnet-fast models``: models by name, those of this installation and those that can be fetched."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

__all__ = ["add_parser"]

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


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "models",
        help="list models by name, fetch or add one",
        description="List the models that --model takes by name; fetch or add one.",
        epilog=EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per model")
    parser.set_defaults(run=_list)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    fetch = actions.add_parser("fetch", help="fetch a known model")
    fetch.add_argument("name", metavar="NAME")
    fetch.set_defaults(run=_fetch)
    add = actions.add_parser("add", help="give a file or an address a name, and fetch it")
    add.add_argument("name", metavar="NAME")
    add.add_argument("location", metavar="FILE|URL", help="a checkpoint of the authors' format")
    add.add_argument("--sha256", help="what its checksum must be")
    add.set_defaults(run=_add)


def _list(args: argparse.Namespace) -> int:
    from ..model import bundled_models, default_model
    from ..model.registry import known_models

    for name, folder in bundled_models().items():
        if args.json:
            print(json.dumps({"name": name, "bundled": True, "here": True, "path": str(folder)}))
        else:
            print(f"{name}: comes with this installation{', used by default' if name == default_model() else ''}")
    for model in known_models().values():
        here = model.path.is_file()
        if args.json:
            print(json.dumps({**dataclasses.asdict(model), "bundled": False, "here": here, "path": str(model.path)}))
            continue
        print(f"{model.name}: {model.title or model.url}")
        print(f"  {model.path if here else f'not here; `metatasnet-fast models fetch {model.name}` fetches it'}")
        print(f"  licence: {model.licence}; scores: {model.scores}")
        print(f"  SHA-256: {model.sha256 or 'pinned at the first download'}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from ..model.registry import fetch_model

    return _say(fetch_model(args.name, _progress()))


def _add(args: argparse.Namespace) -> int:
    from ..model.registry import add_model

    return _say(add_model(args.name, args.location, args.sha256, _progress()))


def _say(model: Any) -> int:
    print(f"{model.path}: {model.bytes / 1e6:.1f} MB, SHA-256 {model.sha256}; use it as --model {model.name}")
    return 0


def _progress() -> Any:
    if not sys.stderr.isatty():
        return None

    def show(have: int, total: int | None) -> None:
        of = "" if total is None else f" of {total / 1e6:.1f}"
        print(f"\r{have / 1e6:.1f}{of} MB", end="\n" if have == total else "", file=sys.stderr, flush=True)

    return show
