"""Compute the gradients of a whole batch, in micro-batches, on one process or several.

A batch is cut into parts, for the processes and for micro-batches, so that the losses of the parts add up to the loss
of the batch. Two things couple the items of a batch. Every mean divides by a count over the whole batch: these divisors
are known before the first part. The similarity loss compares each item with the item before it. So a part also contains
the item before its first one and encodes it again, and each pair gets its gradient in one part only. The result is
exact. It costs the source encoding of one more item for each part.

This module also saves the data of a step whose loss or gradient cannot be used, and explains the error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ..backends import Backend, Choice, Request
from ..config import StageConfig
from ..errors import TrainingError
from ..model import MultiTasNet
from ..precision import Precision
from ..reference import loss_divisors
from .data import Batch, BatchSource
from .runtime import World

__all__ = [
    "BatchGradients", "GradientStep", "Items", "Part", "cut", "faulty_input", "keep_step", "unusable_step",
]  # fmt: skip


@dataclass(frozen=True)
class Items:
    """Consecutive items of a batch.

    mixes: (n, 1, T_s) for every stage s.
    sources: (n, I, 1, T_s) for every stage, of the network's I instruments; a mixture may contain other sources, too.
    masks: (n, I, 1) for every stage, 1 where the source is not silent and counts in the loss, else 0.
    """

    mixes: Sequence[Tensor]
    sources: Sequence[Tensor]
    masks: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.masks[0])

    def rows(self, start: int, count: int) -> Items:
        """Return ``count`` items from ``start`` on, or those that are left if these are fewer."""
        chosen = slice(start, start + count)
        return Items(*([x[chosen] for x in values] for values in (self.mixes, self.sources, self.masks)))


@dataclass(frozen=True)
class Part:
    """A micro-batch: items that are computed at once."""

    items: Items
    before: Items | None
    """The item of the batch before the first item here. None if this part is the whole batch: then the last item counts
    as the one before the first."""
    first: int
    """Place of the first item in the whole batch."""


def cut(items: Items, size: int, before: Items | None, first: int) -> list[Part]:
    """Cut a process's share of a batch into micro-batches of at most ``size`` items.

    Args:
        items: the share.
        before: the item before the share's first item; None if the share is the whole batch.
        first: place of the share's first item in the whole batch.
    """
    if size >= len(items):
        return [Part(items, before, first)]
    parts = []
    for start in range(0, len(items), size):
        # The item before the first one of a whole batch is its last.
        carried = before if start == 0 and before is not None else items.rows((start - 1) % len(items), 1)
        parts.append(Part(items.rows(start, size), carried, first + start))
    return parts


class Recomputing(Backend):
    """Backend that runs another backend, and computes its forward pass again in backward: about a third more time.

    Between forward and backward, only latents and waveforms are kept. Backward keeps the activations of one job at a
    time.
    """

    name = "recomputing"
    summary = "another backend, its forward pass computed again in backward"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def unavailable(self) -> str | None:
        return self._backend.unavailable()

    def supports(self, request: Request) -> str | None:
        return self._backend.supports(request)

    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> Any:
        return self._backend.prepare(config, parameters, precision)

    def encode(self, prepared: Any, signal: Tensor) -> Tensor:
        return _recomputed(self._backend.encode, prepared, signal)

    def mask(self, prepared: Any, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None) -> Tensor:
        return _recomputed(self._backend.mask, prepared, latent, partial, dropout)

    def decode(self, prepared: Any, latent: Tensor) -> Tensor:
        return _recomputed(self._backend.decode, prepared, latent)

    def stage_loss(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self._backend.stage_loss(*arguments)


def _recomputed(job: Callable[..., Tensor], *arguments: Any) -> Tensor:
    # No job draws random numbers, so there is no state of a generator to keep.
    result: Tensor = checkpoint(job, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


@dataclass(frozen=True)
class BatchGradients:
    """Results of a batch over all processes. The gradients themselves are in the parameters."""

    loss: float
    stats: list[float]
    """Statistics as ``MultiTasNet.forward`` returns them, (instruments * stages + 3,)."""
    norm: float
    """Global norm of the gradients before clipping."""
    votes: list[float]
    """The votes of all processes, added up; see :meth:`GradientStep.__call__`."""


@dataclass(frozen=True)
class _Dropout:
    """The dropout of a step of a whole batch of ``items`` items.

    It depends on seed, step and stage only, not on how the batch is cut into micro-batches.
    """

    probability: float
    seed: int
    step: int
    items: int

    def of(self, part: Part) -> Callable[[int, Tensor], Tensor | None] | None:
        """Return the argument ``dropout`` of ``Engine.loss`` for a micro-batch; None for probability 0."""
        return functools.partial(self._factors, part) if self.probability > 0 else None

    def _factors(self, part: Part, stage: int, latent: Tensor) -> Tensor:
        (entropy,) = np.random.SeedSequence([self.seed, self.step, stage]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy) >> 1)
        instruments = part.items.sources[stage].shape[1]
        draws = torch.rand(self.items, instruments, latent.shape[1], generator=generator)
        kept = draws[part.first : part.first + len(part.items)] >= self.probability
        return kept.to(part.items.sources[stage]) / (1 - self.probability)


class _PartLoss(nn.Module):
    """The module that ``DistributedDataParallel`` wraps: it returns a micro-batch's share of the loss, and
    statistics."""

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
    """The computation of the loss and the gradients of a batch. The object is called once for each batch.

    Every process has its share of each batch. Loss and gradients are those of the whole batch, in every process, as one
    process would compute them. The last block's ``res_out``, whose output is unused, gets no gradient.

    Args:
        network: the network on its device; with several processes, all get the weights of the first one.
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
        """Compute the gradients of a batch, clip them to the norm ``clip``, and store them in the parameters.

        Args:
            items: this process's share, on the network's device.
            step: number of the step, from which dropout is drawn.
            votes: numbers of this process that are summed over the processes in the same transfer.
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
                # DistributedDataParallel takes the mean over the processes, but the shares must be summed.
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
        """Return the context of a micro-batch's backward: the processes exchange gradients only in the last one."""
        if last or not isinstance(self._loss, DistributedDataParallel):
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self._loss.no_sync()
        return context


