"""Parse a command line, run the subcommand, report an error in one sentence, return the exit code; complete in a shell.

Exit codes: 0 all done; 2 the command cannot be carried out; 3 some files failed, the rest is done; 130 interrupted
(Ctrl-C); 141 the reader of the output has closed it; 143 terminated (SIGTERM). No file is ever half-written. Codes of
single commands: 1 ``bench`` or ``selftest`` found a wrong result or a regression; 4 ``catalogue run`` stopped itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from .._extras import require
from .._terminal import discard, handling, say
from ..errors import MetaTasNetError
from .common import sentence_of, tell

__all__ = ["main"]

PROGRAM = "metatasnet-fast"

COMMANDS = {
    "separate": ("separate", "add_arguments", "separate recordings into stems"),
    "catalogue": ("catalogue", "add_arguments", "separate any number of recordings, resumably"),
    "demo": ("separate", "add_demo_arguments", "separate the excerpt that comes with the package"),
    "score": (
        "evaluate",
        "add_score_arguments",
        "score stems of any separator; `score compare A B` compares two sets of scores",
    ),
    "evaluate": (
        "evaluate",
        "add_evaluate_arguments",
        "separate MUSDB18, or other tracks with stems, and score the result",
    ),
    "info": ("info", "add_arguments", "say what is installed and what it can run on"),
    "models": ("models", "add_arguments", "list models by name, fetch or add one"),
    "convert": ("models", "add_convert_arguments", "convert a checkpoint to or from the authors' format"),
    "export": ("models", "add_export_arguments", "write a model as ONNX, or as a program of torch.export"),
    "prepare": ("training", "add_prepare_arguments", "make the cache of tracks that training reads"),
    "train": ("training", "add_train_arguments", "train a network, resumably"),
    "plot": ("training", "add_plot_arguments", "draw a training run"),
    "bench": ("bench", "add_arguments", "measure the speed on this machine"),
    "tune": ("tune", "add_arguments", "measure the fastest kernel configurations of this GPU"),
    "precompile": ("tune", "add_precompile_arguments", "compile a model's Triton kernels before its first use"),
    "selftest": ("bench", "add_selftest_arguments", "prove on this machine that the results are right"),
    "completion": ("main", "add_completion_arguments", "print a script that completes this command in a shell"),
}
"""For each command, the module and the function that complete its parser, and its line of help.

The function sets ``run``, a function of the parsed arguments that returns the exit code.
"""


class Formatter(argparse.HelpFormatter):
    """Help formatter that fills paragraphs to the terminal's width, but keeps lines that begin with a space."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        pieces = re.findall(r"(?:^(?! ).+\n?)+|^.*\n?", text.strip("\n"), re.MULTILINE)
        fill = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False).fill
        filled = [piece.rstrip("\n") if piece[:1] in ("", " ") else fill(piece) for piece in pieces]
        return "\n".join(filled)


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one sentence, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, **settings})

    def error(self, message: str) -> NoReturn:
        tell(f"{message.rstrip('.')}; see {self.prog} --help.", "error")
        raise SystemExit(2)


def _open_closed_streams() -> None:
    """Open the null device in place of standard input, output or error, where one of these is closed.

    Otherwise the next file that is opened gets the number of the closed stream, and C code prints into that file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def build_parser(commands: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of all commands. Only ``commands`` get their arguments, so only their modules are imported."""
    parser = Parser(prog=PROGRAM, description="Separate music into drums, bass, other and vocals with Meta-TasNet.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    choices = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    complete = set(commands)
    for name, (module, function, text) in COMMANDS.items():
        command = choices.add_parser(name, help=text)
        if name in complete:
            getattr(importlib.import_module(f".{module}", __package__), function)(command)
    return parser


def _unwinding_when_terminated() -> contextlib.AbstractContextManager[None]:
    """Make SIGTERM leave every ``with`` statement properly, so that half-written files are removed."""

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    return handling({signal.SIGTERM: leave})


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default that of the process) and return its exit code."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that is not valid text must not stop the run.
            stream.reconfigure(errors="backslashreplace")
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        args = build_parser([word for word in words if not word.startswith("-")][:1]).parse_args(words)
        run: Callable[[argparse.Namespace], int] = args.run
        with _unwinding_when_terminated():
            code = run(args)
        # Flush here: an error at the end of the interpreter would print a message that users cannot understand.
        sys.stdout.flush()
        return code
    except SystemExit as leaving:  # raised by argparse (--help, --version, errors) and after SIGTERM
        return leaving.code if isinstance(leaving.code, int) else 0
    except MetaTasNetError as error:
        tell(str(error), "error")
        return 2
    except BrokenPipeError:
        discard(sys.stdout)
        discard(sys.stderr)
        return 128 + getattr(signal, "SIGPIPE", 13)
    except OSError as error:  # pathlib raises this even in a test whether a file exists
        tell(sentence_of(error), "error")
        return 2
    except KeyboardInterrupt:
        say(f"{PROGRAM}: interrupted; files that were finished are kept.", sys.stderr)
        return 130


COMPLETION_EPILOG = """
bash reads it from the first of these places, zsh from the second if fpath names the folder before compinit:

  metatasnet-fast completion bash \\
      > ~/.local/share/bash-completion/completions/metatasnet-fast
  metatasnet-fast completion zsh > ~/.zfunc/_metatasnet-fast
"""


def add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print a script by which a shell completes commands, options and files after a press of Tab."
    parser.epilog = COMPLETION_EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=run_completion)


def run_completion(args: argparse.Namespace) -> int:
    shtab = require("shtab", "Shell completion")
    parser = build_parser()
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Let the shell complete file names for every argument that is a path, or a text without choices."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in set(action.choices.values()):
                _complete_files(each, files)
        elif action.nargs != 0 and action.choices is None and action.type in (None, Path):
            action.complete = files  # type: ignore[attr-defined]
