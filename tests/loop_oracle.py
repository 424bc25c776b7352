"""The network once more, instrument after instrument: what every backend must compute for any number of instruments.

Nothing here knows groups or an instrument axis: each instrument has its own small masking network from its own embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metatasnet_fast import MetaTasNetConfig, reference
from metatasnet_fast.reference import generator

State = dict[str, Tensor]


def separate(config: MetaTasNetConfig, state: State, mixes: Sequence[Tensor]) -> list[Tensor]:
    """Estimates (b, I, 1, T) of every stage."""
    partials: list[Tensor | None] = [None] * len(config.instruments)
    found = []
    for index, mix in enumerate(mixes):
        prefix = f"stages.{index}."
        p = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        stage = config.stage(index)
        latent = reference.encode(generator.encoder_weights(stage, p), stage, mix)
        raw = [
            _masking_network(config, p, i, latent if v is None else torch.cat([latent, v], dim=1))
            for i, v in enumerate(partials)
        ]
        competing = torch.stack(raw[: config.softmax]).softmax(0) if config.softmax else []
        masks = [*competing, *(1 / (1 + torch.exp(-u)) for u in raw[config.softmax :])]
        partials = [latent * mask for mask in masks]
        decoder = generator.decoder_weights(stage, p)
        found.append(torch.stack([reference.decode(decoder, stage, v) for v in partials if v is not None], dim=1))
    return found


def _masking_network(config: MetaTasNetConfig, p: State, i: int, x: Tensor) -> Tensor:
    """What goes into the softmax or sigmoid of instrument ``i``."""

    def own(name: str, kind: str) -> Tensor:
        """The instrument's part of a layer's parameters."""
        if config.independent_params:
            stored = {
                "kernel": "conv.weight",
                "bias": "conv.bias",
                "scale": "group_norm.weight",
                "shift": "group_norm.bias",
            }
            return p[f"mask.{name}.{stored[kind]}"].chunk(len(config.instruments))[i]
        hidden = F.linear(
            p["instrument_embedding.weight"][i], p[f"mask.{name}.bottleneck.weight"], p[f"mask.{name}.bottleneck.bias"]
        )
        layer = kind if kind in ("kernel", "bias") else "affine"
        values = F.linear(hidden, p[f"mask.{name}.{layer}.weight"], p[f"mask.{name}.{layer}.bias"])
        return values if layer != "affine" else values.chunk(2)[kind == "shift"]

    def conv(x: Tensor, name: str, out: int, bias: bool = False) -> Tensor:
        return F.conv1d(x, own(name, "kernel").reshape(out, -1, 1), own(name, "bias") if bias else None)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 8, own(name, "scale"), own(name, "shift"), 1e-8)

    def prelu(x: Tensor, name: str) -> Tensor:
        return F.prelu(x, p[f"mask.{name}.weight"])

    B, H, bias = config.B, config.H, config.residual_bias
    x = conv(norm(prelu(x, "prelu_1"), "norm_1"), "in_conv", B)
    x = norm(prelu(x, "prelu_2"), "norm_2")
    skips = torch.zeros_like(x)
    for block in range(config.layers * config.stack):
        name, d = f"tcn.{block}", 2 ** (block % config.layers)
        h = norm(prelu(conv(x, f"{name}.conv1d", H), f"{name}.prelu_1"), f"{name}.norm_1")
        h = F.conv1d(h, own(f"{name}.dconv1d", "kernel").reshape(H, 1, 3), padding=d, dilation=d, groups=H)
        h = norm(prelu(h, f"{name}.prelu_2"), f"{name}.norm_2")
        x = x + conv(h, f"{name}.res_out", B, bias)
        skips = skips + conv(h, f"{name}.skip_out", B, bias)
    x = norm(prelu(skips, "prelu_3"), "norm_3")
    return norm(prelu(conv(x, "mask_output", latent_width(p)), "prelu_4"), "norm_4")


def latent_width(p: State) -> int:
    """N of the stage."""
    return p["decoder.bottleneck.0.weight"].shape[0]
