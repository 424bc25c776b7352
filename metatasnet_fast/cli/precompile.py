"""``metatasnet-fast precompile``: compile a model's Triton kernels before its first use."""

from __future__ import annotations

import argparse
import os
import re

from ..errors import BackendUnavailableError, ConfigError
from .options import add_json_option, from_one
from .report import print_result

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .._extras import require
    from .._terminal import ProgressBar
    from ..model import default_model, load_checkpoint
    from ..model.precompile import precompile
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
    """Return the compute capability to compile for, without its point."""
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
