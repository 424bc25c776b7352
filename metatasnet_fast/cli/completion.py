"""``metatasnet-fast completion``: a script by which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._extras import require

__all__ = ["add_arguments"]

EPILOG = """
bash reads it from the first of these places, zsh from the second if fpath names the folder before compinit:

  metatasnet-fast completion bash \\
      > ~/.local/share/bash-completion/completions/metatasnet-fast
  metatasnet-fast completion zsh > ~/.zfunc/_metatasnet-fast
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print a script by which a shell completes commands, options and files after a press of Tab."
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .main import build_parser

    shtab = require("shtab", "Shell completion")
    parser = build_parser()
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Complete with file names the value of every argument that is a path or a text without choices."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in set(action.choices.values()):
                _complete_files(each, files)
        elif action.nargs != 0 and action.choices is None and action.type in (None, Path):
            action.complete = files  # type: ignore[attr-defined]
