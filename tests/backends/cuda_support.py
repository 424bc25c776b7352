"""What the tests of the backend ``cuda`` share: the same backend on the host, with every kernel emulated."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from metatasnet_fast import native
from metatasnet_fast.backends.cuda import CudaBackend, WgmmaBackend
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.precision import Precision

LONG = MetaTasNetConfig(N=520, L=60, W=60, B=8, H=8, layers=1, stack=1, num_mels=8, stages_num=1)
"""Filters of two tiles of taps, of which the outer one has products from the 385th of 455 inputs on."""

PRECISIONS = [Precision.float32, Precision.tf32, Precision.bfloat16]

needs_the_module = pytest.mark.skipif(native.load() is None, reason=str(native.reason()))


class EmulatedCudaBackend(CudaBackend):
    """The kernels' code compiled for the host (``csrc/cuda/emulator``), on tensors of the CPU."""

    name = "cuda, emulated"
    device_type: ClassVar[str] = "cpu"

    def unavailable(self) -> str | None:
        return native.reason()

    def _too_old(self, device: torch.device) -> str | None:
        return None

    def _shared_memory(self, device: torch.device) -> int:
        return 163 * 1024

    def _stage_class(self) -> Any:
        module = native.load()
        assert module is not None
        return module.EmulatedCudaStage

    def _stream(self, device: torch.device) -> int:
        return 0


class EmulatedWgmmaBackend(EmulatedCudaBackend):
    """The same with the products of frames by ``wgmma``."""

    name = "cuda-wgmma, emulated"
    precisions: ClassVar[tuple[Precision, ...]] = WgmmaBackend.precisions
    products: ClassVar[str] = WgmmaBackend.products


EMULATED = EmulatedCudaBackend()
EMULATED_WGMMA = EmulatedWgmmaBackend()
