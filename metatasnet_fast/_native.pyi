"""Types of the compiled module (csrc/bindings)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

def build_info() -> dict[str, str | list[str]]: ...
def cpu_features() -> dict[str, bool]: ...
def cpu_isas() -> list[str]: ...
def unusable_cpu_isas() -> dict[str, str]: ...
def cuda_build_info() -> dict[str, str]: ...
def cuda_obstacle(device: int) -> str: ...
def cuda_refusal(sizes: dict[str, Any]) -> str | None: ...
def cuda_shared_bytes(sizes: dict[str, Any]) -> int: ...
def set_emulated_order(order: int) -> None: ...
def multiply_emulated_split(data: Tensor, weights: Tensor, out: Tensor) -> None: ...

class CpuPool:
    def __init__(self) -> None: ...
    def trim(self) -> None: ...

class CpuBlock:
    def __buffer__(self, flags: int, /) -> memoryview: ...

class CpuStage:
    isa: str
    storage: str
    instruments: int
    latent_ld: int
    def __init__(
        self,
        isa: str,
        bfloat16: bool,
        sizes: dict[str, Any],
        weights: dict[str, NDArray[np.float32]],
        training: bool = False,
        pool: CpuPool | None = None,
        threads: int = 1,
    ) -> None: ...
    def take(self, bytes: int) -> CpuBlock: ...
    def kept_bytes(self, job: str, n: int, frames: int) -> int: ...
    def encode(self, signal: Tensor, mel: Tensor, latent: Tensor, kept: Tensor | None, threads: int) -> None: ...
    def mask(
        self,
        latent: Tensor,
        input: Tensor | None,
        partial: Tensor | None,
        masked: Tensor,
        kept: Tensor | None,
        threads: int,
    ) -> dict[str, float]: ...
    def decode(self, latent: Tensor, signal: Tensor, kept: Tensor | None, threads: int) -> None: ...
    def encode_gradient(
        self,
        signal: Tensor,
        kept: Tensor,
        gradient: Tensor,
        mel_gradient: Tensor,
        signal_gradient: Tensor | None,
        bank: Tensor,
        bottleneck_1: Tensor,
        bottleneck_2: Tensor,
        threads: int,
    ) -> None: ...
    def mask_gradient(
        self,
        latent: Tensor,
        input: Tensor | None,
        partial: Tensor | None,
        kept: Tensor,
        gradient: Tensor,
        latent_gradient: Tensor,
        own_gradient: Tensor | None,
        partial_gradient: Tensor | None,
        gradients: dict[str, NDArray[np.float32]],
        threads: int,
    ) -> None: ...
    def decode_gradient(
        self,
        latent: Tensor,
        kept: Tensor,
        gradient: Tensor,
        latent_gradient: Tensor,
        bottleneck: Tensor,
        filters: Tensor,
        threads: int,
    ) -> None: ...

class EmulatedCudaStage:
    latent_ld: int
    def __init__(
        self, precision: str, sizes: dict[str, Any], slopes: list[float], weights: dict[str, Tensor]
    ) -> None: ...
    def encode_bytes(self, n: int, samples: int, /) -> int: ...
    def mask_bytes(self, n: int, frames: int, own_inputs: bool, /) -> int: ...
    def decode_bytes(self, n: int, frames: int, /) -> int: ...
    def encode(self, signal: Tensor, latent: Tensor, workspace: Tensor, stream: int) -> None: ...
    def mask(
        self,
        latent: Tensor,
        input: Tensor | None,
        partial: Tensor | None,
        masked: Tensor,
        workspace: Tensor,
        stream: int,
    ) -> None: ...
    def decode(self, latent: Tensor, signal: Tensor, workspace: Tensor, stream: int) -> None: ...

class CudaStage(EmulatedCudaStage): ...
