"""Run all blocks of the masking network in a row, from the residual stream to the sum of the skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import GROUPS
from ..errors import ShapeError
from .depthwise import backward as depthwise_backward
from .depthwise import forward as depthwise_forward
from .operator import check_activation, check_norm, check_parameter, differentiable, kernels, operator, unit_stride
from .pointwise import backward as pointwise_backward
from .pointwise import forward as pointwise_forward
from .statistics import GroupNorm, activation, affine_by_kernel, affine_of, normalise, tile_statistics

__all__ = ["BlockParameters", "blocks", "kept_for_backward"]


class BlockParameters(NamedTuple):
    """The stacked weights of L blocks for I instruments, in any floating dtype.

    The residual stream has B channels, the inside of a block has H.
    """

    conv1d: Tensor
    """(L, I, H, B)"""
    slope_1: Tensor
    """(L,)"""
    gamma_1: Tensor
    """(L, I, H)"""
    beta_1: Tensor
    taps: Tensor
    """(L, I, H, 3)"""
    slope_2: Tensor
    gamma_2: Tensor
    beta_2: Tensor
    out: Tensor
    """(L, I, 2 B, H): the rows of res_out, then of skip_out. The last block's res_out is not used, and its gradient is zero."""
    bias: Tensor | None
    """(L, I, 2 B): the biases of res_out, then of skip_out; None for no bias."""