def faulty_input(batch: Batch, source: BatchSource) -> str | None:
    """Describe the first stem of a batch that is not finite, with its track and rate; None if all are finite."""
    for rate, sources in zip(source.rates, batch.sources, strict=True):
        faulty = (~sources.isfinite()).flatten(2).any(-1).nonzero().tolist()
        if faulty:
            item, place = faulty[0]
            stem = source.places[place]
            track = source.tracks[int(source.plan(batch.number).tracks[item, stem])]
            return f"the {track.entry.instruments[stem]} of {track.name} at {rate} Hz ({track.file(rate)})"
    return None


def keep_step(path: Path, content: Mapping[str, Any]) -> str:
    """Write ``content``, from which a step can be repeated. Return a clause that says where it is, or why it could not
    be written."""
    try:
        torch.save(dict(content), path)
    except (OSError, RuntimeError) as error:
        return f"Its batch could not be kept in {path} ({error})"
    return f"Its batch and the weights before it are in {path}"


def unusable_step(found: BatchGradients, step: int, fault: str | None, kept: str) -> TrainingError:
    """Return the error that says why training stops.

    Args:
        fault: the place of samples that are not finite, as :func:`faulty_input` describes it; None if all are finite.
        kept: text on what is saved of this step and of the run, without a full stop.
    """
    if fault is not None:
        return TrainingError(
            f"Step {step} got samples that are not finite from {fault}: training stops. {kept}. "
            "Delete that track's folder and prepare the cache again."
        )
    return TrainingError(
        f"Step {step} gave a loss of {found.loss:g} and a gradient of norm {found.norm:g}: training stops. "
        f"{kept}. Go on with a smaller --learning_rate, or with --dtype float32."
    )
