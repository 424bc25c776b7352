"""Arithmetic and checks that the codec's operations share: products of frames with one weight matrix.

Activations are (n, frames, channels), signals (n, samples). Operands are rounded to the dtype of the activation; sums are
taken in the dtype of :func:`wide`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .operator import check_parameter, wide

__all__ = [
    "Rectified",
    "added",
    "check_bank",
    "check_frames",
    "framed",
    "gated",
    "interpolation",
    "narrowed",
    "rounded",
]


class Rectified(NamedTuple):
    """The result of a ReLU whose gradient is left to the operations that read the result; for this reason it is not a tensor.

    Such an operation returns a gradient that is zero where ``value`` is zero. This saves a separate pass over the gradient.
    """

    value: Tensor


def interpolation(rows: int, frames: int, like: Tensor) -> Tensor:
    """Return the weights (frames, rows) of linear interpolation with aligned corners; row 0 alone for one row or one frame."""
    place = torch.arange(frames, device=like.device)[:, None] * (rows - 1)
    row = torch.arange(rows, device=like.device)[None] * max(frames - 1, 1)
    return (1 - (place - row).abs().to(like.dtype) / max(frames - 1, 1)).clamp(min=0)


def framed(signal: Tensor, taps: int, stride: int, padding: int) -> Tensor:
    """Cut a signal into overlapping frames (n, T, taps): frame t starts at sample t stride - padding; zeros outside."""
    return F.pad(signal, (padding, padding)).unfold(1, taps, stride)


def added(frames: Tensor, samples: int, stride: int, padding: int) -> Tensor:
    """Add frames (n, T, taps) where they overlap: the transpose of :func:`framed`."""
    n, count, taps = frames.shape
    place = torch.arange(count, device=frames.device)[:, None] * stride + torch.arange(taps, device=frames.device)
    padded = frames.new_zeros(n, samples + 2 * padding).index_add(1, place.flatten(), frames.flatten(1))
    return padded[:, padding : padding + samples]


def rounded(p: Tensor, like: Tensor) -> Tensor:
    """Round a parameter to the dtype of ``like``, as kernels do for matrix products; return it in the dtype of :func:`wide`."""
    return p.to(like.dtype).to(wide(like.dtype))


def narrowed(bank: Tensor, narrow: int, inner: int) -> Tensor:
    """Return the bank with zeros outside the middle ``inner`` taps of the first ``narrow`` rows."""
    if narrow == 0:
        return bank
    end, taps = (bank.shape[1] - inner) // 2, torch.arange(bank.shape[1], device=bank.device)
    outside = (taps < end) | (taps >= bank.shape[1] - end)
    return bank.masked_fill(outside & (torch.arange(len(bank), device=bank.device) < narrow)[:, None], 0)


def gated(dy: Tensor, y: Tensor | None) -> Tensor:
    """Return the gradient before a ReLU whose result is ``y``, in the dtype of :func:`wide`; without a ReLU, ``y`` is None."""
    dy = dy.to(wide(dy.dtype))
    return dy if y is None else torch.where(y > 0, dy, 0)


def check_frames(name: str, x: Tensor) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (n, frames, channels), floating point, with at least one frame."""
    if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] == 0 or not x.is_floating_point():
        raise ShapeError(
            f"{name} must be floating point (n, frames, channels) with at least one frame, "
            f"got {x.dtype} {tuple(x.shape)}."
        )


def check_bank(
    bank: Tensor, channels: int | None, stride: int, padding: int, like: Tensor, narrow: tuple[int, int] = (0, 0)
) -> None:  # fmt: skip
    """Raise :class:`ShapeError` unless the bank is (channels, taps) and stride, padding and narrow rows fit it."""
    rows = channels if channels is not None else (bank.shape[0] if bank.dim() == 2 else 1)
    taps = bank.shape[1] if bank.dim() == 2 else 1
    check_parameter("bank", bank, (max(rows, 1), max(taps, 1)), like)
    if stride < 1 or not 0 <= 2 * padding < taps:
        raise ShapeError(
            f"stride must be at least 1 and padding below half of {taps} taps, got stride {stride}, padding {padding}."
        )
    fits = 0 <= narrow[0] <= bank.shape[0] and 0 <= narrow[1] <= taps and (taps - narrow[1]) % 2 == 0
    if narrow != (0, 0) and not fits:
        raise ShapeError(
            f"narrow must be at most {bank.shape[0]} rows and {taps} taps, as many on both sides, got {narrow}."
        )