def blocks(
    x: Tensor,
    parameters: BlockParameters,
    dilations: Sequence[int],
    next_slope: Tensor,
    *,
    keep: int | None = None,
    items: int = 0,
    tf32: bool = False,
    activated: bool = False,
    start: tuple[Tensor, GroupNorm] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return skips = sum_l skip_out(h_l) over all blocks l, with x_(l+1) = x_l + res_out(h_l) and h_l as below.

    h_l = norm_2(PReLU(dconv1d(norm_1(PReLU(conv1d(x_l)))))). The operation is differentiable once, in all inputs except the
    statistics.

    Args:
        x: (n, I, frames, B), the residual stream: float32, bfloat16, float16; on a CPU also float64.
        parameters: the weights of L blocks; H and B are multiples of 8.
        dilations: the dilation of each block, in frames.
        next_slope: (1,), slope of the PReLU that will be applied to the skips.
        keep: what to keep for backward: 0 nothing, 1 or 2 as in :func:`kept_for_backward`. If None, this function chooses if
            gradients are needed, else nothing is kept.
        items: how many items go through all blocks at a time; 0 for the number measured to be best on the device, or all.
        tf32: compute float32 products in TF32 on the tensor cores, to three decimal digits.
        activated: return PReLU(skips, next_slope) instead of skips. Only for inference: it has no gradient.
        start: slope (1,) and norm with which x_0 = norm(PReLU(x, slope)); without it x_0 = ``x``. Only for inference.

    Returns:
        skips (n, I, frames, B) in the dtype of ``x``, and the statistics of PReLU(skips, next_slope).

    Raises:
        ShapeError: if a shape, dtype or device does not fit.
        MissingDependencyError: on a CUDA device without Triton.
    """
    check_activation("x", x)
    p, width = parameters, x.shape[3]
    if p.conv1d.dim() != 4 or p.conv1d.shape[2] % GROUPS or p.conv1d.shape[2] == 0:
        raise ShapeError(
            f"conv1d must be (blocks, instruments, a multiple of {GROUPS}, {width}), got {tuple(p.conv1d.shape)}."
        )
    count, _, hidden, _ = p.conv1d.shape
    instruments = x.shape[1]
    if len(dilations) != count or min(dilations) < 1:
        raise ShapeError(f"{count} blocks need as many dilations of at least 1; got {dilations}.")
    channels = (count, instruments, hidden)
    shapes = (
        (*channels, width), (count,), channels, channels, (*channels, 3), (count,), channels, channels,
        (count, instruments, 2 * width, hidden), (count, instruments, 2 * width),
    )  # fmt: skip
    for name, value, shape in zip(BlockParameters._fields, p, shapes, strict=True):
        check_parameter(name, value, shape, x)
    check_parameter("next_slope", next_slope, (1,), x)
    if keep is None:
        gradients = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, *p))
        keep = kept_for_backward(x.dtype) if gradients else 0
    if activated and keep:
        raise ShapeError("The activation of the skips has no gradient; ask for the skips, or for keep=0.")
    if start is not None:
        check_parameter("the start's slope", start[0], (1,), x)
        check_norm(start[1], x)
        if keep:
            raise ShapeError("The norm at the start has no gradient here; apply ops.group_norm, or ask for keep=0.")
    first = (None,) * 4 if start is None else (start[0], *start[1])
    skips, statistics, *_ = _blocks(x, *p, next_slope, list(dilations), keep, items, tf32, activated, *first)
    return skips, statistics


def kept_for_backward(dtype: torch.dtype) -> int:
    """Return a number that says what training keeps of every block.

    1 stands for the inputs of the block and of its first PReLU; 2 also for the output of its second PReLU. In units of one
    activation of a block, 1 keeps two units, 2 keeps three, and eager PyTorch keeps seven. To keep two instead of three costs
    one more depthwise pass in backward, 2 of 20 units of traffic. So two-byte dtypes keep three units, which are 21 % of the
    bytes of eager float32. Four-byte dtypes keep two, as three would be 43 %.
    """
    return 2 if dtype.itemsize == 2 else 1


def _layer(p: BlockParameters, layer: int) -> BlockParameters:
    """Return the parameters of block ``layer``, without the axis of the blocks. A slope is (1,)."""

    def of(v: Any) -> Any:
        return None if v is None else v[layer : layer + 1] if v.dim() == 1 else v[layer]

    return BlockParameters(*map(of, p))


def _forward_layer(x: Tensor, w: BlockParameters, dilation: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run one block up to its second PReLU. Return the results of conv1d and of the depthwise pass, and both norms' affines."""
    frames = x.shape[2]
    c = pointwise_forward(x, w.conv1d, None, None, None, None, None)
    affine_1 = affine_of(tile_statistics(activation(c, w.slope_1)), w.gamma_1, w.beta_1, frames)
    b = depthwise_forward(c, w.taps, dilation, w.slope_1, affine_1, w.beta_1, w.slope_2)
    return c, b, affine_1, affine_of(tile_statistics(activation(b, None)), w.gamma_2, w.beta_2, frames)


def _launcher_weights(x: Tensor, p: BlockParameters, dilations: list[int]) -> Any:
    def aligned(slope: Tensor) -> Tensor:
        """Repeat each slope four times, so that it starts at a multiple of 16 bytes (float32)."""
        return slope[:, None].expand(-1, 4).contiguous()

    return kernels("blocks", x.dtype).BlockWeights(
        p.conv1d.to(x.dtype).contiguous(), aligned(p.slope_1), p.gamma_1.contiguous(), p.beta_1.contiguous(),
        p.taps.contiguous(), aligned(p.slope_2), p.gamma_2.contiguous(), p.beta_2.contiguous(), p.out.contiguous(),
        None if p.bias is None else p.bias.contiguous(), tuple(dilations),
    )  # fmt: skip


def _kernel(
    x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor, slope_2: Tensor,
    gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, next_slope: Tensor, dilations: list[int],
    keep: int, items: int, tf32: bool, activated: bool, start_slope: Tensor | None, start_statistics: Tensor | None,
    start_gamma: Tensor | None, start_beta: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    p = BlockParameters(conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    weights = _launcher_weights(x, p, dilations)
    launcher = kernels("blocks", x.dtype).blocks_forward
    start = None
    if start_slope is not None:
        assert start_statistics is not None and start_gamma is not None and start_beta is not None
        affine = affine_by_kernel(start_statistics, start_gamma, start_beta, x.shape[2])
        start = kernels("blocks", x.dtype).Start(start_slope, affine, start_beta.contiguous())
    skips, statistics, kept = launcher(unit_stride(x), weights, next_slope, keep, items, tf32, activated, start)
    return skips, statistics, kept.x, kept.c, kept.b, kept.affine_1, kept.affine_2


@operator("blocks", _kernel)
def _blocks(
    x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor, slope_2: Tensor,
    gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, next_slope: Tensor, dilations: Sequence[int],
    keep: int, items: int, tf32: bool, activated: bool, start_slope: Tensor | None, start_statistics: Tensor | None,
    start_gamma: Tensor | None, start_beta: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the skips, or PReLU(skips) if ``activated``; the statistics of PReLU(skips); and what is kept of all blocks.

    Kept are the inputs of all blocks except the first, the results c of conv1d, the results b of the depthwise pass side by
    side, and the affines of both norms.
    """
    p = BlockParameters(conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    width = x.shape[3]
    if start_slope is not None:
        assert start_statistics is not None and start_gamma is not None and start_beta is not None
        affine = affine_of(start_statistics, start_gamma, start_beta, x.shape[2])
        x = normalise(activation(x, start_slope), affine, start_beta).to(x.dtype)
    skips = torch.zeros_like(x, memory_format=torch.contiguous_format)
    xs, cs, bs, affines_1, affines_2 = [], [], [], [], []
    first = x
    for layer, dilation in enumerate(dilations):
        w = _layer(p, layer)
        c, b, affine_1, affine_2 = _forward_layer(x, w, dilation)
        residual, skip = (None, None) if w.bias is None else (w.bias[:, :width], w.bias[:, width:])
        skips = pointwise_forward(b, w.out[:, width:], skip, skips, None, affine_2, w.beta_2)
        if layer < len(dilations) - 1:
            x = pointwise_forward(b, w.out[:, :width], residual, x, None, affine_2, w.beta_2)
            xs.append(x)
        cs.append(c)
        bs.append(b)
        affines_1.append(affine_1)
        affines_2.append(affine_2)
    inputs = torch.stack(xs) if xs else first.new_empty(0, *first.shape)
    nothing = [first.new_empty(0) for _ in range(3)]
    z = activation(skips, next_slope)
    return (
        z.to(skips.dtype) if activated else skips, tile_statistics(z), inputs if keep else nothing[0],
        torch.stack(cs) if keep else nothing[1], torch.cat(bs, dim=3) if keep > 1 else nothing[2], torch.stack(affines_1),
        torch.stack(affines_2),
    )  # fmt: skip


def _backward_kernel(
    dskips: Tensor, x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor,
    slope_2: Tensor, gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, xs: Tensor, cs: Tensor,
    bs: Tensor, affine_1: Tensor, affine_2: Tensor, dilations: list[int], tf32: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    p = BlockParameters(conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    module = kernels("blocks", x.dtype)
    kept, launcher = module.Kept(xs, cs, bs, affine_1, affine_2), module.blocks_backward
    weights = _launcher_weights(x, p, dilations)
    found: tuple[Tensor, ...] = launcher(dskips.contiguous(), unit_stride(x), kept, weights, tf32)
    return found


@operator("blocks_backward", _backward_kernel)
def _blocks_backward(
    dskips: Tensor, x: Tensor, conv1d: Tensor, slope_1: Tensor, gamma_1: Tensor, beta_1: Tensor, taps: Tensor,
    slope_2: Tensor, gamma_2: Tensor, beta_2: Tensor, out: Tensor, bias: Tensor | None, xs: Tensor, cs: Tensor,
    bs: Tensor, affine_1: Tensor, affine_2: Tensor, dilations: Sequence[int], tf32: bool,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:  # fmt: skip
    """Return dx and the gradients of the weights, in the order of the arguments.

    The gradient of the last block's res_out is zero.
    """
    p = BlockParameters(conv1d, slope_1, gamma_1, beta_1, taps, slope_2, gamma_2, beta_2, out, bias)
    width = x.shape[3]
    dx: Tensor | None = None
    found: list[tuple[Tensor, ...]] = []
    for layer in reversed(range(len(dilations))):
        w, c = _layer(p, layer), cs[layer]
        b = depthwise_forward(c, w.taps, dilations[layer], w.slope_1, affine_1[layer], w.beta_1, w.slope_2)
        dy = torch.cat([torch.zeros_like(dskips) if dx is None else dx, dskips], dim=3)
        rows = w.out
        if dx is None:
            rows = torch.cat([torch.zeros_like(rows[:, :width]), rows[:, width:]], dim=1)
        db, dout, dbias, _, dgamma_2, dbeta_2 = pointwise_backward(
            dy, b, rows, None, affine_2[layer], w.gamma_2, w.beta_2
        )
        assert dgamma_2 is not None and dbeta_2 is not None
        dc, dtaps, dslope_1, dgamma_1, dbeta_1, dslope_2 = depthwise_backward(
            db, c, w.taps, dilations[layer], w.slope_1, affine_1[layer], w.gamma_1, w.beta_1, w.slope_2
        )
        dx_l, dconv1d, *_ = pointwise_backward(dc, xs[layer - 1] if layer else x, w.conv1d, None, None, None, None)
        dx = dx_l if dx is None else dx + dx_l
        found.insert(0, (dconv1d, dslope_1[0], dgamma_1, dbeta_1, dtaps, dslope_2[0], dgamma_2, dbeta_2, dout, dbias))
    assert dx is not None
    gradients = [torch.stack(values) for values in zip(*found, strict=True)]
    return dx, *gradients  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *rest = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, *rest[:10], *output[2:])
    ctx.dilations, keep, _, ctx.tf32, *_ = rest[11:]
    ctx.kept = keep > 0


def _differentiate(ctx: Any, dskips: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dskips is None:
        return (None,) * 21
    if not ctx.kept:
        raise ShapeError("Nothing was kept for backward (keep=0); pass keep=None or 1.")
    saved = ctx.saved_tensors  # read once: non-reentrant checkpointing computes these again, and allows only one read
    x, *p = saved[:11]
    found = _blocks_backward(dskips, x, *p, *saved[11:], ctx.dilations, ctx.tf32)
    gradients = [None if v is None else g.to(v.dtype) for v, g in zip(p, found[1:], strict=True)]
    return found[0], *gradients, *(None,) * 10


differentiable(_blocks, _differentiate, _save, _blocks_backward)
