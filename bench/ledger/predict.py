"""Predict the time of a launch on a GPU. Every assumption is in this file; no assumption is fitted to a measurement.

A launch is bound by what takes longest: bytes from memory, bytes from the second-level cache, products on tensor
cores, instructions, or waiting for memory. The rest overlaps, less well where only one block fits on a
multiprocessor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["GPUS", "Cost", "Gpu", "Prediction", "predict"]

BANDWIDTH = 0.88
"""Share of the memory's bandwidth that a streaming kernel reaches."""
PRODUCTS = 0.65
"""Share of the tensor cores' rate that a kernel reaches."""
ISSUE = 0.60
"""Share of a multiprocessor's issue rate that a kernel reaches."""
SUSTAINED = 0.81
"""Tensor cores' rate in large products over the data sheet's: 800 of 989 on an H100, whose clock falls under such load."""
BESIDE, BESIDE_ALONE = 0.10, 0.35
"""Share of the second-longest part that is not hidden; BESIDE_ALONE if at most one block fits on a multiprocessor."""
LEAST = 2.5e-6
"""Seconds of the shortest launch, including the gap to the next launch."""
FROM_MEMORY, FROM_CACHE = 660e-9, 200e-9
"""Seconds from the request of a value to its arrival, under load, from memory and from the second-level cache. With the
first number, an H100 sustains 3 TB/s if 15 KiB are under way on each multiprocessor."""


@dataclass(frozen=True)
class Gpu:
    """Resources of a GPU, by its data sheet and the CUDA programming guide; rates per second, sizes in bytes.

    Attributes:
        capability: compute capability without its point.
        clock: boost clock in Hz.
        level_2: bytes per second that multiprocessors can read from the second-level cache, as others have measured.
        products: floating-point operations per second on tensor cores, dense, by kind of operands.
        shared: bytes of shared memory of a multiprocessor.
    """

    name: str
    capability: int
    multiprocessors: int
    clock: float
    bandwidth: float
    level_2: float
    products: Mapping[str, float]
    shared: int
    most_warps: int
    most_blocks: int

    @property
    def float32(self) -> float:
        """Floating-point operations per second in float32 outside the tensor cores."""
        return 256 * self.multiprocessors * self.clock


def _products(bfloat16: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "tf32": bfloat16 / 2}


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 90, 132, 1.755e9, 3.35e12, 5.5e12, _products(989e12), 228 * 1024, 64, 32),
        Gpu("H200", 90, 132, 1.755e9, 4.80e12, 5.5e12, _products(989e12), 228 * 1024, 64, 32),
        Gpu("A100", 80, 108, 1.410e9, 2.04e12, 4.5e12, _products(312e12), 164 * 1024, 64, 32),
        Gpu("RTX 4090", 89, 128, 2.520e9, 1.01e12, 4.5e12, _products(165e12), 100 * 1024, 48, 24),
    )
}
MMA_ON_90 = 620 / 800
"""Share that ``mma.sync`` (HMMA) reaches of the rate of ``wgmma`` (HGMMA) on a GPU that has both."""


@dataclass
class Cost:
    """Instructions and bytes of one launch.

    Attributes:
        hbm: bytes from and to memory; each byte counts once for a launch.
        level_2: bytes that multiprocessors read from the second-level cache.
        flops: floating-point operations by kind: ``bfloat16`` and ``tf32`` by HGMMA, ``mma bfloat16`` and ``mma tf32``
            by HMMA, ``float32``.
        instructions: instructions that all warps issue together.
        waiting: seconds for which a warp waits for values, on average over the blocks and in the slowest block.
        busiest: instructions of the block that issues the most.
        blocks: blocks of the grid.
        registers: registers of a thread.
        shared, threads: bytes of shared memory, and threads, of a block.
        unknown: how often something could not be followed, by description.
    """

    hbm: float = 0.0
    level_2: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)
    instructions: float = 0.0
    waiting: tuple[float, float] = (0.0, 0.0)
    busiest: float = 0.0
    blocks: int = 0
    registers: int = 0
    shared: int = 0
    threads: int = 0
    unknown: dict[str, int] = field(default_factory=dict)

    def resident(self, gpu: Gpu) -> int:
        """Return how many blocks fit on a multiprocessor; 0 if not even one fits."""
        if not self.threads:
            return gpu.most_blocks
        warps = -(-self.threads // 32)
        registers = -(-self.registers // 8) * 8 * 32 * warps
        shared = self.shared + 1024  # the runtime takes a KiB of each block
        return min(65536 // registers, gpu.shared // shared, gpu.most_warps // warps, gpu.most_blocks)


@dataclass(frozen=True)
class Prediction:
    """Seconds of one launch, seconds of each part alone at its full rate, and the part that limits the launch."""

    seconds: float
    parts: Mapping[str, float]
    bound: str

    @property
    def roof(self) -> float:
        """Seconds of the bytes from memory or of the products, whichever take longer, at their full rates."""
        return max(self.parts["memory"], self.parts["products"])


def predict(cost: Cost, gpu: Gpu) -> Prediction:
    """Predict the time of one launch."""
    resident = cost.resident(gpu)
    products = 0.0
    for kind, operations in cost.flops.items():
        if kind == "float32":
            continue
        rate = SUSTAINED * gpu.products[kind.removeprefix("mma ")]
        products += operations / (rate * (MMA_ON_90 if kind.startswith("mma ") and gpu.capability >= 90 else 1))
    each = cost.blocks / gpu.multiprocessors  # blocks of a multiprocessor, on average
    uneven = math.ceil(each) / each if each else 1.0  # blocks of the fullest multiprocessor over this average
    own = min(resident, math.ceil(each)) * cost.busiest
    parts = {
        "memory": cost.hbm / gpu.bandwidth,
        "cache": cost.level_2 / gpu.level_2,
        "products": products * uneven,
        "instructions": max(cost.instructions / gpu.multiprocessors * uneven, own) / (4 * gpu.clock),
        "latency": max(each / max(resident, 1) * cost.waiting[0], cost.waiting[1]),
    }
    shares = {"memory": BANDWIDTH, "products": PRODUCTS, "instructions": ISSUE}
    times = {name: seconds / shares.get(name, 1.0) for name, seconds in parts.items()}
    bound, second = sorted(times, key=lambda name: -times[name])[:2]
    seconds = times[bound] + (BESIDE_ALONE if resident <= 1 else BESIDE) * times[second]
    return Prediction(seconds, parts, bound) if seconds > LEAST else Prediction(LEAST, parts, "launching")
