"""The training losses of one stage, with all their statistics, in seven launches and three for the gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ShapeError
from ..reference import loss_gradients as plain
from ..reference.statistics import wide
from .library import (
    LIBRARY,
    NAMESPACE,
    check_activation,
    check_parameter,
    kernels,
    register,
    register_once_differentiable,
    unit_stride,
)

__all__ = ["stage_loss"]


def stage_loss(
    estimate: Tensor,
    target: Tensor,
    mask: Tensor,
    latents: Tensor | None,
    mix_estimate: Tensor | None,
    mix: Tensor,
    similarity_weight: float,
    dissimilarity_weight: float,
    reconstruction_weight: float,
) -> tuple[Tensor, Tensor]:
    """Loss and statistics of one stage: :func:`metatasnet_fast.reference.stage_loss`, with the same arguments.

    The loss is differentiable once, in ``estimate``, ``mix_estimate`` and ``latents``; the statistics carry no gradient.

    Args:
        estimate, target: (b, 4, 1, T), floating point, b at least 1.
        mask: (b, 4, 1), 1 where the source sounds, else 0.
        latents: (b, 4, frames, N), the encoded sources; may be None if both cosine weights are 0 or less.
        mix_estimate, mix: (b, 1, T); the former may be None if its weight is 0 or less.
        similarity_weight, dissimilarity_weight, reconstruction_weight: a weight of 0 or less switches its term off.

    Returns:
        the loss, a scalar, and (7,): four SI-SDR in dB, reconstruction SI-SDR in dB, dissimilarity, similarity; float32
        (float64 where ``estimate`` is).

    Raises:
        ShapeError: if a shape, dtype or device does not fit, or something is missing.
        MissingDependencyError: on a CUDA device without Triton.
    """
    if estimate.dim() != 4 or estimate.shape[1:3] != (4, 1) or 0 in estimate.shape or not estimate.is_floating_point():
        found = f"{estimate.dtype} {tuple(estimate.shape)}"
        raise ShapeError(f"estimate must be floating point (b, 4, 1, T) with at least one sample, got {found}.")
    n, samples = len(estimate), estimate.shape[3]
    check_parameter("target", target, (n, 4, 1, samples), estimate)
    if tuple(mask.shape) != (n, 4, 1) or mask.device != estimate.device:
        raise ShapeError(f"mask must be {(n, 4, 1)} on {estimate.device}, got {tuple(mask.shape)} on {mask.device}.")
    if reconstruction_weight <= 0:
        mix_estimate = None
    elif mix_estimate is None:
        raise ShapeError("mix_estimate is missing: reconstruction_weight is above 0.")
    else:
        check_parameter("mix_estimate", mix_estimate, (n, 1, samples), estimate)
        check_parameter("mix", mix, (n, 1, samples), estimate)
    if similarity_weight <= 0 and dissimilarity_weight <= 0:
        latents = None
    elif latents is None:
        raise ShapeError("latents are missing: a cosine weight is above 0.")
    else:
        check_activation("latents", latents)
        check_parameter("latents", latents, (n, *latents.shape[1:]), estimate)
    if any(p.requires_grad for p in (target, mask, mix)):
        raise ShapeError("target, mask and mix are data, without gradient here: detach them.")
    loss, stats, *_ = _stage_loss(
        estimate, target, mask, latents, mix_estimate, None if mix_estimate is None else mix,
        float(similarity_weight), float(dissimilarity_weight), float(reconstruction_weight),
    )  # fmt: skip
    return loss, stats


def _signals(
    estimate: Tensor, target: Tensor, mix_estimate: Tensor | None, mix: Tensor | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """(n, signals, T) pairs of the sources and of the mix."""
    sources = estimate[:, :, 0], target[:, :, 0]
    return sources, None if mix_estimate is None or mix is None else (mix_estimate, mix)


def _adjacent(pair: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if pair is None else (unit_stride(pair[0]), unit_stride(pair[1]))


def _or_empty(value: Tensor | None, like: Tensor) -> Tensor:
    """Operators return tensors, not None: a value that was not asked for has no elements."""
    return like.new_empty(0) if value is None else value


def _forward_kernel(
    estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, similarity: float, dissimilarity: float, reconstruction: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    sources, pair = _signals(estimate, target, mix_estimate, mix)
    loss, stats, rows, saved, scales = kernels("loss", estimate.dtype).stage_loss_forward(
        _adjacent(sources), _adjacent(pair), mask[..., 0].float().contiguous(),
        None if latents is None else unit_stride(latents), similarity, dissimilarity, reconstruction,
    )  # fmt: skip
    return loss, stats, rows, _or_empty(saved, rows), scales


def _forward_reference(
    estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, similarity: float, dissimilarity: float, reconstruction: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    sources, pair = _signals(estimate, target, mix_estimate, mix)
    weights = similarity, dissimilarity, reconstruction
    loss, stats, rows, saved, scales = plain.forward(sources, pair, mask[..., 0], latents, *weights)
    return loss, stats, rows, _or_empty(saved, rows).contiguous(), scales


def _forward_fake(
    estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, similarity: float, dissimilarity: float, reconstruction: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    n, dtype = estimate.shape[0], wide(estimate.dtype)
    saved = (0,) if latents is None else (n, latents.shape[2], 4, 4)
    shapes: tuple[Any, ...] = ((), (7,), (n, 5, 4), saved, (7,))
    return tuple(estimate.new_empty(shape, dtype=dtype) for shape in shapes)


def _backward_kernel(
    dloss: Tensor, estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, rows: Tensor, saved: Tensor, scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sources, pair = _signals(estimate, target, mix_estimate, mix)
    destimate, on_mix, dlatents = kernels("loss", estimate.dtype).stage_loss_backward(
        dloss, _adjacent(sources), _adjacent(pair), mask[..., 0].float().contiguous(),
        None if latents is None else unit_stride(latents), rows, saved, scales,
    )  # fmt: skip
    return destimate[:, :, None], _or_empty(on_mix, estimate), _or_empty(dlatents, estimate)


def _backward_reference(
    dloss: Tensor, estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, rows: Tensor, saved: Tensor, scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sources, pair = _signals(estimate, target, mix_estimate, mix)
    destimate, on_mix, dlatents = plain.backward(dloss, sources, pair, mask[..., 0], latents, rows, saved, scales)
    found = _or_empty(on_mix, estimate).contiguous(), _or_empty(dlatents, estimate).contiguous()
    return destimate[:, :, None].contiguous(), *found


def _backward_fake(
    dloss: Tensor, estimate: Tensor, target: Tensor, mask: Tensor, latents: Tensor | None, mix_estimate: Tensor | None,
    mix: Tensor | None, rows: Tensor, saved: Tensor, scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    def like(x: Tensor | None) -> Tensor:
        return estimate.new_empty(0) if x is None else x.new_empty(x.shape)

    return like(estimate), like(mix_estimate), like(latents)


_stage_loss = register(
    "stage_loss(Tensor estimate, Tensor target, Tensor mask, Tensor? latents, Tensor? mix_estimate, Tensor? mix, "
    "float similarity, float dissimilarity, float reconstruction) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward_kernel,
    _forward_reference,
    _forward_fake,
)
_stage_loss_backward = register(
    "stage_loss_backward(Tensor dloss, Tensor estimate, Tensor target, Tensor mask, Tensor? latents, "
    "Tensor? mix_estimate, Tensor? mix, Tensor rows, Tensor saved, Tensor scales) -> (Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_reference,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], *output[2:])


def _differentiate(ctx: Any, dloss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 9
    estimate, target, mask, latents, mix_estimate, mix, rows, saved, scales = ctx.saved_tensors
    destimate, on_mix, dlatents = _stage_loss_backward(
        dloss, estimate, target, mask, latents, mix_estimate, mix, rows, saved, scales
    )
    return (
        destimate, None, None, None if latents is None else dlatents, None if mix_estimate is None else on_mix,
        None, None, None, None,
    )  # fmt: skip


torch.library.register_autograd(f"{NAMESPACE}::stage_loss", _differentiate, setup_context=_save, lib=LIBRARY)
register_once_differentiable("stage_loss_backward")
