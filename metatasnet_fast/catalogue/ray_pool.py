"""How many workers a Ray cluster gets, and what each of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["Node", "Pool", "plan_pool"]


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray counts: whole CPUs and GPUs."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Pool:
    """``workers`` actors that hold ``cpus`` and ``gpus`` each; ``machines`` have at least one of them."""

    workers: int
    cpus: int
    gpus: int
    machines: int

    def describe(self) -> str:
        each = f"{self.cpus} CPU{'s' * (self.cpus != 1)}" + (" and a GPU" if self.gpus else "")
        return f"{self.workers} worker{'s' * (self.workers != 1)} with {each} each"


def plan_pool(nodes: Sequence[Node], device: str, threads: int | None, workers: int | None) -> Pool:
    """One worker for each GPU; where there is none, or ``device`` is the CPU, one for each machine with all of its CPUs.

    Songs reach the workers without a task of Ray's that needs a CPU, so the workers may hold all there are. What can never be
    placed is refused here: Ray would wait for it without a word.

    Args:
        device: as in ``Settings``.
        threads: CPUs of each worker; None shares each machine's CPUs among its workers.
        workers: at most so many; None for one on each GPU or machine.

    Raises:
        ConfigError: if not one worker fits, or fewer than asked for.
    """
    on_gpus = not device.startswith("cpu") and (device != "auto" or any(node.gpus for node in nodes))
    able = [node for node in nodes if node.cpus > 0 and (node.gpus > 0 or not on_gpus)]
    if not able:
        what = "GPU" if on_gpus else "CPU"
        raise ConfigError(
            f"The Ray cluster has no {what} for a worker; add a machine that has, or choose another --device."
        )

    def places(cpus: int) -> list[int]:
        """Of workers with so many CPUs, on each machine."""
        return [min(node.cpus // cpus, node.gpus) if on_gpus else node.cpus // cpus for node in able]

    cpus = threads or min(max(1, node.cpus // node.gpus) if on_gpus else node.cpus for node in able)
    while threads is None and workers is not None and cpus > 1 and sum(places(cpus)) < workers:
        cpus -= 1
    most = sum(places(cpus))
    if most == 0:
        largest = max(node.cpus for node in able)
        raise ConfigError(
            f"A worker of {cpus} CPUs fits on no machine of the Ray cluster, the largest has {largest}; "
            f"ask for at most {largest} with --threads."
        )
    if workers is not None and workers > most:
        raise ConfigError(
            f"{workers} workers of {cpus} CPUs{' and a GPU' if on_gpus else ''} each do not fit into the Ray cluster, "
            f"which has room for {most}; ask for at most {most} --workers, or fewer --threads."
        )
    count = workers or most
    return Pool(count, cpus, int(on_gpus), min(count, sum(place > 0 for place in places(cpus))))
