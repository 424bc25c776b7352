"""Add an instrument to a trained network: one more embedding, from which the generator makes its separator.

The masks of the old instruments stay what they were, bit for bit: their softmax leaves out the new one, which has a sigmoid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import MetaTasNetConfig
from ..errors import ConfigError

__all__ = ["EMBEDDING", "add_instrument"]

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
