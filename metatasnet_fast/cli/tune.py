"""``metatasnet-fast tune``: measure which tiles, warps and stages are fastest on this GPU, and keep them for later runs."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .._io import reporting_write_errors, write_atomically
from ..errors import BackendUnavailableError, ConfigError, OutputError
from .options import add_json_option, from_one
from .report import print_result

if TYPE_CHECKING:
    import torch

    from ..benchmark.timing import Timer
    from ..kernels.candidates import Subject

__all__ = ["add_arguments", "tune_subject"]

WORTHWHILE = 0.97
"""A configuration is kept if it takes at most this share of the default's time; a smaller gain is noise."""
DIFFERENCE = 0.05
"""Relative difference from the default's result above which a configuration counts as wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time the Triton kernels of the masking network at the authors' sizes in all configurations they may have, "
        "and write those that are faster than the defaults to a file that every later run on such a GPU reads. Nothing is "
        "tuned without this command, and results do not depend on it beyond rounding."
    )
    parser.add_argument("--device", default="cuda", help="the GPU (default: cuda)")
    parser.add_argument("--dtype", default="bfloat16", help="float32, tf32 or bfloat16 (default: bfloat16)")
    parser.add_argument("--items", type=from_one, default=12, help="items of the batch to time with (default: 12)")
    parser.add_argument(
        "--frames", type=from_one, default=3200, help="latent frames to time with, 400 a second (default: 3200)"
    )
    parser.add_argument("--rounds", type=from_one, default=10, help="times each configuration is timed (default: 10)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        help="begin no other kernel after so long (default: all are measured)",
    )
    add_json_option(parser, "one JSON object (device, precision, file, kernels measured, faster and skipped, entries)")
    parser.add_argument("-o", "--out", metavar="FILE", help="write here (default: where later runs look for it)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from ..backends import Request, get_backend
    from ..benchmark.timing import make_timer
    from ..config import MetaTasNetConfig
    from ..precision import Precision

    device, precision = torch.device(args.device), Precision.parse(args.dtype)
    backend = get_backend("triton")
    reason = backend.unavailable() or backend.supports(Request(device, precision))
    if reason:
        raise BackendUnavailableError(f"There is nothing to tune on {device} in {precision.value}: {reason}")
    from ..kernels import tuned
    from ..kernels.candidates import Sizes, subjects

    config = MetaTasNetConfig()
    sizes = Sizes(config.B, config.H, len(config.stages[0].dilations), tuple(stage.N for stage in config.stages))
    name = tuned.device_name(device) or device.type
    path = Path(args.out) if args.out else tuned.user_folder() / tuned.file_name(name)
    known = read(path)
    began, measured, skipped, faster = time.monotonic(), 0, 0, 0
    with torch.no_grad(), torch.device(device):
        for subject in subjects(sizes, precision.storage, precision is Precision.tf32, device, args.items, args.frames):
            if time.monotonic() - began > args.seconds:
                skipped += 1
                continue
            # Each subject needs a new timer, as a timer keeps a graph for every configuration.
            timer = make_timer(device, graph=True, one_pool=True)
            found = tune_subject(subject, timer, args.rounds, lambda text: print(text, file=sys.stderr, flush=True))
            measured, faster = measured + 1, faster + (found is not None)
            this = {"kernel": subject.kernel, "sizes": subject.sizes, "precision": precision.value}
            known = [entry for entry in known if any(entry[key] != value for key, value in this.items())]
            known += [{**found, "precision": precision.value}] if found else []
            write(path, name, known, precision.value, args)
    late = f"; {skipped} kernels were left out after {args.seconds:g} s" if skipped else ""
    print_result(
        args,
        f"{faster} of {measured} kernels have a configuration faster than the defaults, in {path}{late}",
        device=name,
        precision=precision.value,
        file=str(path),
        measured=measured,
        faster=faster,
        skipped=skipped,
        entries=known,
    )
    return 0


def tune_subject(subject: Subject, timer: Timer, rounds: int, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the fastest configuration of a kernel if it is clearly faster, by medians of alternating rounds.

    Configurations that do not fit the device, or whose result is not the default's, are left out.
    """
    from ..kernels.tuned import applied

    expected = subject.run()
    usable: list[dict[str, int]] = [{}]
    for options in subject.candidates:
        try:
            with applied(subject.kernel, options):
                if _difference(subject.run(), expected) <= DIFFERENCE:
                    usable.append(options)
        except Exception as error:  # Triton has no common type for errors of the compiler and the device
            say(f"{subject.kernel} {subject.sizes}: {options} left out: {type(error).__name__}")
    seconds: list[list[float]] = [[] for _ in usable]

    def call(options: dict[str, int]) -> Callable[[], Any]:
        def launch() -> None:
            with applied(subject.kernel, options):
                subject.run()

        return launch

    calls = [call(options) for options in usable]
    for _ in range(rounds):
        for times, function in zip(seconds, calls, strict=True):
            times.append(timer(function)[0])
    medians = [sorted(times)[len(times) // 2] for times in seconds]
    best = min(range(len(usable)), key=medians.__getitem__)
    say(
        f"{subject.kernel} {subject.sizes}: {medians[0] * 1e6:.1f} us, best {medians[best] * 1e6:.1f} us with {usable[best]}"
    )
    if best == 0 or medians[best] > WORTHWHILE * medians[0]:
        return None
    return {
        "kernel": subject.kernel,
        "sizes": subject.sizes,
        "options": usable[best],
        "microseconds": round(medians[best] * 1e6, 2),
        "default_microseconds": round(medians[0] * 1e6, 2),
    }


def _difference(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def read(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file; none if there is no file."""
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["entries"]
        for entry in entries:
            entry["precision"]  # noqa: B018  an entry without one is no entry
        return entries
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of tuned configurations ({error}); remove it or name another.") from error


def write(path: Path, device: str, entries: list[dict[str, Any]], precision: str, args: argparse.Namespace) -> None:
    """Replace the file in one step."""
    import torch
    import triton

    found = {
        "device": device,
        "metatasnet_fast": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.date.today().isoformat(),
        "command": f"metatasnet-fast tune --dtype {precision} --items {args.items} --frames {args.frames}",
        "entries": entries,
    }
    with reporting_write_errors(path, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found, indent=1) + "\n")
