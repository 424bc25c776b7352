"""Share code between commands: options, the ``Separator`` that the options describe, checks of paths, the output.

Results are sentences or JSON objects on standard output; progress, errors and warnings go to standard error.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .._io import to_json
from .._terminal import ProgressBar, say
from ..errors import CheckpointError, MetaTasNetError, OutputError

if TYPE_CHECKING:
    from ..separation import Progress, Separation, Separator
    from .files import Track

__all__ = [
    "ProgressDisplay", "Report", "TrackReport", "add_engine_options", "add_json_option", "add_page_options",
    "add_workers_option", "check_writable", "from_one", "make_separator", "model_name", "names", "print_result",
    "refuse_existing", "sentence_of", "tell",
]  # fmt: skip

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
    """Add ``--json``. ``nested`` is for a subcommand whose parent command has ``--json``, too: then the user may write
    the flag before or after the subcommand's name."""
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
        MetaTasNetError: if no model is named or bundled, it cannot be loaded, or ``Separator`` refuses the options.
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
    """Raise :class:`CheckpointError` if the target exists, unless ``overwrite`` is set."""
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists; choose another name, or replace it with --overwrite.")


def check_writable(folder: Path) -> None:
    """Create the folder and a temporary file in it, before any work; raise :class:`OutputError` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"Nothing can be written to the folder {folder} ({error.strerror}); choose another."
        ) from error


logger = logging.getLogger("metatasnet_fast")


def print_result(args: argparse.Namespace, text: str, **fields: Any) -> None:
    """Print the result of a command: a sentence, or with ``--json`` one object of ``fields`` instead."""
    print(to_json(fields) if args.json else text)


def tell(text: str, kind: str = "warning", bar: ProgressBar | None = None) -> None:
    """Print a warning or an error on standard error, above a progress bar if there is one."""
    line = f"metatasnet-fast: {kind}: {_one_line(text)}"
    say(line, sys.stderr) if bar is None else bar.write(line, sys.stderr)


def sentence_of(error: Exception) -> str:
    """Return one sentence that says what went wrong; for an unexpected error, it asks the user to report the error."""
    if isinstance(error, MetaTasNetError):
        return str(error)
    if isinstance(error, OSError):
        where = "" if error.filename is None else f" {os.fsdecode(error.filename)}"
        reason = error.strerror or error
        return f"The system refuses{where} ({reason}): check the path, its permissions and the disk's room."
    logger.debug("unexpected", exc_info=error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__} ({text}): this is a fault of metatasnet-fast; please report it with the file."


class Report:
    """Printer of results on standard output, and of errors and warnings on standard error.

    If a stream cannot be written, work continues. With ``as_json``, standard output gets one line for each input file:
    a JSON object with ``status`` (``done``, ``skipped`` or ``failed``), ``input``, ``track`` and ``error`` (null, or a
    sentence). If the file did not fail, the object also has ``files``, the path of each stem, and ``kept``, the stems
    that existed before. If the file is done, the object also has all fields of ``Separation.report()``.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._counts = {"done": 0, "skipped": 0, "failed": 0}
        self._audio = self._time = 0.0

    @property
    def exit_code(self) -> int:
        return 3 if self._counts["failed"] else 0

    def say(self, line: str) -> None:
        """Print a text, unless the output is JSON."""
        if not self._as_json:
            say(_one_line(line), sys.stdout)

    def warn(self, text: str) -> None:
        tell(text)

    def done(self, track: Track, separation: Separation, files: Mapping[str, Path]) -> None:
        self._audio += separation.duration
        self._time += separation.seconds
        kept = [stem for stem in files if stem not in separation.files]
        for warning in separation.warnings:
            self.warn(f"{track.label}: {warning}")
        first = next(iter(separation.files.values()))
        self.say(
            f"{track.label}: {', '.join(separation.files)} in {first.parent}; "
            f"{_speed(separation.duration, separation.seconds)}" + (f"; {', '.join(kept)} kept" if kept else "")
        )
        self._emit("done", track, **{**separation.report(), "files": _as_text(files)}, kept=kept)

    def skipped(self, track: Track, files: Mapping[str, Path]) -> None:
        folder = next(iter(files.values())).parent
        self.say(f"{track.label}: skipped, its stems are in {folder}; --overwrite makes them again")
        self._emit("skipped", track, files=_as_text(files), kept=list(files))

    def failed(self, track: Track, reason: str) -> None:
        tell(reason, "error")
        self._emit("failed", track, error=reason)

    def finish(self, engine: str) -> None:
        """If there were several files, print one line about all of them; ``engine`` describes the separator."""
        if sum(self._counts.values()) < 2:
            return
        counts = ", ".join(f"{count} {status}" for status, count in self._counts.items())
        self.say(counts + (f"; {_speed(self._audio, self._time)} ({engine})" if self._time else ""))

    def _emit(self, status: str, track: Track, **more: Any) -> None:
        self._counts[status] += 1
        if self._as_json:
            place = {"input": track.input or str(track.path), "track": track.name}
            say(to_json({"status": status, **place, "error": None, **more}), sys.stdout)


class Outcome(Protocol):
    """The result of ``prepare``, ``score`` or ``evaluate`` for one track: a frozen dataclass with these fields."""

    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def error(self) -> str | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...


class TrackReport:
    """Printer of a line or a JSON object for each track; failures and warnings always go to standard error.

    If a progress bar is shown, the lines are left out.
    """

    def __init__(self, as_json: bool, total: int | None = None, bar: ProgressBar | None = None) -> None:
        self._json, self._total, self._bar, self._failed, self._done = as_json, total, bar, list[str](), 0

    def add(self, outcome: Outcome, line: str, record: Mapping[str, Any]) -> None:
        self._done += 1
        if outcome.error is not None:
            self._failed.append(outcome.name)
            named = outcome.error if outcome.name in outcome.error else f"{outcome.name}: {outcome.error}"
            tell(named, "error", self._bar)
        for warning in outcome.warnings:
            tell(f"{outcome.name}: {warning}", "warning", self._bar)
        if self._bar is not None:
            self._bar.update(self._done)
        if self._json:
            say(to_json(record), sys.stdout) if self._bar is None else self._bar.write(to_json(record), sys.stdout)
        elif outcome.error is None and not (self._bar is not None and self._bar.is_bar):
            place = f"[{self._done}{'' if self._total is None else f'/{self._total}'}]"
            say(f"{place} {outcome.name}: {'kept' if outcome.status == 'kept' else line}", sys.stdout)

    def finish(self) -> int:
        """Print the names of the tracks that failed; return the exit code: 3 if any failed, else 0."""
        if self._failed:
            say(f"metatasnet-fast: {len(self._failed)} tracks failed: {', '.join(self._failed)}", sys.stderr)
        return 3 if self._failed else 0


class ProgressDisplay(ProgressBar):
    """Progress bar of one track, shown inside a ``with`` statement; call the object with each :class:`Progress`."""

    def __init__(self, label: str) -> None:
        super().__init__(label, "s")
        self._began = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        total = progress.seconds_total
        if total is None:
            return
        done = progress.fraction * total
        self.update(done, f"{done / max(time.monotonic() - self._began, 1e-3):.1f} x real time", total)


def _one_line(text: str) -> str:
    """Escape the line breaks of a text, since file names may contain line breaks."""
    return text.replace("\n", "\\n")


def _speed(audio: float, time: float) -> str:
    return f"{audio:.1f} s of audio in {time:.1f} s, {audio / time:.1f} x real time"


def _as_text(files: Mapping[str, Path]) -> dict[str, str]:
    return {stem: str(path) for stem, path in files.items()}
