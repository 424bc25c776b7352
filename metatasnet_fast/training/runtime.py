"""Choose the device, backend and precision of a training run, and connect its processes, which ``torchrun`` started.

A run in a single process has a world of size 1.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends import Choice, Request, resolve
from ..errors import ConfigError
from ..model import MultiTasNet
from ..precision import Precision
from ..separation.devices import choose_device
from .settings import TrainingSettings

__all__ = ["Runtime", "World"]


@dataclass(frozen=True)
class World:
    """The place of this process among the ``size`` processes of a run, and what the processes exchange."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place of this process among those of its machine, which is also the index of its GPU."""

    @classmethod
    def from_environment(cls) -> World:
        """Return the place that ``torchrun`` sets in RANK, WORLD_SIZE and LOCAL_RANK; without WORLD_SIZE, a single
        process.

        Raises:
            ConfigError: if one of these variables is missing or not valid.
        """
        size = _number("WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
        if size < 1:
            raise _misplaced("WORLD_SIZE")
        if size == 1:
            return cls()
        rank = _number("RANK", os.environ.get("RANK"))
        if rank >= size:
            raise _misplaced("RANK")
        return cls(rank, size, _number("LOCAL_RANK", os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Return whether this process writes the files and talks to the user."""
        return self.rank == 0

    @contextlib.contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Join the process group (NCCL on GPUs, else Gloo) for the block, and leave it at the end.

        Raises:
            ConfigError: if the environment does not say where the processes meet.
        """
        if self.size == 1:
            yield
            return
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise _misplaced(name)
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()

    def share(self, items: int) -> int:
        """Return how many of a batch's ``items`` this process gets; raise :class:`ConfigError` unless all get equally
        many."""
        if items % self.size:
            raise ConfigError(
                f"A batch of {items} items cannot be divided among {self.size} processes: make it a multiple."
            )
        return items // self.size

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up the tensors of all processes, in place, and return the sum."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the processes' tensors, concatenated along the first axis in the order of the ranks."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def from_previous(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of the previous process; the first process gets those of the last process.

        The shapes must be the same in all processes.
        """
        if self.size == 1:
            return list(tensors)
        sent = [tensor.contiguous() for tensor in tensors]
        received = [torch.empty_like(tensor) for tensor in sent]
        following, previous = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        exchanges = [dist.P2POp(dist.isend, tensor, following) for tensor in sent]
        exchanges += [dist.P2POp(dist.irecv, tensor, previous) for tensor in received]
        for work in dist.batch_isend_irecv(exchanges):
            work.wait()
        return received

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the processes' picklable values, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def take_over(self, tensors: Sequence[Tensor]) -> None:
        """Replace the contents of the tensors by those of the first process's tensors."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@dataclass(frozen=True)
class Runtime:
    """The device, backend, precision and processes of a training run."""

    device: torch.device
    backend: str
    precision: Precision
    world: World

    @classmethod
    def of(cls, settings: TrainingSettings, network: MultiTasNet, world: World) -> Runtime:
        """Choose the device, precision and backend that the settings ask for.

        Raises:
            ConfigError: for an unknown device or dtype.
            BackendUnavailableError: for a device that is absent, or a backend that cannot train on it.
        """
        wanted = settings.device
        if world.size > 1 and (wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())):
            wanted = f"cuda:{world.local_rank}"
        device = choose_device(wanted, network)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        precision = Precision.default(device) if settings.dtype == "auto" else Precision.parse(settings.dtype)
        Choice.parse(settings.backend, precision.value)
        backend = resolve(settings.backend, Request(device, precision, True, network.config)).name
        return cls(device, backend, precision, world)

    def describe(self) -> str:
        processes = f", {self.world.size} processes" if self.world.size > 1 else ""
        return f"backend {self.backend}, device {self.device}, {self.precision.value}{processes}"


def _number(name: str, value: str | None) -> int:
    if value is None or not value.isdecimal():
        raise _misplaced(name)
    return int(value)


def _misplaced(name: str) -> ConfigError:
    value = os.environ.get(name)
    says = "is not set" if value is None else f"is {value!r}"
    return ConfigError(
        f"{name} {says}, so that this process does not know its place among those of WORLD_SIZE: start the processes with "
        "torchrun, or unset WORLD_SIZE to train with this one alone."
    )
