"""Compile kernels for a GPU that is not there, with exactly the arguments that their launchers pass."""

from __future__ import annotations

from dataclasses import dataclass

from bench.ledger.sass import usage
from metatasnet_fast.kernels.recording import Launch, compiled, distinct, source

__all__ = ["SHARED_MEMORY", "Launch", "Usage", "compile_for", "distinct", "source"]

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes that one program may use (CUDA C++ Programming Guide, technical specifications by compute capability)."""


@dataclass(frozen=True)
class Usage:
    """What one program needs: registers a thread, bytes of local memory a thread (spills), bytes of shared memory."""

    registers: int
    spills: int
    shared: int


def compile_for(launch: Launch, capability: int) -> Usage:
    """Compile down to the device's own code and read what it needs from that code."""
    kernel = compiled(launch, capability)
    registers, local, _ = usage(kernel.asm["cubin"], kernel.metadata.name)
    return Usage(registers, local, kernel.metadata.shared)
