"""Compile kernels for a GPU that is not there, with exactly the arguments that their launchers pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from triton.backends.compiler import GPUTarget

from bench.ledger.sass import usage
from metatasnet_fast.kernels.recording import Launch, compiled, distinct, recorded, source

__all__ = ["TARGETS", "Launch", "Target", "Usage", "compile_for", "distinct", "source"]


@dataclass(frozen=True)
class Target:
    """A GPU, and the bytes of shared memory that one program may use there."""

    gpu: GPUTarget
    shared: int

    @property
    def capability(self) -> int:
        """NVIDIA's compute capability, without its point; 0 for AMD's."""
        return self.gpu.arch if self.gpu.backend == "cuda" else 0

    def recorded(self, write: Callable[[Launch], object]) -> AbstractContextManager[None]:
        """Record launches that choose for this GPU."""
        return recorded(write, self.capability, "" if self.capability else str(self.gpu.arch))


_NVIDIA = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
_AMD = {"gfx90a": (64, 64), "gfx942": (64, 64), "gfx950": (64, 160), "gfx1100": (32, 64), "gfx1201": (32, 64)}
TARGETS = {
    **{f"sm_{n}": Target(GPUTarget("cuda", n, 32), 1024 * kib) for n, kib in _NVIDIA.items()},
    **{n: Target(GPUTarget("hip", n, lanes), 1024 * kib) for n, (lanes, kib) in _AMD.items()},
}
"""Sources: CUDA C++ Programming Guide, technical specifications by compute capability; AMD's instruction set manuals."""


@dataclass(frozen=True)
class Usage:
    """What one program needs: registers a thread, bytes of local memory a thread (spills), bytes of shared memory."""

    registers: int
    spills: int
    shared: int


def compile_for(launch: Launch, target: Target) -> Usage:
    """Compile down to the device's own code and read what it needs from that code."""
    kernel = compiled(launch, target.gpu)
    if target.capability:
        registers, local, _ = usage(kernel.asm["cubin"], kernel.metadata.name)
        return Usage(registers, local, kernel.metadata.shared)
    text = kernel.asm["amdgcn"]
    registers, local = (
        int(re.search(rf"\.{name}: +(\d+)", text)[1])  # type: ignore[index]
        for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return Usage(registers, local, kernel.metadata.shared)
