"""Find the fastest tiles, warps and stages on this GPU, and keep them for later runs: ``metatasnet-fast tune``.

``precompile`` compiles the Triton kernels of a model before the model's first use.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .._io import reporting_write_errors, write_atomically
from ..errors import BackendUnavailableError, ConfigError, OutputError
from .common import add_json_option, from_one, print_result

if TYPE_CHECKING:
    from ..benchmark.machine import Timer
    from ..kernels.tuned import Subject

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
    from ..benchmark.machine import make_timer
    from ..config import MetaTasNetConfig
    from ..precision import Precision

    device, precision = torch.device(args.device), Precision.parse(args.dtype)
    backend = get_backend("triton")
    reason = backend.unavailable() or backend.supports(Request(device, precision))
    if reason:
        raise BackendUnavailableError(f"There is nothing to tune on {device} in {precision.value}: {reason}")
    from ..kernels import tuned
    from ..kernels.tuned import Sizes, subjects

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
    """Return the fastest configuration of a kernel; None if it is not clearly faster than the default.

    Times are medians over alternating rounds. Configurations that do not fit the device, or whose result differs too
    much from the default's (see DIFFERENCE), are left out.
    """
    from ..kernels.tuned import applied

    expected = subject.run()
    usable: list[dict[str, int]] = [{}]
    for options in subject.candidates:
        try:
            with applied(subject.kernel, options):
                difference = (subject.run().double() - expected.double()).norm() / expected.double().norm()
                if float(difference) <= DIFFERENCE:
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


def read(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file; an empty list if there is no file."""
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["entries"]
        for entry in entries:
            entry["precision"]  # noqa: B018  an entry without a precision is no entry
        return entries
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of tuned configurations ({error}); remove it or name another.") from error


def write(path: Path, device: str, entries: list[dict[str, Any]], precision: str, args: argparse.Namespace) -> None:
    """Write the entries and how they were measured; the file is replaced in one step."""
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


def add_precompile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compile the Triton kernels of a model into Triton's cache (TRITON_CACHE_DIR), on all cores, so that its first use "
        "does not wait for them. With --target no GPU is needed: an image for NVIDIA GPUs can be built anywhere."
    )
    parser.add_argument(
        "--model", metavar="M", help="a checkpoint file or folder, or a bundled model's name (default: the bundled one)"
    )
    parser.add_argument("--dtype", default="bfloat16", help="float32, tf32 or bfloat16 (default: bfloat16)")
    parser.add_argument("--training", action="store_true", help="also the kernels of a training step")
    parser.add_argument(
        "--target",
        metavar="SM",
        help="compile for these GPUs, such as sm_80 or sm_90 (default: the GPU of this machine)",
    )
    parser.add_argument("--workers", type=from_one, help="programs compiled at once (default: one for each core)")
    add_json_option(parser, "one JSON object (target, precision, training, programs)")
    parser.set_defaults(run=run_precompile)


def run_precompile(args: argparse.Namespace) -> int:
    from .._extras import require
    from .._terminal import ProgressBar
    from ..model import default_model, load_checkpoint
    from ..model.programs import precompile
    from ..precision import Precision

    require("triton", "Compiling kernels")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ConfigError("TRITON_INTERPRET=1 lets Triton interpret its kernels: unset it to compile them.")
    precision = Precision.parse(args.dtype)
    if precision not in (Precision.float32, Precision.tf32, Precision.bfloat16):
        raise ConfigError(f"The backend triton has no {precision.value}: choose float32, tf32 or bfloat16.")
    capability = _capability(args.target)
    config = load_checkpoint(args.model or default_model()).config
    with ProgressBar("compiling", "programs") as bar:
        number = precompile(
            config, precision, capability, args.training, args.workers, lambda done, total: bar.update(done, "", total)
        )
    print_result(
        args,
        f"{number} programs for sm_{capability} in {precision.value} are in Triton's cache",
        target=f"sm_{capability}",
        precision=precision.value,
        training=args.training,
        programs=number,
    )
    return 0


def _capability(target: str | None) -> int:
    """Return the compute capability to compile for as a whole number, such as 90 for 9.0."""
    import torch

    from ..backends import get_backend

    if target is None:
        if reason := get_backend("triton").unavailable():
            raise BackendUnavailableError(f"There is no GPU to compile for: {reason} Or name one with --target sm_90.")
        if torch.version.hip or not torch.cuda.is_available():
            raise BackendUnavailableError(
                "Kernels are compiled ahead of their use for NVIDIA GPUs only: name one with --target."
            )
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor
    found = re.fullmatch(r"(?:sm_)?(\d{2,3})", target)
    if found is None or int(found[1]) < 80:
        raise ConfigError(f"{target} is no target: name a compute capability from 8.0 on, such as sm_80 or sm_90.")
    return int(found[1])
