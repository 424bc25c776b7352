"""Training of a part of a network, and the start of an instrument that was added to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..backends import use_backend
from ..model import MultiTasNet
from ..model.instruments import EMBEDDING
from ..precision import Precision
from .data import BatchSource

__all__ = ["KeptRows", "freeze", "start_near_another"]


def freeze(network: MultiTasNet, unfreeze: str) -> None:
    """Keep parameters from being trained.

    Args:
        network: its parameters' ``requires_grad`` is changed.
        unfreeze: ``all``: every parameter is trained; ``generator``: the masking networks' generator with the embeddings;
            ``embedding``: the embeddings alone.
    """
    if unfreeze == "all":
        return
    for name, parameter in network.named_parameters():
        trained = name.endswith(EMBEDDING) or (unfreeze == "generator" and ".mask." in name)
        parameter.requires_grad_(trained and parameter.requires_grad)


class KeptRows:
    """The first rows of some parameters, with the values that they had when this object was made.

    Weight decay and the optimiser's averages change every row of a parameter, also those without a gradient.
    """

    def __init__(self, parameters: list[nn.Parameter], rows: int) -> None:
        self._kept: list[tuple[nn.Parameter, Tensor]] = [(p, p.detach()[:rows].clone()) for p in parameters]

    @classmethod
    def of(cls, network: MultiTasNet, unfreeze: str) -> KeptRows | None:
        """Return the embeddings of a network's first instruments, if only those of added ones are trained; else None."""
        added = network.config.added_instruments
        if unfreeze != "embedding" or not added:
            return None
        return cls(_embeddings(network), len(network.config.instruments) - added)

    @torch.no_grad()
    def restore(self) -> None:
        """Write them back."""
        for parameter, rows in self._kept:
            parameter[: len(rows)].copy_(rows)


@torch.no_grad()
def start_near_another(network: MultiTasNet, batches: BatchSource, precision: Precision, backend: str) -> str:
    """Give the last instrument the embedding of the other instrument whose separator fits it best; return that one's name.

    Every other instrument's embedding is tried on the first batch; what counts is the SI-SDR of the last instrument in the last
    stage.
    """
    config, batch = network.config, batches.batch(0)
    dtype = torch.float64 if precision is Precision.float64 else torch.float32
    mixes, sources, masks = ([x.to(dtype) for x in values] for values in (batch.mixes, batch.sources, batch.masks()))
    embeddings = _embeddings(network)
    instruments, training = len(config.instruments), network.training
    best, chosen = -math.inf, 0
    network.eval()
    for candidate in range(instruments - 1):
        for embedding in embeddings:
            embedding[-1].copy_(embedding[candidate])
        with use_backend(backend, precision.value):
            _, stats = network(mixes, sources, masks)
        value = float(stats[0, instruments * config.stages_num - 1])
        if value > best:
            best, chosen = value, candidate
    for embedding in embeddings:
        embedding[-1].copy_(embedding[chosen])
    network.train(training)
    return config.instruments[chosen]


def _embeddings(network: MultiTasNet) -> list[nn.Parameter]:
    return [p for name, p in network.named_parameters() if name.endswith(EMBEDDING)]
