"""Count the floating-point operations and bytes of each pass of the backend ``cpu``, from the sizes of a stage."""

from __future__ import annotations

from metatasnet_fast.config import StageConfig

__all__ = ["job_flops", "mask_bytes", "mask_flops"]


def mask_flops(config: StageConfig) -> dict[str, int]:
    """Return the operations per latent frame of each masking pass that has matrix products, for the four instruments."""
    n, k, b, h, blocks = config.N, config.in_channels, config.B, config.H, len(config.dilations)
    return {
        "input_conv": 8 * k * b,
        "block_input": 8 * (blocks * b * h + 2 * (blocks - 1) * b * h),
        "depthwise": 8 * 3 * blocks * h,
        "skip_output": 8 * h * b,
        "mask_output": 8 * b * n,
    }


def mask_bytes(config: StageConfig, storage: int) -> dict[str, int]:
    """Return the bytes per latent frame that each pass reads and writes, without weights; an activation takes
    ``storage`` bytes."""
    n, k, b, h, blocks = config.N, config.in_channels, config.B, config.H, len(config.dilations)
    return {
        "input_conv": 4 * (k * storage + 4 * b),
        "block_input": 4 * (blocks * (8 * b + h * storage) + (blocks - 1) * (h * storage + 8 * b)),
        "depthwise": 4 * blocks * 2 * h * storage,
        "skip_output": 4 * (h * storage + 4 * b + b * storage),
        "mask_output": 4 * (b + n) * storage,
        "mask_product": (8 + 1) * n * storage,
        "source_moments": (n + 4 * config.partial_channels) * storage,
    }


def job_flops(config: StageConfig) -> dict[str, int]:
    """Return the operations per latent frame of one item's encoder, masking network and four decoders, without the
    spectrogram."""
    n, width = config.N, config.encoder_width
    bank = sum(2 * width * k for k in config.kernel_sizes)
    filters = sum(2 * w * k for w, k in zip(config.decoder_widths, config.kernel_sizes, strict=True))
    return {
        "encode": bank + 2 * n * width * len(config.kernel_sizes) + 2 * n * n,
        "mask": sum(mask_flops(config).values()),
        "decode": 4 * (2 * n * sum(config.decoder_widths) + filters),
    }
