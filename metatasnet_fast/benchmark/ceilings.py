"""Peak rates of the machine, measured in the same run: a large copy, and a large matrix product in every precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..precision import Precision
from .costs import Work
from .timing import Timer, make_timer

__all__ = ["Ceilings", "measure_ceilings"]

ROUNDS = 5


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy (read plus written), FLOP per second of ``torch.mm`` by precision."""

    copy: float
    products: dict[str, float] = field(default_factory=dict)

    def of_compute(self, work: Work, precision: Precision, seconds: float) -> float | None:
        """Fraction of the matrix product's rate; None if that was not measured in this precision."""
        rate = self.products.get(precision.value)
        return None if rate is None else work.flops / seconds / rate

    def of_memory(self, work: Work, seconds: float) -> float:
        return work.bytes / seconds / self.copy

    def to_dict(self) -> dict[str, Any]:
        return {"copy_bytes_per_s": self.copy, "mm_flop_per_s": self.products}


def measure_ceilings(device: torch.device, precisions: Iterable[Precision], tiny: bool = False) -> Ceilings:
    """The best of five runs each, on random data; ``tiny`` sizes are for tests of the program, not of the machine."""
    large = device.type == "cuda"
    timer = make_timer(device)
    bandwidth = _copy(timer, 2**16 if tiny else 2**30 if large else 2**26, device)
    n = 256 if tiny else 8192 if large else 2048
    return Ceilings(bandwidth, {p.value: _product(timer, n, p, device) for p in precisions})


def _copy(timer: Timer, size: int, device: torch.device) -> float:
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / min(timer(lambda: target.copy_(source))[0] for _ in range(ROUNDS))


def _product(timer: Timer, n: int, precision: Precision, device: torch.device) -> float:
    a, b = (torch.randn(n, n, device=device).to(precision.storage) for _ in range(2))
    with _tf32(precision is Precision.tf32):
        torch.mm(a, b)
        return 2 * n**3 / min(timer(lambda: torch.mm(a, b))[0] for _ in range(ROUNDS))


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
