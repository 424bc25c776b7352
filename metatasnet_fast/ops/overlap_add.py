"""Transposed strided filters: frames of samples are added where they overlap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .bottleneck import Rectified, added, check_bank, check_frames, framed, gated, narrowed, rounded
from .operator import differentiable, kernels, operator, products, unit_stride, wide

__all__ = ["overlap_add"]


def overlap_add(
    x: Tensor | Rectified, bank: Tensor, stride: int, padding: int, *, narrow: tuple[int, int] = (0, 0), tf32: bool = False
) -> Tensor:  # fmt: skip
    """Return signal[n, s] = sum over t, k with t stride + k - padding = s of sum_c x[n, t, c] bank[c, k].

    The transpose of :func:`filter_bank`, differentiable once. The overlapping frames are never written out.

    Args:
        x: (n, frames, C), float32, bfloat16, float16; on a CPU also float64.
        bank: (C, taps), any floating dtype; products are taken in the dtype of ``x`` and summed in float32.
        stride: samples from one frame to the next.
        padding: samples cut off at both ends.
        narrow: (rows, taps): treat the first ``rows`` rows of the bank as zero outside the ``taps`` taps in their middle, to
            save products.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.

    Returns:
        (n, (frames - 1) stride + taps - 2 padding), float32 (float64 if ``x`` is).

    Raises:
        ShapeError: if a shape, dtype, device or size does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    x, rectified = (x.value, True) if isinstance(x, Rectified) else (x, False)
    check_frames("x", x)
    check_bank(bank, x.shape[2], stride, padding, x, narrow)
    y: Tensor = _overlap_add(x, bank, stride, padding, *narrow, rectified, tf32)
    return y


def _samples(x: Tensor, bank: Tensor, stride: int, padding: int) -> Any:
    return (x.shape[1] - 1) * stride + bank.shape[1] - 2 * padding


def _kernel(
    x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> Tensor:  # fmt: skip
    found: Tensor = kernels("overlap_add", x.dtype).overlap_add(
        unit_stride(x), bank.to(x.dtype).contiguous(), stride, padding, _samples(x, bank, stride, padding),
        products(tf32, x), narrow=narrow, inner=inner,
    )  # fmt: skip
    return found


@operator("overlap_add", _kernel)
def _overlap_add(
    x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> Tensor:  # fmt: skip
    bank = narrowed(rounded(bank, x), narrow, inner)
    return added(x.to(wide(x.dtype)) @ bank, _samples(x, bank, stride, padding), stride, padding)


def _backward_kernel(
    dy: Tensor, x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    common = kernels("bottleneck", x.dtype)
    precision, framing = products(tf32, x), common.Framing(x.shape[1], stride, padding, narrow, inner)
    dy = unit_stride(dy.to(x.dtype))
    gate = x.contiguous() if rectified else None
    dx = common.product(dy, bank.to(x.dtype), precision, gate=gate, framing=framing)
    dbank, _ = common.weight_gradient(unit_stride(x), dy, bank.shape[1], precision, framing=framing)
    return dx, dbank.contiguous()


@operator("overlap_add_backward", _backward_kernel)
def _overlap_add_backward(
    dy: Tensor, x: Tensor, bank: Tensor, stride: int, padding: int, narrow: int, inner: int, rectified: bool, tf32: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return dx and dbank (also for taps that are treated as zero); dy is first rounded to the dtype of ``x``."""
    frames = framed(rounded(dy, x), bank.shape[1], stride, padding)
    dx = gated(frames @ narrowed(rounded(bank, x), narrow, inner).T, x if rectified else None)
    return dx.to(x.dtype), torch.einsum("ntc,ntk->ck", x.to(dx.dtype), frames)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bank, *ctx.settings = inputs
    ctx.save_for_backward(x, bank)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, bank = ctx.saved_tensors
    dx, dbank = _overlap_add_backward(dy, x, bank, *ctx.settings)
    return dx, dbank.to(bank.dtype), None, None, None, None, None, None


differentiable(_overlap_add, _differentiate, _save, _overlap_add_backward)
