"""The jobs whose launches are counted, at the default sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from metatasnet_fast.backends import Backend
from metatasnet_fast.backends.cache import prepare_all
from metatasnet_fast.backends.watch import collect_parameters
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.model.engine import Engine
from metatasnet_fast.model.precompile import record
from metatasnet_fast.precision import Precision

from . import cuda_launches
from .predict import Gpu

__all__ = ["BACKENDS", "KINDS", "launches", "served"]

BACKENDS = ("triton", "cuda", "cuda-wgmma")
KINDS = ("inference", "window", "training")
WINDOWS = {"inference": 22, "window": 1}
SECONDS = 24
"""A stereo song of four minutes is 22 windows of 24 seconds, as `Separator` cuts it."""
ITEMS, ITEM_SECONDS = 12, 8
"""A training step."""


def launches(
    backend: str, kind: str, gpu: Gpu, only: Sequence[str] = (), precision: Precision = Precision.bfloat16
) -> list[Any]:
    """Launches of one song, one window, or one training step without the optimiser, in their order.

    Args:
        only: parts of names of the kernels that are wanted; default: all.

    Raises:
        ValueError: for a backend that does not do this.
    """
    if not served(backend, kind, gpu):
        raise ValueError(f"The backend {backend} does no {kind} on {gpu.name}.")
    found = _triton(kind, gpu, precision) if backend == "triton" else _cuda(backend, kind, precision)
    return [launch for launch in found if not only or any(part in launch.name for part in only)]


def served(backend: str, kind: str, gpu: Gpu) -> bool:
    """Return whether a backend does a job on a GPU."""
    return backend == "triton" or (kind != "training" and (backend == "cuda" or gpu.capability == 90))


def _network(device: str) -> MultiTasNet:
    with torch.device(device):
        return MultiTasNet(MetaTasNetConfig())


def _engine(network: MultiTasNet, backend: Backend, precision: Precision) -> Engine:
    config: MetaTasNetConfig = network.config
    stages = [(config.stage(i), collect_parameters(stage)) for i, stage in enumerate(network.stages)]
    return Engine(config, backend, precision, prepare_all(backend, precision, stages))


def _mixes(items: int, seconds: int, device: str) -> list[torch.Tensor]:
    return [torch.empty(items, 1, seconds * 8000 * 2**s, device=device) for s in range(3)]


def _triton(kind: str, gpu: Gpu, precision: Precision) -> list[Any]:
    items, seconds = (WINDOWS[kind], SECONDS) if kind in WINDOWS else (ITEMS, ITEM_SECONDS)
    found = record(MetaTasNetConfig(), precision, gpu.capability, items, seconds * 8000, kind == "training")
    return (
        found.running if kind in WINDOWS else found.preparing + found.running
    )  # weights are prepared once for all songs


def _cuda(backend: str, kind: str, precision: Precision) -> list[Any]:
    with torch.no_grad():
        recording = cuda_launches.RecordingBackend if backend == "cuda" else cuda_launches.RecordingWgmmaBackend
        engine = _engine(_network("cpu"), recording(), precision)
        return cuda_launches.recorded(lambda: engine.separate(_mixes(WINDOWS[kind], SECONDS, "cpu"), {2}))
