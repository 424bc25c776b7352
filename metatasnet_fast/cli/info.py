"""Show what is installed, which backends and devices can be used, and why others cannot: ``metatasnet-fast info``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import textwrap
from typing import Any

from .. import __version__
from .._extras import version_of
from .common import add_json_option

__all__ = ["PACKAGES", "add_arguments", "collect"]

PACKAGES = {
    "av": "audio",
    "mutagen": "audio",
    "huggingface_hub": "hub",
    "tqdm": "cli",
    "museval": "evaluation",
    "tensorboard": "training",
    "fsspec": "catalogue",
    "pyarrow": "catalogue",
    "ray": "ray",
    "matplotlib": "plots",
    "triton": "triton",
    "pytest-benchmark": "bench",
}
"""Optional packages, and the extra that installs each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Versions, processor, devices, backends with the reason why one cannot serve, and bundled models."
    )
    add_json_option(parser, "one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = collect()
    print(json.dumps(found, indent=2) if args.json else _text(found))
    return 0


def collect() -> dict[str, Any]:
    """Return all that the command prints, ready for JSON."""
    import numpy
    import torch

    from ..backends import available_backends

    return {
        "metatasnet_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "packages": {name: {"version": version_of(name), "extra": extra} for name, extra in PACKAGES.items()},
        "cpu": _cpu(),
        "cuda": torch.version.cuda,
        "cuda_kernels": _cuda_kernels(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "backends": {
            name: {"summary": entry.summary, "reason": entry.reason} for name, entry in available_backends().items()
        },
        "auto": _automatic(),
        "models": _models(),
    }


def _cpu() -> dict[str, Any]:
    import torch

    from .. import native

    module = native.load()
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": [name for name, there in module.cpu_features().items() if there] if module else None,
        "compiled_isas": module.build_info()["isas"] if module else None,
        "unusable_isas": module.unusable_cpu_isas() if module else None,
        "compiler": module.build_info()["compiler"] if module else None,
        "reason": native.reason(),
    }


def _cuda_kernels() -> dict[str, Any]:
    from .. import native
    from ..backends.cuda import UNVERIFIED

    module, reason = native.load(), native.cuda_reason()
    built = module.cuda_build_info() if module and reason is None else {"architectures": "", "compiler": ""}
    return {
        "architectures": [name.removesuffix("-real") for name in built["architectures"].split(",") if name],
        "compiler": built["compiler"],
        "reason": reason,
        "not_yet_run_on_a_gpu": list(UNVERIFIED),
    }


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


def _automatic() -> dict[str, str]:
    """Return for each device what ``auto`` chooses for the authors' network, as ``backend in precision``, or the reason
    why no backend can run there."""
    import torch

    from ..backends import Request, resolve
    from ..config import MetaTasNetConfig
    from ..errors import BackendUnavailableError
    from ..precision import Precision

    taken = {}
    for name in ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]:
        device = torch.device(name)
        precision = Precision.default(device)
        try:
            backend = resolve("auto", Request(device, precision, False, MetaTasNetConfig()))
            taken[name] = f"{backend.name} in {precision.value}"
        except BackendUnavailableError as error:
            taken[name] = str(error)
    return taken


def _models() -> dict[str, dict[str, Any]]:
    from ..config import MetaTasNetConfig
    from ..model import bundled_models

    models = {}
    for name, folder in bundled_models().items():
        settings = json.loads((folder / "config.json").read_text("utf-8"))
        rate = MetaTasNetConfig.from_dict(settings["config"]).output_rate
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        models[name] = {"path": str(folder), "bytes": size, "output_rate": rate}
    return models


def _text(found: dict[str, Any]) -> str:
    from ..backends.gpu import no_gpu_reason

    cpu = found["cpu"]
    if cpu["reason"]:
        compiled = {"compiled": cpu["reason"]}
    else:
        compiled = {
            "features": ", ".join(cpu["features"]),
            "compiled": f"for {', '.join(cpu['compiled_isas'])} with {cpu['compiler']}",
            **{f"not {name}": reason for name, reason in cpu["unusable_isas"].items()},
        }
    gpus = {
        f"cuda:{index}": f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, compute {gpu['compute_capability']}"
        for index, gpu in enumerate(found["gpus"])
    }
    models = {
        name: f"{model['bytes'] / 1e6:.1f} MB, stems to {model['output_rate'] / 2000:g} kHz; {model['path']}"
        for name, model in found["models"].items()
    }
    sections: dict[str, dict[str, Any]] = {
        f"metatasnet-fast {found['metatasnet_fast']}": {
            "Python": f"{found['python']} on {found['platform']}",
            "torch": f"{found['torch']} (CUDA {found['cuda'] or 'not in this build'})",
            "NumPy": found["numpy"],
        },
        "optional packages": {
            name: entry["version"] or f"not installed; pip install 'metatasnet-fast[{entry['extra']}]'"
            for name, entry in found["packages"].items()
        },
        "processor": {"cores": f"{cpu['cores']}, torch uses {cpu['threads']} threads", **compiled},
        "GPUs": {**(gpus or {"none": no_gpu_reason()}), "CUDA kernels": _kernels_text(found["cuda_kernels"])},
        "backends": {
            **{
                name: entry["summary"] + (f"; not here: {entry['reason']}" if entry["reason"] else "")
                for name, entry in found["backends"].items()
            },
            **{f"auto on {device}": choice for device, choice in found["auto"].items()},
        },
        "bundled models": models or {"none": "name a checkpoint with --model"},
    }
    return "\n\n".join("\n".join([title, *map(_row, rows, rows.values())]) for title, rows in sections.items())


def _kernels_text(kernels: dict[str, Any]) -> str:
    unverified = kernels["not_yet_run_on_a_gpu"]
    verified = f"; not yet run on a GPU: {', '.join(unverified)}" if unverified else ""
    if kernels["reason"]:
        return f"not here: {kernels['reason']}"
    return f"for {', '.join(f'sm_{a}' for a in kernels['architectures'])} with {kernels['compiler']}{verified}"


def _row(name: str, value: object) -> str:
    wrap = textwrap.TextWrapper(shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    wrap.initial_indent, wrap.subsequent_indent = f"  {name:<17} ", " " * 20
    return wrap.fill(str(value))
