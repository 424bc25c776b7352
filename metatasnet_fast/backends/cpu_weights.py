"""A stage's weights as the float32 arrays that the compiled module packs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import StageConfig
from ..reference import StageWeights

__all__ = ["sizes", "weight_arrays"]


def sizes(config: StageConfig) -> dict[str, Any]:
    """The sizes that ``CpuStage`` asks for."""
    return {
        "instruments": getattr(config, "instruments", 4),
        "N": config.N,
        "W": config.W,
        "B": config.B,
        "H": config.H,
        "partial": config.partial_channels,
        "kernel_sizes": list(config.kernel_sizes),
        "widths": list(config.decoder_widths),
        "dilations": list(config.dilations),
    }


def weight_arrays(weights: StageWeights) -> dict[str, NDArray[np.float32]]:
    """Weights by the names of ``csrc/cpu/prepare.cpp``, without the spectrogram branch (see ``MelShare``)."""
    config, encoder, decoder, masking = weights.config, weights.encoder, weights.decoder, weights.masking
    filters, width = len(config.kernel_sizes), config.encoder_width
    named: dict[str, Tensor] = {
        # The compiled filter bank keeps its outputs filter by filter, so the interleaving moves into these columns.
        "encoder.bottleneck_1": encoder.bottleneck_1[:, : filters * width, 0]
        .unflatten(1, (width, filters))
        .transpose(1, 2)
        .flatten(1),
        "encoder.bottleneck_2": encoder.bottleneck_2[:, :, 0],
        "decoder.bottleneck": decoder.bottleneck[:, :, 0],
        "mask.prelu_1": masking.prelu_1,
        "mask.prelu_2": masking.prelu_2,
        "mask.prelu_3": masking.prelu_3,
        "mask.prelu_4": masking.prelu_4,
        "mask.in_conv": masking.in_conv.weight[..., 0],
        "mask.mask_output": masking.mask_output.weight[..., 0],
    }
    norms = {f"mask.norm_{i}": getattr(masking, f"norm_{i}") for i in (1, 2, 3, 4)}
    for i in range(filters):
        named[f"encoder.filters.{i}"] = encoder.filters[i][:, 0]
        named[f"decoder.filters.{i}"] = decoder.filters[i][:, 0]
    for i, block in enumerate(masking.blocks):
        name = f"mask.blocks.{i}"
        named[f"{name}.prelu_1"] = block.prelu_1
        named[f"{name}.prelu_2"] = block.prelu_2
        named[f"{name}.conv1d"] = block.conv1d.weight[..., 0]
        named[f"{name}.dconv1d"] = block.dconv1d.weight[:, :, 0]
        norms[f"{name}.norm_1"] = block.norm_1
        norms[f"{name}.norm_2"] = block.norm_2
        for output, convolution in (("res_out", block.res_out), ("skip_out", block.skip_out)):
            if convolution is None:
                continue
            named[f"{name}.{output}"] = convolution.weight[..., 0]
            if convolution.bias is not None:
                named[f"{name}.{output}.bias"] = convolution.bias
    for name, norm in norms.items():
        named[f"{name}.scale"] = norm.scale
        named[f"{name}.shift"] = norm.shift
    return {name: tensor.detach().contiguous().numpy() for name, tensor in named.items()}
