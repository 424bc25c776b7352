"""Add an instrument to a trained network, one more embedding from which the generator makes its separator; train a part of it.

The masks of the old instruments stay what they were, bit for bit: their softmax leaves out the new one, which has a sigmoid.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backends import use_backend
from ..config import MetaTasNetConfig
from ..errors import ConfigError
from ..model import MultiTasNet
from ..precision import Precision
from .data import BatchSource

__all__ = ["EMBEDDING", "KeptRows", "add_instrument", "freeze", "start_near_another"]

EMBEDDING = "instrument_embedding.weight"
"""Name of the parameter that holds the embeddings of a stage, one row an instrument."""


def add_instrument(
    config: MetaTasNetConfig, state: Mapping[str, Tensor], name: str
) -> tuple[MetaTasNetConfig, dict[str, Tensor]]:
    """Extend a network's configuration and weights by an instrument.

    Args:
        config: of the trained network.
        state: its weights by name.
        name: of the new instrument, which comes last. Its embeddings are the means of the others'.

    Returns:
        the configuration and weights of the larger network.

    Raises:
        ConfigError: if the network's parameters are not generated, or the name is taken or impossible.
    """
    if config.independent_params:
        raise ConfigError(
            "This network has parameters of its own for each instrument: no embedding can be added to it."
        )
    if name in config.instruments:
        raise ConfigError(f"The network has an instrument {name!r} already: choose another name.")
    larger = dataclasses.replace(
        config, instruments=(*config.instruments, name), added_instruments=config.added_instruments + 1
    )
    extended = dict(state)
    for key, value in state.items():
        if key.endswith(EMBEDDING):
            extended[key] = torch.cat([value, value.mean(0, keepdim=True)])
    return larger, extended


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
