"""Products of frames with one weight matrix, forward and backward: the arithmetic of the codec's fused operations.

Activations are (n, frames, channels), signals (n, samples). Operands are rounded to the dtype of the activation, sums are
taken in :func:`wide`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .statistics import wide

__all__ = ["bottleneck", "bottleneck_backward", "filter_bank", "filter_bank_backward", "framed", "interpolation",
           "overlap_add", "overlap_add_backward"]  # fmt: skip


def interpolation(rows: int, frames: int, like: Tensor) -> Tensor:
    """Weights (frames, rows) of linear interpolation with aligned corners; row 0 alone for one row or one frame."""
    place = torch.arange(frames, device=like.device)[:, None] * (rows - 1)
    row = torch.arange(rows, device=like.device)[None] * max(frames - 1, 1)
    return (1 - (place - row).abs().to(like.dtype) / max(frames - 1, 1)).clamp(min=0)


def framed(signal: Tensor, taps: int, stride: int, padding: int) -> Tensor:
    """Overlapping frames (n, T, taps): frame t holds samples t stride - padding and on, zero outside the signal."""
    return F.pad(signal, (padding, padding)).unfold(1, taps, stride)


def _wide(p: Tensor, like: Tensor) -> Tensor:
    return p.to(like.dtype).to(wide(like.dtype))


def bottleneck(x: Tensor, weight: Tensor, bias: Tensor | None, share: Tensor | None, relu: bool) -> Tensor:
    """y = act(x W^T + bias + interpolated share), act ReLU or nothing, in the dtype of ``x``."""
    y = x.to(wide(x.dtype)) @ _wide(weight, x).T
    y = y if bias is None else y + bias.to(y.dtype)
    if share is not None:
        y = y + torch.einsum("tf,nfo->nto", interpolation(share.shape[1], x.shape[1], y), share.to(y.dtype))
    return (y.relu() if relu else y).to(x.dtype)


def _let_pass(dy: Tensor, y: Tensor | None) -> Tensor:
    """The gradient in front of a ReLU whose result is ``y``."""
    dy = dy.to(wide(dy.dtype))
    return dy if y is None else torch.where(y > 0, dy, 0)


def bottleneck_backward(
    dy: Tensor, x: Tensor, weight: Tensor, y: Tensor | None, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dW, dbias, dshare of ``rows`` rows (none: no elements)."""
    g = _let_pass(dy, y)
    dshare = torch.einsum("tf,nto->nfo", interpolation(rows, x.shape[1], g), g) if rows else g.new_empty(0)
    dx = (g @ _wide(weight, x)).to(x.dtype)
    return dx, torch.einsum("nto,ntk->ok", g, x.to(g.dtype)), g.sum((0, 1)), dshare


def filter_bank(signal: Tensor, bank: Tensor, stride: int, padding: int, relu: bool) -> Tensor:
    """y[n, t, o] = act( sum_k bank[o, k] signal[n, t stride + k - padding] )."""
    return bottleneck(framed(signal, bank.shape[1], stride, padding), bank, None, None, relu)


def filter_bank_backward(
    dy: Tensor, signal: Tensor, bank: Tensor, y: Tensor | None, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """dsignal, dbank."""
    g = _let_pass(dy, y)
    frames = framed(signal.to(g.dtype), bank.shape[1], stride, padding)
    dsignal = _added(g @ _wide(bank, signal), signal.shape[1], stride, padding)
    return dsignal.to(signal.dtype), torch.einsum("nto,ntk->ok", g, frames)


def _added(frames: Tensor, samples: int, stride: int, padding: int) -> Tensor:
    """Frames (n, T, taps) added where they overlap: the transpose of :func:`framed`."""
    n, count, taps = frames.shape
    place = torch.arange(count, device=frames.device)[:, None] * stride + torch.arange(taps, device=frames.device)
    padded = frames.new_zeros(n, samples + 2 * padding).index_add(1, place.flatten(), frames.flatten(1))
    return padded[:, padding : padding + samples]


def overlap_add(x: Tensor, bank: Tensor, stride: int, padding: int) -> Tensor:
    """signal[n, s] = sum over t, k with t stride + k - padding = s of sum_c x[n, t, c] bank[c, k], not rounded."""
    frames = x.to(wide(x.dtype)) @ _wide(bank, x)
    return _added(frames, (x.shape[1] - 1) * stride + bank.shape[1] - 2 * padding, stride, padding)


def overlap_add_backward(dy: Tensor, x: Tensor, bank: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """dx, dbank; dy is rounded to the dtype of ``x`` first."""
    frames = framed(_wide(dy, x), bank.shape[1], stride, padding)
    dx = (frames @ _wide(bank, x).T).to(x.dtype)
    return dx, torch.einsum("ntc,ntk->ck", x.to(frames.dtype), frames)
