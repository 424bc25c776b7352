"""What the codec's operations check: activations (n, frames, channels) and banks of filters."""

from __future__ import annotations

from torch import Tensor

from ..errors import ShapeError
from .library import check_parameter

__all__ = ["check_bank", "check_frames"]


def check_frames(name: str, x: Tensor) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (n, frames, channels), floating point, with at least one frame."""
    if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] == 0 or not x.is_floating_point():
        raise ShapeError(
            f"{name} must be floating point (n, frames, channels) with at least one frame, "
            f"got {x.dtype} {tuple(x.shape)}."
        )


def check_bank(bank: Tensor, channels: int | None, stride: int, padding: int, like: Tensor) -> None:
    """Raise :class:`ShapeError` unless the bank is (channels, taps) and stride and padding fit it."""
    rows = channels if channels is not None else (bank.shape[0] if bank.dim() == 2 else 1)
    taps = bank.shape[1] if bank.dim() == 2 else 1
    check_parameter("bank", bank, (max(rows, 1), max(taps, 1)), like)
    if stride < 1 or not 0 <= 2 * padding < taps:
        raise ShapeError(
            f"stride must be at least 1 and padding below half of {taps} taps, got stride {stride}, padding {padding}."
        )
