"""A stage's weights as the float32 arrays that the compiled module packs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .. import reference
from ..config import StageConfig
from ..reference import StageWeights
from .cpu_training import Expand

__all__ = ["arrays", "generate", "sizes", "weight_tensors"]


def sizes(config: StageConfig) -> dict[str, Any]:
    """The sizes that ``CpuStage`` asks for."""
    return {
        "instruments": config.instruments,
        "softmax": config.softmax,
        "N": config.N,
        "W": config.W,
        "B": config.B,
        "H": config.H,
        "partial": config.partial_channels,
        "kernel_sizes": list(config.kernel_sizes),
        "widths": list(config.decoder_widths),
        "dilations": list(config.dilations),
    }


def generate(config: StageConfig, p: Mapping[str, Tensor], module: Any, isa: str) -> StageWeights:
    """``reference.generate`` with all generated layers made at once by compiled code; ``p`` must be float32.

    What they make goes through the reference as the parameters of a stage that generates nothing.
    """
    if not config.generated:
        return reference.generate(config, p)
    unused = f"mask.tcn.{len(config.dilations) - 1}.res_out"
    suffix = ".bottleneck.weight"
    layers = [name[: -len(suffix)] for name in p if name.startswith("mask.") and name.endswith(suffix)]
    layers = [name for name in layers if name != unused]
    parts = [(name, part) for name in layers for part in _PARTS if f"{name}.{part}.weight" in p]
    inner = torch.stack([p[f"{name}{suffix}"] for name in layers])
    hidden = inner @ p["instrument_embedding.weight"].T + torch.stack(
        [p[f"{name}.bottleneck.bias"] for name in layers]
    ).unsqueeze(-1)
    place = {name: number for number, name in enumerate(layers)}
    found: Sequence[Tensor] = Expand.apply(  # type: ignore[no-untyped-call]
        module,
        isa,
        hidden[[place[name] for name, _ in parts]],
        *(p[f"{name}.{part}.weight"].contiguous() for name, part in parts),
        *(p[f"{name}.{part}.bias"].contiguous() for name, part in parts),
    )
    stored = dict(p)
    for (name, part), value in zip(parts, found, strict=True):
        if part == "affine":
            stored[f"{name}.group_norm.weight"], stored[f"{name}.group_norm.bias"] = value.chunk(2, dim=1)
        else:
            stored[f"{name}.conv.{'weight' if part == 'kernel' else 'bias'}"] = value
    weights = reference.generate(dataclasses.replace(config, generated=False), stored)
    return dataclasses.replace(weights, config=config)


_PARTS = ("kernel", "bias", "affine")
"""The results of a generated layer, from its hidden values."""


def weight_tensors(weights: StageWeights) -> dict[str, Tensor]:
    """Weights by the names and in the layouts of ``csrc/cpu/tensors.h``, without the spectrogram branch (see ``MelShare``).

    Differentiable: each is a view or a copy of the stage's weights.
    """
    return _encoder(weights) | _decoder(weights) | _masking(weights)


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """The tensors as the compiled module takes them."""
    return {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}


def _centred(filters: Iterable[Tensor], longest: int) -> Tensor:
    """Filters (width_l, 1, k_l) below each other in (sum of widths, longest), zeros around the shorter ones."""
    return torch.cat([F.pad(f[:, 0], ((longest - f.shape[-1]) // 2,) * 2) for f in filters])


def _encoder(weights: StageWeights) -> dict[str, Tensor]:
    config, encoder = weights.config, weights.encoder
    filters, width = len(config.kernel_sizes), config.encoder_width
    # The compiled filter bank keeps its outputs filter by filter, so the interleaving moves into these columns.
    columns = encoder.bottleneck_1.squeeze(-1)[:, : filters * width].unflatten(1, (width, filters))
    return {
        "encoder.bank": _centred(encoder.filters, config.kernel_sizes[-1]),
        "encoder.bottleneck_1": columns.transpose(1, 2).flatten(1),
        "encoder.bottleneck_2": encoder.bottleneck_2.squeeze(-1),
    }


def _decoder(weights: StageWeights) -> dict[str, Tensor]:
    """The longest filter's channels come first."""
    config, decoder = weights.config, weights.decoder
    columns = decoder.bottleneck.squeeze(-1).split(config.decoder_widths, dim=1)
    return {
        "decoder.bottleneck": torch.cat(columns[::-1], dim=1),
        "decoder.filters": _centred(decoder.filters[::-1], config.kernel_sizes[-1]),
    }


def _masking(weights: StageWeights) -> dict[str, Tensor]:
    masking = weights.masking
    named = {
        "mask.prelu_1": masking.prelu_1,
        "mask.prelu_2": masking.prelu_2,
        "mask.prelu_3": masking.prelu_3,
        "mask.prelu_4": masking.prelu_4,
        "mask.in_conv": masking.in_conv.weight.squeeze(-1),
        "mask.mask_output": masking.mask_output.weight.squeeze(-1),
    }
    norms = {f"mask.norm_{i}": getattr(masking, f"norm_{i}") for i in (1, 2, 3, 4)}
    for i, block in enumerate(masking.blocks):
        name = f"mask.blocks.{i}"
        named[f"{name}.prelu_1"] = block.prelu_1
        named[f"{name}.prelu_2"] = block.prelu_2
        named[f"{name}.conv1d"] = block.conv1d.weight.squeeze(-1)
        named[f"{name}.dconv1d"] = block.dconv1d.weight.squeeze(2)
        norms[f"{name}.norm_1"] = block.norm_1
        norms[f"{name}.norm_2"] = block.norm_2
        for output, convolution in (("res_out", block.res_out), ("skip_out", block.skip_out)):
            if convolution is None:
                continue
            named[f"{name}.{output}"] = convolution.weight.squeeze(-1)
            if convolution.bias is not None:
                named[f"{name}.{output}.bias"] = convolution.bias
    for name, norm in norms.items():
        named[f"{name}.scale"] = norm.scale
        named[f"{name}.shift"] = norm.shift
    return named
