"""Strided filters of one width on a signal (all filters of the encoder in one operation), and their transpose: overlap-add."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError
from .bottleneck import Rectified, check_frames, gated, rounded
from .bottleneck import forward as product
from .operator import check_parameter, differentiable, kernels, operator, products, unit_stride, wide

__all__ = ["filter_bank", "overlap_add", "rectified_filter_bank"]


def filter_bank(
    signal: Tensor, bank: Tensor, stride: int, padding: int, *, narrow: tuple[int, int] = (0, 0), relu: bool = True,
    tf32: bool = False,
) -> Tensor:  # fmt: skip
    """Return y[n, t, o] = act( sum_k bank[o, k] signal[n, t stride + k - padding] ); the signal is zero outside its samples.

    The operation is differentiable once. The signal's gradient is computed only if it is needed.

    Args:
        signal: (n, samples), float32, bfloat16, float16; on a CPU also float64.
        bank: (outputs, taps), any floating dtype. It is rounded to the signal's dtype; products are summed in float32.
        stride: samples from one frame to the next.
        padding: number of samples by which the first frame starts before the signal.
        narrow: (rows, taps): treat the first ``rows`` rows of the bank as zero outside the ``taps`` taps in their middle, to
            save products.
        relu: whether act is a ReLU; else act is the identity.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        y, (n, (samples + 2 padding - taps) // stride + 1, outputs), in the signal's dtype.

    Raises:
        ShapeError: if a shape, dtype, device or size does not fit, or the signal is too short for one frame.
        MissingDependencyError: on a CUDA device without Triton.
    """
    return _checked(signal, bank, stride, padding, narrow, relu, False, tf32)


def rectified_filter_bank(
    signal: Tensor, bank: Tensor, stride: int, padding: int, *, narrow: tuple[int, int] = (0, 0), tf32: bool = False
) -> Rectified:  # fmt: skip
    """Return the result of :func:`filter_bank` with a ReLU. See :class:`Rectified` for its
    gradient."""
    return Rectified(_checked(signal, bank, stride, padding, narrow, True, True, tf32))


def _checked(
    signal: Tensor, bank: Tensor, stride: int, padding: int, narrow: tuple[int, int], relu: bool, deferred: bool, tf32: bool
) -> Tensor:  # fmt: skip
    if signal.dim() != 2 or not signal.is_floating_point():
        raise ShapeError(f"signal must be (n, samples), floating point, got {signal.dtype} {tuple(signal.shape)}.")
    _check_bank(bank, None, stride, padding, signal, narrow)
    if signal.shape[1] + 2 * padding < bank.shape[1]:
        raise ShapeError(f"{signal.shape[1]} samples padded by {padding} hold no frame of {bank.shape[1]}: pad more.")
    y: Tensor = _filter_bank(signal, bank, stride, padding, *narrow, relu, deferred, tf32)
    return y


def _frames(signal: Tensor, bank: Tensor, stride: int, padding: int) -> Any:
    return (signal.shape[1] + 2 * padding - bank.shape[1]) // stride + 1


def _kernel(
    signal: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, relu: bool, deferred: bool, tf32: bool
) -> Tensor:  # fmt: skip
    common = kernels("bottleneck", signal.dtype)
    framing = common.Framing(_frames(signal, bank, stride, padding), stride, padding, narrow, inner)
    found: Tensor = common.product(
        unit_stride(signal), bank.to(signal.dtype), products(tf32, signal), relu=relu, framing=framing
    )
    return found


@operator("filter_bank", _kernel)
def _filter_bank(
    signal: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, relu: bool, deferred: bool, tf32: bool
) -> Tensor:  # fmt: skip
    return product(_framed(signal, bank.shape[1], stride, padding), _narrowed(bank, narrow, inner), None, None, relu)


def _backward_kernel(
    dy: Tensor, signal: Tensor, bank: Tensor, y: Tensor | None, stride: int, padding: int, narrow: int, inner: int,
    need_signal: bool, tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    common = kernels("bottleneck", signal.dtype)
    precision, framing = products(tf32, signal), common.Framing(dy.shape[1], stride, padding)
    dy, dsignal = unit_stride(dy if y is None else torch.where(y > 0, dy, 0)), signal.new_empty(0)
    if need_signal:
        dsignal = kernels("overlap_add", signal.dtype).overlap_add(
            dy, bank.to(signal.dtype).contiguous(), stride, padding, signal.shape[1], precision, narrow=narrow, inner=inner,
            dtype=signal.dtype,
        )  # fmt: skip
    dbank, _ = common.weight_gradient(dy, unit_stride(signal), bank.shape[1], precision, framing=framing)
    return dsignal, dbank.contiguous()


@operator("filter_bank_backward", _backward_kernel)
def _filter_bank_backward(
    dy: Tensor, signal: Tensor, bank: Tensor, y: Tensor | None, stride: int, padding: int, narrow: int, inner: int,
    need_signal: bool, tf32: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    g = gated(dy, y)
    frames = _framed(signal.to(g.dtype), bank.shape[1], stride, padding)
    dsignal = signal.new_empty(0)
    if need_signal:
        dsignal = _added(g @ _narrowed(rounded(bank, signal), narrow, inner), signal.shape[1], stride, padding)
        dsignal = dsignal.to(signal.dtype)
    return dsignal, torch.einsum("nto,ntk->ok", g, frames)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    signal, bank, *ctx.settings, relu, deferred, ctx.tf32 = inputs
    ctx.save_for_backward(signal, bank, output if relu and not deferred else None)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    signal, bank, y = ctx.saved_tensors
    need_signal = ctx.needs_input_grad[0]
    dsignal, dbank = _filter_bank_backward(dy, signal, bank, y, *ctx.settings, need_signal, ctx.tf32)
    return dsignal if need_signal else None, dbank.to(bank.dtype), None, None, None, None, None, None, None


differentiable(_filter_bank, _differentiate, _save, _filter_bank_backward)


def overlap_add(
    x: Tensor | Rectified, bank: Tensor, stride: int, padding: int, *, narrow: tuple[int, int] = (0, 0), tf32: bool = False
) -> Tensor:  # fmt: skip
    """Return signal[n, s] = sum over t, k with t stride + k - padding = s of sum_c x[n, t, c] bank[c, k].

    This is the transpose of :func:`filter_bank`. It is differentiable once. The overlapping frames are never written out.

    Args:
        x: (n, frames, C), float32, bfloat16, float16; on a CPU also float64.
        bank: (C, taps), any floating dtype. It is rounded to the dtype of ``x``; products are summed in float32.
        stride: samples from one frame to the next.
        padding: number of samples that are cut off at each end.
        narrow: (rows, taps): treat the first ``rows`` rows of the bank as zero outside the ``taps`` taps in their middle, to
            save products.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        the signal, (n, (frames - 1) stride + taps - 2 padding), float32 (float64 if ``x`` is).

    Raises:
        ShapeError: if a shape, dtype, device or size does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    x, rectified = (x.value, True) if isinstance(x, Rectified) else (x, False)
    check_frames("x", x)
    _check_bank(bank, x.shape[2], stride, padding, x, narrow)
    y: Tensor = _overlap_add(x, bank, stride, padding, *narrow, rectified, tf32)
    return y


def _length(x: Tensor, bank: Tensor, stride: int, padding: int) -> Any:
    return (x.shape[1] - 1) * stride + bank.shape[1] - 2 * padding


def _adding_kernel(
    x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> Tensor:  # fmt: skip
    found: Tensor = kernels("overlap_add", x.dtype).overlap_add(
        unit_stride(x), bank.to(x.dtype).contiguous(), stride, padding, _length(x, bank, stride, padding),
        products(tf32, x), narrow=narrow, inner=inner,
    )  # fmt: skip
    return found


@operator("overlap_add", _adding_kernel)
def _overlap_add(
    x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> Tensor:  # fmt: skip
    bank = _narrowed(rounded(bank, x), narrow, inner)
    return _added(x.to(wide(x.dtype)) @ bank, _length(x, bank, stride, padding), stride, padding)


def _adding_backward_kernel(
    dy: Tensor, x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    common = kernels("bottleneck", x.dtype)
    precision, framing = products(tf32, x), common.Framing(x.shape[1], stride, padding, narrow, inner)
    dy = unit_stride(dy.to(x.dtype))
    gate = x.contiguous() if rectified else None
    dx = common.product(dy, bank.to(x.dtype), precision, gate=gate, framing=framing)
    dbank, _ = common.weight_gradient(unit_stride(x), dy, bank.shape[1], precision, framing=framing)
    return dx, dbank.contiguous()


@operator("overlap_add_backward", _adding_backward_kernel)
def _overlap_add_backward(
    dy: Tensor, x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return dx and dbank; dbank has values also for taps that are treated as zero. First dy is rounded to x's dtype."""
    frames = _framed(rounded(dy, x), bank.shape[1], stride, padding)
    dx = gated(frames @ _narrowed(rounded(bank, x), narrow, inner).T, x if rectified else None)
    return dx.to(x.dtype), torch.einsum("ntc,ntk->ck", x.to(dx.dtype), frames)


def _save_adding(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bank, *ctx.settings = inputs
    ctx.save_for_backward(x, bank)


def _differentiate_adding(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, bank = ctx.saved_tensors
    dx, dbank = _overlap_add_backward(dy, x, bank, *ctx.settings)
    return dx, dbank.to(bank.dtype), None, None, None, None, None, None


differentiable(_overlap_add, _differentiate_adding, _save_adding, _overlap_add_backward)


def _framed(signal: Tensor, taps: int, stride: int, padding: int) -> Tensor:
    """Return a signal (n, samples) cut into overlapping frames (n, T, taps).

    Frame t starts at sample t stride - padding. Outside the signal the frames are zero.
    """
    return F.pad(signal, (padding, padding)).unfold(1, taps, stride)


def _added(frames: Tensor, samples: int, stride: int, padding: int) -> Tensor:
    """Return the signal (n, samples): frames (n, T, taps), added up where they overlap. This is :func:`_framed` transposed."""
    n, count, taps = frames.shape
    place = torch.arange(count, device=frames.device)[:, None] * stride + torch.arange(taps, device=frames.device)
    padded = frames.new_zeros(n, samples + 2 * padding).index_add(1, place.flatten(), frames.flatten(1))
    return padded[:, padding : padding + samples]


def _narrowed(bank: Tensor, narrow: int, inner: int) -> Tensor:
    """Return the bank with zeros outside the middle ``inner`` taps of the first ``narrow`` rows."""
    if narrow == 0:
        return bank
    end, taps = (bank.shape[1] - inner) // 2, torch.arange(bank.shape[1], device=bank.device)
    outside = (taps < end) | (taps >= bank.shape[1] - end)
    return bank.masked_fill(outside & (torch.arange(len(bank), device=bank.device) < narrow)[:, None], 0)


def _check_bank(
    bank: Tensor, channels: int | None, stride: int, padding: int, like: Tensor, narrow: tuple[int, int] = (0, 0)
) -> None:  # fmt: skip
    """Raise :class:`ShapeError` unless the bank is (channels, taps), and stride, padding and narrow rows fit the bank."""
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
