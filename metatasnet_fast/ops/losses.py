"""The training loss of one stage, with the statistics of its terms and its gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..reference import LossWeights, loss_divisors, si_sdr
from ..reference import stage_loss as plain_stage_loss
from ..reference.losses import EPSILON
from .operator import check_activation, check_parameter, differentiable, kernels, operator, optional, unit_stride, wide

__all__ = ["stage_loss"]


def stage_loss(
    estimate: Tensor,
    target: Tensor,
    mask: Tensor,
    latents: Tensor | None,
    mix_estimate: Tensor | None,
    mix: Tensor,
    weights: LossWeights,
    divisors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return loss and statistics of one stage, as :func:`metatasnet_fast.reference.stage_loss` does with the same
    arguments.

    The loss is differentiable once, in ``estimate``, ``mix_estimate`` and ``latents``. The statistics carry no gradient.

    Args:
        estimate, target: (b, I, 1, T) of I instruments, floating point, b at least 1.
        mask: (c + b, I, 1), 0 if the source is silent, else 1. c is 1 if the first row is the item before the batch, else 0.
        latents: (c + b, I, frames, N), the encoded sources; may be None if both cosine weights are 0 or less.
        mix_estimate, mix: (b, 1, T); ``mix_estimate`` may be None if the reconstruction weight is 0 or less.
        weights: the weights of the loss's terms; a weight of 0 or less switches its term off.
        divisors: (I + 3,), from :func:`metatasnet_fast.reference.loss_divisors` of the whole batch; by default of these items.

    Returns:
        the loss, a scalar, and the statistics, (I + 3,): the SI-SDR of I instruments and of the reconstruction, in dB, the
        dissimilarity and the similarity. Both are float32 (float64 if ``estimate`` is).

    Raises:
        ShapeError: if a shape, dtype or device does not fit, if latents or mix_estimate are missing, or if target, mask or mix
            require a gradient.
        MissingDependencyError: on a CUDA device without Triton.
    """
    if estimate.dim() != 4 or estimate.shape[2] != 1 or 0 in estimate.shape or not estimate.is_floating_point():
        found = f"{estimate.dtype} {tuple(estimate.shape)}"
        raise ShapeError(f"estimate must be floating point (b, I, 1, T) with at least one sample, got {found}.")
    n, instruments, _, samples = estimate.shape
    check_parameter("target", target, (n, instruments, 1, samples), estimate)
    if (
        mask.dim() != 3
        or mask.shape[1:] != (instruments, 1)
        or len(mask) - n not in (0, 1)
        or mask.device != estimate.device
    ):
        raise ShapeError(
            f"mask must be ({n} or {n + 1}, {instruments}, 1) on {estimate.device}, got {tuple(mask.shape)} on {mask.device}."
        )
    if weights.reconstruction <= 0:
        mix_estimate = None
    elif mix_estimate is None:
        raise ShapeError("mix_estimate is missing: the reconstruction weight is above 0.")
    else:
        check_parameter("mix_estimate", mix_estimate, (n, 1, samples), estimate)
        check_parameter("mix", mix, (n, 1, samples), estimate)
    if not weights.need_latents:
        latents = None
    elif latents is None:
        raise ShapeError("latents are missing: a cosine weight is above 0.")
    else:
        check_activation("latents", latents)
        check_parameter("latents", latents, (len(mask), instruments, *latents.shape[2:]), estimate)
    if any(p.requires_grad for p in (target, mask, mix)):
        raise ShapeError("target, mask and mix are data, without gradient here: detach them.")
    if divisors is None:
        divisors = loss_divisors(mask[len(mask) - n :])
    check_parameter("divisors", divisors, (instruments + 3,), estimate)
    loss, stats, *_ = _stage_loss(
        estimate.squeeze(2), target.squeeze(2), mask[..., 0], latents, None if mix_estimate is None else mix_estimate,
        None if mix_estimate is None else mix, divisors, [float(weight) for weight in weights],
    )  # fmt: skip
    return loss, stats


def _rows(estimate: Tensor, target: Tensor) -> Tensor:
    """Return four numbers of every signal, (n, signals, 4), which backward reads.

    They are the SI-SDR, the scale a of the target, and the factors of the target and of the residual e - a s in the gradient.
    """
    e, s = estimate.to(wide(estimate.dtype)), target.to(wide(estimate.dtype))
    power = s.square().sum(-1)
    a = (s * e).sum(-1) / (power + EPSILON)
    projection, residual = a.square() * power, (e - a[..., None] * s).square().sum(-1)
    tens = 20 / math.log(10)
    r = torch.where(residual >= EPSILON, -tens / residual.clamp(min=EPSILON), 0)
    p = tens * a * power / (projection.clamp(min=EPSILON) * (power + EPSILON))
    p = torch.where(projection >= EPSILON, p, 0)
    return torch.stack([si_sdr(e, s), a, p - r * a * EPSILON / (power + EPSILON), r], dim=-1)


def distances(instruments: int) -> int:
    """Return the largest distance to a partner. In a ring of I instruments, the distances 1 to I // 2 reach every pair."""
    return instruments // 2


def _cosines(latents: Tensor) -> Tensor:
    """Return I // 2 + 2 numbers for each latent: (c + b, frames, I, I // 2 + 2).

    The first is its norm. The next I // 2 are the products of its absolute values with those of the instruments 1 to I // 2
    places further. The last is its product with the latent of the item before.
    """
    x = latents.to(wide(latents.dtype))
    further = [(x * x.roll(-k, 1)).abs().sum(-1) for k in range(1, distances(x.shape[1]) + 1)]
    return torch.stack([x.norm(dim=-1), *further, (x * x.roll(1, 0)).sum(-1)], dim=-1).transpose(1, 2)


