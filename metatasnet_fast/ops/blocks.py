"""All blocks of the masking network in a row: the residual stream in, the sum of the skips out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import GROUPS
from ..errors import ShapeError
from ..reference import blocks as plain
from ..reference.statistics import activation, tile_statistics, wide
from .library import (
    LIBRARY,
    NAMESPACE,
    check_activation,
    check_parameter,
    kernels,
    register,
    register_once_differentiable,
    tile,
    unit_stride,
)

__all__ = ["BlockParameters", "blocks", "kept_for_backward"]


class BlockParameters(NamedTuple):
    """The weights of L blocks, of B channels outside and H inside, stacked; any floating dtype."""

    conv1d: Tensor
    """(L, 4, H, B)"""
    slope_1: Tensor
    """(L,)"""
    gamma_1: Tensor
    """(L, 4, H)"""
    beta_1: Tensor
    taps: Tensor
    """(L, 4, H, 3)"""
    slope_2: Tensor
    gamma_2: Tensor
    beta_2: Tensor
    out: Tensor
    """(L, 4, 2 B, H): rows of res_out, then of skip_out. The last block's res_out is not used, and its gradient zero."""
    bias: Tensor | None
    """(L, 4, 2 B), likewise; None for none."""


def blocks(
    x: Tensor,
    parameters: BlockParameters,
    dilations: Sequence[int],
    layers: int,
    next_slope: Tensor,
    *,
    keep: int | None = None,
    items: int = 0,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """skips = sum_l skip_out(h_l), h_l = norm_2(PReLU(dconv1d(norm_1(PReLU(conv1d(x_l)))))), x_(l+1) = x_l + res_out(h_l).

    Differentiable once, in everything but the statistics.

    Args:
        x: (n, 4, frames, B), the residual stream: float32, bfloat16, float16; on a CPU also float64.
        parameters: of L blocks; H and B multiples of 8.
        dilations: of each block.
        layers: blocks of a stack, a divisor of L: their skips are one product.
        next_slope: (1,), of the PReLU that will be applied to the skips.
        keep: what to keep for backward, see :func:`kept_for_backward`, which decides if it is None.
        items: go through all blocks at a time; 0 for as many as was measured to be best on the device, or all.
        tf32: products of float32 in TF32 on the tensor cores, three decimal digits.

    Returns:
        skips (n, 4, frames, B) in the dtype of ``x``, and the statistics of PReLU(skips, next_slope).

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    p, width = parameters, x.shape[3]
    if p.conv1d.dim() != 4 or p.conv1d.shape[2] % GROUPS or p.conv1d.shape[2] == 0:
        raise ShapeError(f"conv1d must be (blocks, 4, a multiple of {GROUPS}, {width}), got {tuple(p.conv1d.shape)}.")
    count, _, hidden, _ = p.conv1d.shape
    if len(dilations) != count or min(dilations) < 1 or layers < 1 or count % layers:
        raise ShapeError(
            f"{count} blocks need as many dilations of at least 1, and whole stacks; got {dilations}, {layers}."
        )
    channels = (count, 4, hidden)
    shapes = (
        (*channels, width), (count,), channels, channels, (*channels, 3), (count,), channels, channels,
        (count, 4, 2 * width, hidden), (count, 4, 2 * width),
    )  # fmt: skip
    for name, value, shape in zip(p._fields, p, shapes, strict=True):
        check_parameter(name, value, shape, x)
    check_parameter("next_slope", next_slope, (1,), x)
    if keep is None:
        gradients = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, *p))
        keep = kept_for_backward(x.dtype) if gradients else 0
    skips, statistics, *_ = _blocks(x, *p, next_slope, list(dilations), layers, keep, items, tf32)
    return skips, statistics


def kept_for_backward(dtype: torch.dtype) -> int:
    """What training keeps of every block: 1, its input and what enters its first PReLU; 2, what leaves its second PReLU, too.

    In units of a block's activation, eager PyTorch keeps 7. Keeping 2 costs one more depthwise pass in backward, 2 of 19 units
    of traffic; so three are kept in two bytes, where that is 21 % of eager's float32, and two in four bytes, where three would
    be 43 %.
    """
    return 2 if dtype.itemsize == 2 else 1


def _stacked(p: Sequence[Any]) -> plain.Stacked:
    return plain.Stacked(*p)


def _tower(x: Tensor, p: Sequence[Any], dilations: list[int], layers: int) -> Any:
    conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias = p

    def aligned(slope: Tensor) -> Tensor:
        return slope[:, None].expand(-1, 4).contiguous()

    return kernels("blocks", x.dtype).Tower(
        conv1d.to(x.dtype).contiguous(), aligned(slope_1), gamma_1.contiguous(), beta_1.contiguous(), taps.contiguous(),
        aligned(slope_2), gamma_2.contiguous(), beta_2.contiguous(), out.contiguous(),
        None if bias is None else bias.contiguous(), tuple(dilations), layers,
    )  # fmt: skip


def _forward_kernel(
    x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor, slope_2: Tensor,
    gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, next_slope: Tensor, dilations: list[int],
    layers: int, keep: int, items: int, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    p = (conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    forward = kernels("blocks", x.dtype).blocks_forward
    skips, statistics, kept = forward(unit_stride(x), _tower(x, p, dilations, layers), next_slope, keep, items, tf32)
    return skips, statistics, kept.x, kept.c, kept.b, kept.affine_1, kept.affine_2


def _forward_reference(
    x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor, slope_2: Tensor,
    gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, next_slope: Tensor, dilations: list[int],
    layers: int, keep: int, items: int, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    p = (conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    skips, xs, cs, bs, affine_1, affine_2 = plain.forward(x, _stacked(p), dilations, tile())
    statistics = tile_statistics(activation(skips, next_slope), tile())
    stacks = bs.unflatten(0, (-1, layers)).movedim(1, -2).flatten(-2)
    empty = x.new_empty(0)
    return (
        skips.contiguous(), statistics, xs if keep else empty, cs if keep else empty.clone(),
        stacks.contiguous() if keep > 1 else empty.clone(), affine_1, affine_2,
    )  # fmt: skip


def _forward_fake(
    x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor, slope_2: Tensor,
    gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, next_slope: Tensor, dilations: list[int],
    layers: int, keep: int, items: int, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    n, _, frames, width = x.shape
    count, _, hidden, _ = conv1d.shape
    dtype = wide(x.dtype)
    return (
        x.new_empty(n, 4, frames, width),
        x.new_empty(n, 4, -(-frames // tile()), 2, width, dtype=dtype),
        x.new_empty(count - 1, n, 4, frames, width) if keep else x.new_empty(0),
        x.new_empty(count, n, 4, frames, hidden) if keep else x.new_empty(0),
        x.new_empty(count // layers, n, 4, frames, layers * hidden) if keep > 1 else x.new_empty(0),
        x.new_empty(count, n, 4, 4, hidden, dtype=dtype),
        x.new_empty(count, n, 4, 4, hidden, dtype=dtype),
    )


def _backward_kernel(
    dskips: Tensor, x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor,
    slope_2: Tensor, gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, xs: Tensor, cs: Tensor,
    bs: Tensor, affine_1: Tensor, affine_2: Tensor, dilations: list[int], layers: int, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    p = (conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    kept = kernels("blocks", x.dtype).Kept(xs, cs, bs, affine_1, affine_2)
    backward = kernels("blocks_backward", x.dtype).blocks_backward
    found: tuple[Tensor, ...] = backward(
        dskips.contiguous(), unit_stride(x), kept, _tower(x, p, dilations, layers), tf32
    )
    return found


def _backward_reference(
    dskips: Tensor, x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor,
    slope_2: Tensor, gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, xs: Tensor, cs: Tensor,
    bs: Tensor, affine_1: Tensor, affine_2: Tensor, dilations: list[int], layers: int, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    p = (conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    found = plain.backward(dskips, x, _stacked(p), dilations, (xs, cs, affine_1, affine_2))
    return tuple(value.contiguous() for value in found)


def _backward_fake(
    dskips: Tensor, x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor,
    slope_2: Tensor, gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, xs: Tensor, cs: Tensor,
    bs: Tensor, affine_1: Tensor, affine_2: Tensor, dilations: list[int], layers: int, tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    p = (conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out)
    gradients = [affine_1.new_empty(value.shape) for value in p]
    return x.new_empty(x.shape), *gradients, affine_1.new_empty(out.shape[:3])


_PARAMETERS = (
    "Tensor conv1d, Tensor slope_1, Tensor gamma_1, Tensor beta_1, Tensor taps, Tensor slope_2, Tensor gamma_2, "
    "Tensor beta_2, Tensor out, Tensor? bias"
)
_blocks = register(
    f"blocks(Tensor x, {_PARAMETERS}, Tensor next_slope, int[] dilations, int layers, int keep, int items, bool tf32) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_blocks_backward = register(
    f"blocks_backward(Tensor dskips, Tensor x, {_PARAMETERS}, Tensor xs, Tensor cs, Tensor bs, Tensor affine_1, "
    "Tensor affine_2, int[] dilations, int layers, bool tf32) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *rest = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *rest[:10], *output[2:])
    ctx.dilations, ctx.layers, keep, _, ctx.tf32 = rest[11:]
    ctx.kept = keep > 0


def _differentiate(ctx: Any, dskips: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dskips is None:
        return (None,) * 17
    if not ctx.kept:
        raise ShapeError("Nothing was kept for backward (keep=0); pass keep=None or 1.")
    saved = ctx.saved_tensors  # once: checkpointing without reentrance computes them anew, and only for one reading
    x, *p = saved[:11]
    found = _blocks_backward(dskips, x, *p, *saved[11:], ctx.dilations, ctx.layers, ctx.tf32)
    gradients = [None if v is None else g.to(v.dtype) for v, g in zip(p, found[1:], strict=True)]
    return found[0], *gradients, None, None, None, None, None, None


torch.library.register_autograd(f"{NAMESPACE}::blocks", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("blocks_backward")
