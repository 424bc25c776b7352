"""Every launch of the encoder and the decoder at the default widths, stage by stage, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.kernels import (
    bottleneck,
    launch,
    log_power,
    loss,
    overlap_add,
)

from .network import empty

ITEMS = 2
MELS = 256


def _bottleneck(
    inputs: int, outputs: int, frames: int, dtype: torch.dtype, tf32: bool,
    relu: bool = False, rectified: bool = False, bias: bool = False, rows: int = 0,
) -> None:  # fmt: skip
    x, dy = empty(ITEMS, frames, inputs, dtype=dtype), empty(ITEMS, frames, outputs, dtype=dtype)
    weight, precision = empty(outputs, inputs, dtype=dtype), launch.products(tf32, torch.device("meta"))
    share = empty(ITEMS, rows, outputs) if rows else None
    bottleneck.product(
        x, weight, precision, bias=empty(outputs) if bias else None, share=share, relu=relu
    )  # fmt: skip
    bottleneck.product(dy, weight.T, precision, gate=x if rectified else None)
    bottleneck.weight_gradient(dy, x, inputs, precision, bias=bias)
    if rows:
        bottleneck.interpolation_backward(dy, rows)


def aligned(width: int) -> int:
    """As `metatasnet_fast.ops.codec` pads the widths."""
    return -(-width // 8) * 8


def uses(stage: int, frames: int, dtype: torch.dtype, tf32: bool = False) -> dict[str, Callable[[], None]]:
    """What encoder and decoder launch, forward and backward, by the layer's name; stages count from 1."""
    config = MetaTasNetConfig().stage(stage - 1)
    taps, padding = max(config.kernel_sizes), (max(config.kernel_sizes) - config.W) // 2
    waves, parts = aligned(3 * config.encoder_width), aligned(sum(config.decoder_widths))
    samples = frames * config.W
    precision, rows, rough = launch.products(tf32, torch.device("meta")), frames // 12 + 1, tf32 or dtype.itemsize == 2
    inner = sorted(config.kernel_sizes)[-2]
    framing = bottleneck.Framing(frames, config.W, padding, 2 * config.encoder_width, inner)
    shorter = sum(config.decoder_widths[:-1])
    reached = bottleneck.Framing(frames, config.W, padding, shorter, inner)

    def bank() -> None:
        signal, weight = empty(ITEMS, samples, dtype=dtype), empty(waves, taps, dtype=dtype)
        y = empty(ITEMS, frames, waves, dtype=dtype)
        bottleneck.product(signal, weight, precision, relu=True, framing=framing)
        bottleneck.weight_gradient(y, signal, taps, precision, framing=framing)
        overlap_add.overlap_add(
            y, weight, config.W, padding, samples, precision, narrow=framing.narrow, inner=inner, dtype=dtype
        )  # fmt: skip

    def added() -> None:
        x, weight = empty(ITEMS, frames, parts, dtype=dtype), empty(parts, taps, dtype=dtype)
        signal = empty(ITEMS, samples, dtype=dtype)
        overlap_add.overlap_add(x, weight, config.W, padding, samples, precision, narrow=shorter, inner=inner)
        bottleneck.product(signal, weight, precision, gate=x, framing=reached)
        bottleneck.weight_gradient(x, signal, taps, precision, framing=reached)

    def power() -> None:
        signal, window, mean = empty(ITEMS, samples + config.n_fft), empty(config.n_fft), empty(config.bins)
        y = log_power.log_power_forward(signal, window, mean, config.hop)
        log_power.log_power_backward(y, signal, window, config.hop)

    def losses() -> None:
        signals = [empty(ITEMS, k, samples) for k in (4, 4, 1, 1)]
        estimate, target, mix_estimate, mix = signals
        mask, divisors, latents = empty(ITEMS, 4), empty(7), empty(ITEMS, 4, frames, config.N, dtype=dtype)
        dloss, _, *kept = loss.stage_loss_forward(
            estimate, target, mask, latents, mix_estimate, mix, divisors, 2.0, 3.0, 0.05
        )
        loss.stage_loss_backward(dloss, estimate, target, mask, latents, mix_estimate, mix, *kept)

    def product(inputs: int, outputs: int, **what: bool | int) -> Callable[[], None]:
        return lambda: _bottleneck(inputs, outputs, frames, dtype, tf32, **what)  # type: ignore[arg-type]

    def mel(inputs: int, outputs: int, bias: bool) -> Callable[[], None]:
        return lambda: _bottleneck(inputs, outputs, rows, torch.float32, rough, bias=bias)

    return {
        "filters": bank,
        "log power": power,
        "mel map": mel(config.bins, MELS, True),
        "mel share": mel(MELS, config.N, False),
        "bottleneck 1": product(waves, config.N, relu=True, rectified=True, rows=rows),
        "bottleneck 2": product(config.N, config.N, rectified=True),
        "decoder": product(config.N, parts, relu=True),
        "overlap-add": added,
        "losses": losses,
    }