def _unit(x: Tensor | None) -> Tensor | None:
    return None if x is None else unit_stride(x)


def _kernel(
    estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, divisors: Tensor, weights: list[float],
) -> tuple[Tensor, ...]:  # fmt: skip
    loss, stats, rows, saved, scales = kernels("loss", estimate.dtype).stage_loss_forward(
        unit_stride(estimate), unit_stride(target), mask.float().contiguous(), _unit(latents), _unit(mix_estimate),
        _unit(mix), divisors.float().contiguous(), *weights,
    )  # fmt: skip
    return loss, stats, rows, optional(saved, estimate), scales


@operator("stage_loss", _kernel)
def _stage_loss(
    estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, divisors: Tensor, weights: list[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the loss (), the statistics (I + 3,), the rows (b, I + 1, 4) of :func:`_rows`, the result of :func:`_cosines`, and
    the factors (I + 3,) of the sdrs and cosines in the loss."""
    dtype, w = wide(estimate.dtype), LossWeights(*weights)
    pair = (estimate[:, :1], target[:, :1]) if mix_estimate is None or mix is None else (mix_estimate, mix)
    rows = torch.cat([_rows(estimate, target), _rows(*pair)], dim=1)
    e, s, m_e, m_s = (x.to(dtype) for x in (estimate, target, *pair))
    x, sounds, divisors = None if latents is None else latents.to(dtype), mask.to(dtype), divisors.to(dtype)
    loss, stats = plain_stage_loss(e[:, :, None], s[:, :, None], sounds[..., None], x, m_e, m_s, w, divisors)
    per = 1 / divisors
    frames = 1 if x is None else x.shape[2]
    scales = torch.cat(
        [
            -per[:-3],
            -max(w.reconstruction, 0) * per[-3:-2],
            max(w.dissimilarity, 0) * per[-2:-1] / frames,
            -max(w.similarity, 0) * per[-1:] / frames,
        ]
    )
    return loss.clone(), stats, rows, optional(None if x is None else _cosines(x), estimate), scales


def _backward_kernel(
    dloss: Tensor, estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, rows: Tensor, saved: Tensor, scales: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    destimate, on_mix, dlatents = kernels("loss", estimate.dtype).stage_loss_backward(
        dloss, unit_stride(estimate), unit_stride(target), mask.float().contiguous(), _unit(latents), _unit(mix_estimate),
        _unit(mix), rows, saved, scales,
    )  # fmt: skip
    return destimate, _or_empty(on_mix, estimate), _or_empty(dlatents, estimate)


def _or_empty(value: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if value is None else value


@operator("stage_loss_backward", _backward_kernel)
def _stage_loss_backward(
    dloss: Tensor, estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, rows: Tensor, saved: Tensor, scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the estimates of the sources, of the estimate of the mix, and of the latents.

    A gradient that is not needed is a tensor without elements.
    """
    instruments, scales = estimate.shape[1], scales * dloss.to(scales.dtype)
    mask = mask.to(rows.dtype)
    own = mask[len(mask) - len(estimate) :]
    destimate = _sdr_backward(scales[:instruments] * own, rows[:, :instruments], estimate, target)
    on_mix, dlatents = None, None
    if mix_estimate is not None and mix is not None:
        on_mix = _sdr_backward(scales[instruments].expand(len(own), 1), rows[:, instruments:], mix_estimate, mix)
    if latents is not None:
        carried = len(mask) - len(own)
        dlatents = _cosines_backward(scales[-2], scales[-1], latents, mask, saved[..., 0].transpose(1, 2), carried)
    return destimate, _or_empty(on_mix, estimate), _or_empty(dlatents, estimate)


def _sdr_backward(weight: Tensor, rows: Tensor, estimate: Tensor, target: Tensor) -> Tensor:
    e, s = estimate.to(rows.dtype), target.to(rows.dtype)
    a, on_target, on_residual = rows[..., 1:2], rows[..., 2:3], rows[..., 3:4]
    return (weight[..., None] * (on_target * s + on_residual * (e - a * s))).to(estimate.dtype)


def _cosines_backward(
    pairs: Tensor, items: Tensor, latents: Tensor, mask: Tensor, norm: Tensor, carried: int
) -> Tensor:
    """Return the gradient of the latents through both cosine terms.

    ``pairs`` and ``items`` are the factors, in the loss, of a cosine between instruments and between items.
    """
    x, floor = latents.to(norm.dtype), norm.clamp(min=EPSILON)[..., None]
    d = x / floor * mask[..., None, None]
    stems = d.abs()
    between = pairs * d.sign() * (stems.sum(1, keepdim=True) - stems)
    if carried:
        between[:1] = 0
        nothing = torch.zeros_like(d[:1])
        along = items * (torch.cat([nothing, d[:-1]]) + torch.cat([d[1:], nothing]))
    else:
        along = items * (d.roll(1, 0) + d.roll(-1, 0))
    g = (between + along) * mask[..., None, None]
    radial = (d * g).sum(-1, keepdim=True) / floor.square()
    return (g / floor - torch.where(norm[..., None] >= EPSILON, radial, 0) * x).to(latents.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], *output[2:])


def _differentiate(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 8
    estimate, target, mask, latents, mix_estimate, mix, rows, saved, scales = ctx.saved_tensors
    destimate, on_mix, dlatents = _stage_loss_backward(
        dloss, estimate, target, mask, latents, mix_estimate, mix, rows, saved, scales
    )
    return (
        destimate, None, None, None if latents is None else dlatents, None if mix_estimate is None else on_mix,
        None, None, None,
    )  # fmt: skip


differentiable(_stage_loss, _differentiate, _save, _stage_loss_backward)
