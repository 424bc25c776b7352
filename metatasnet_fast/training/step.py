"""The gradients of one batch: in parts, on one process or several, always those of the whole batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..backends import Choice
from ..model import MultiTasNet
from ..reference import loss_divisors
from .distributed import World
from .parts import Items, Part, cut
from .recompute import Recomputing

__all__ = ["BatchGradients", "GradientStep"]


@dataclass(frozen=True)
class BatchGradients:
    """Results of a batch, over all processes; the gradients themselves are in the parameters."""

    loss: float
    stats: list[float]
    """Statistics as ``MultiTasNet.forward`` returns them, (instruments * stages + 3,)."""
    norm: float
    """Global norm of the gradients before clipping."""
    votes: list[float]
    """Sums over the processes of the numbers that each process gave."""


@dataclass(frozen=True)
class _Dropout:
    """The dropout of a step: a function of seed, step and stage that does not depend on how the ``items`` are cut into
    micro-batches."""

    probability: float
    seed: int
    step: int
    items: int

    def of(self, part: Part) -> Callable[[int, Tensor], Tensor | None] | None:
        """Return the arguments for :meth:`metatasnet_fast.model.engine.Engine.loss`."""
        return functools.partial(self._factors, part) if self.probability > 0 else None

    def _factors(self, part: Part, stage: int, latent: Tensor) -> Tensor:
        (entropy,) = np.random.SeedSequence([self.seed, self.step, stage]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy) >> 1)
        instruments = part.items.sources[stage].shape[1]
        draws = torch.rand(self.items, instruments, latent.shape[1], generator=generator)
        kept = draws[part.first : part.first + len(part.items)] >= self.probability
        return kept.to(part.items.sources[stage]) / (1 - self.probability)


class _PartLoss(nn.Module):
    """The network as ``DistributedDataParallel`` sees it: a module whose output is a micro-batch's share of the loss."""

    def __init__(self, network: MultiTasNet, choice: Choice, recompute: bool) -> None:
        super().__init__()
        self.network, self.choice, self.recompute = network, choice, recompute

    def forward(self, part: Part, divisors: Sequence[Tensor], dropout: _Dropout) -> tuple[Tensor, Tensor]:
        engine = self.network.engine(self.choice, training=True)
        if self.recompute:
            engine = dataclasses.replace(engine, backend=Recomputing(engine.backend))
        items, before = part.items, part.before
        return engine.loss(
            items.mixes,
            items.sources,
            items.masks,
            dropout=dropout.of(part),
            divisors=divisors,
            before=None if before is None else (before.sources, before.masks),
        )


class GradientStep:
    """Computes loss and gradients of batch after batch.

    Every process has its share of each batch. The loss is that of the whole batch, as one process would have it, and so are the
    gradients in every process's parameters. The parameters without a gradient (the last block's ``res_out``, whose output
    is unused) keep none.

    Args:
        network: on its device; with several processes, the first one's weights are taken over.
        choice: the backend and precision to compute with.
        world: the processes; they must have joined.
        micro_batch: items computed at once; None for the whole share.
        recompute: compute the forward pass again in backward instead of keeping its activations.
        clip: global norm that gradients are clipped to.
        dropout_seed: seed of the dropout's draws.
    """

    def __init__(
        self,
        network: MultiTasNet,
        choice: Choice,
        *,
        world: World | None = None,
        micro_batch: int | None = None,
        recompute: bool = False,
        clip: float = 5.0,
        dropout_seed: int = 42,
    ) -> None:
        self.network, self.world, self.micro_batch, self.clip = network, world or World(), micro_batch, clip
        self.seed = dropout_seed
        self._loss: nn.Module = _PartLoss(network, choice, recompute)
        if self.world.size > 1:
            self.world.take_over(list(network.state_dict().values()))
            self._loss = DistributedDataParallel(self._loss, find_unused_parameters=True)

    def __call__(self, items: Items, step: int, votes: Sequence[float] = ()) -> BatchGradients:
        """Compute the gradients of a batch and store them in the parameters, clipped to the norm ``clip``.

        Args:
            items: this process's share, on the network's device.
            step: number of the step, from which dropout is drawn.
            votes: numbers to be summed over the processes on the way.
        """
        self.network.zero_grad(set_to_none=True)
        divisors = [loss_divisors(self.world.gather(mask)) for mask in items.masks]
        dropout = _Dropout(self.network.config.dropout, self.seed, step, len(items) * self.world.size)
        parts = self._parts(items)
        shares: list[Tensor] = []
        wide = torch.float32 if items.sources[0].device.type == "mps" else torch.float64
        for number, part in enumerate(parts, start=1):
            with self._synchronising(number == len(parts)):
                loss, stats = self._loss(part, divisors, dropout)
                # DistributedDataParallel takes the mean over the processes; the shares are to be summed.
                (loss * self.world.size).backward()
            shares.append(torch.cat([loss.detach().reshape(1), stats]).to(wide))
        share = torch.stack(shares).sum(0)
        sums = self.world.sum(torch.cat([share, share.new_tensor(list(votes))]))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        # One transfer for all numbers: on a GPU the host waits for the step here.
        found = torch.cat([sums, norm.reshape(1).to(sums)]).tolist()
        return BatchGradients(found[0], found[1 : len(share)], found[-1], found[len(share) : -1])

    def _parts(self, items: Items) -> list[Part]:
        before = None
        if self.world.size > 1 and self.network.config.similarity_loss_weight > 0:
            last = items.rows(len(items) - 1, 1)
            received = self.world.from_previous([*last.sources, *last.masks])
            count = len(last.sources)
            before = Items(last.mixes, received[:count], received[count:])  # mixtures are not needed
        return cut(items, self.micro_batch or len(items), before, self.world.rank * len(items))

    def _synchronising(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let the processes exchange gradients once, with the last micro-batch."""
        if last or not isinstance(self._loss, DistributedDataParallel):
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self._loss.no_sync()
        return context
