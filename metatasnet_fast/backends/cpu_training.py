"""Differentiable functions that run the compiled jobs of the backend ``cpu``.

Forward and backward are compiled. Forward keeps the values that backward needs in one tensor of bytes; see
``csrc/cpu/kept.h``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["Cosines", "Decode", "Encode", "Expand", "Mask", "by_frames", "latents", "unit_channels"]

_CHANNELS = 32
"""The compiled module pads the channels of tensors to a multiple of this number."""

Gradients = tuple[Tensor | None, ...]


def by_frames(latent: Tensor) -> Tensor:
    """Return ``latent`` (..., channels, frames) as (..., frames, channels), with contiguous channels.

    The result is a view if this backend made the latent, else a copy.
    """
    return unit_channels(latent.transpose(-1, -2))


def unit_channels(x: Tensor) -> Tensor:
    """Return ``x`` with a last axis of stride 1, copied only if needed. Any dtype but float32 and bfloat16 becomes float32."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        x = x.to(torch.float32)
    return x if x.stride(-1) == 1 else x.contiguous()


def storage(stage: Any) -> torch.dtype:
    """Return the dtype of a ``CpuStage``'s latents."""
    return torch.float32 if stage.storage == "float32" else torch.bfloat16


def _padded(channels: int) -> int:
    return -(-channels // _CHANNELS) * _CHANNELS


def _rooms(weights: Iterable[Tensor]) -> list[Tensor]:
    """Return new tensors, not initialised, for the gradients of ``weights``, padded as the compiled module needs them."""
    return [torch.empty([_padded(size) for size in w.shape], dtype=torch.float32) for w in weights]


def _without_padding(rooms: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [room[tuple(map(slice, w.shape))] for room, w in zip(rooms, weights, strict=True)]


def latents(stage: Any, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return a new tensor, not initialised, in the stage's memory. Its default dtype is that of the stage's latents."""
    dtype = dtype or storage(stage)
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(stage.take(count * dtype.itemsize), dtype=dtype, count=count).view(shape)


def _kept(stage: Any, job: str, n: int, frames: int) -> Tensor:
    return latents(stage, stage.kept_bytes(job, n, frames), dtype=torch.uint8)


class Encode(Function):
    """The function from a signal ``wave`` (n, samples) to its latent (n, N, frames).

    ``mel`` (n, STFT frames, latent_ld) is the share of the spectrogram branch, or None.
    """

    @staticmethod
    def forward(ctx: Any, stage: Any, frames: int, wave: Tensor, mel: Tensor | None, *weights: Tensor) -> Tensor:
        latent = latents(stage, len(wave), frames, stage.latent_ld)
        kept = _kept(stage, "encode", *latent.shape[:2])
        stage.encode(wave, mel, latent, kept, torch.get_num_threads())
        ctx.stage = stage
        ctx.save_for_backward(wave, mel, kept, *weights)
        return latent[..., : len(weights[-1])].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        wave, mel, kept, *weights = ctx.saved_tensors
        d_mel = None if mel is None else torch.zeros_like(mel)
        d_wave = torch.zeros_like(wave) if ctx.needs_input_grad[2] else None
        if gradient.numel() == 0:
            return None, None, d_wave, d_mel, *map(torch.zeros_like, weights)
        rooms = _rooms(weights)
        ctx.stage.encode_gradient(wave, kept, by_frames(gradient), d_mel, d_wave, *rooms, torch.get_num_threads())
        return None, None, d_wave, d_mel, *_without_padding(rooms, weights)


class Mask(Function):
    """The function from a mixture's ``latent`` (n, frames, N) to the masked latents (n, I, N, frames).

    ``own`` (n, I, frames, N), the copies with dropout, and ``partial`` (n, I, frames, N / 2) may be None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        stage: Any,
        names: Sequence[str],
        latent: Tensor,
        own: Tensor | None,
        partial: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        n, frames, channels = latent.shape
        masked = latents(stage, n, stage.instruments, frames, stage.latent_ld)
        kept = _kept(stage, "mask", n, frames)
        stage.mask(latent, own, partial, masked, kept, torch.get_num_threads())
        ctx.stage, ctx.names = stage, names
        ctx.save_for_backward(latent, own, partial, kept, *weights)
        return masked[..., :channels].transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        latent, own, partial, kept, *weights = ctx.saved_tensors
        n, instruments, channels, frames = gradient.shape

        def room(like: Tensor | None) -> Tensor | None:
            if like is None:
                return None
            return latents(ctx.stage, n, instruments, frames, _padded(like.shape[-1]))

        d_latent = latents(ctx.stage, n, frames, _padded(channels), dtype=torch.float32)
        d_own, d_partial = room(own), room(partial)
        if gradient.numel() == 0:
            found = [torch.zeros_like(w) for w in weights]
        else:
            found = [torch.empty(w.shape, dtype=torch.float32) for w in weights]
            ctx.stage.mask_gradient(
                latent,
                own,
                partial,
                kept,
                by_frames(gradient),
                d_latent,
                d_own,
                d_partial,
                {name: value.numpy() for name, value in zip(ctx.names, found, strict=True)},
                torch.get_num_threads(),
            )
        inputs = [
            None if like is None or value is None else value[..., : like.shape[-1]]
            for like, value in ((latent, d_latent), (own, d_own), (partial, d_partial))
        ]
        return None, None, *inputs, *found


class Decode(Function):
    """The function from a latent (n, frames, N) to its signal (n, samples)."""

    @staticmethod
    def forward(ctx: Any, stage: Any, samples: int, latent: Tensor, *weights: Tensor) -> Tensor:
        signal = torch.empty(len(latent), samples, dtype=torch.float32)
        kept = _kept(stage, "decode", *latent.shape[:2])
        stage.decode(latent, signal, kept, torch.get_num_threads())
        ctx.stage = stage
        ctx.save_for_backward(latent, kept, *weights)
        return signal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        latent, kept, *weights = ctx.saved_tensors
        if gradient.numel() == 0:
            return None, None, torch.zeros_like(latent), *map(torch.zeros_like, weights)
        n, frames, channels = latent.shape
        d_latent = latents(ctx.stage, n, frames, _padded(channels))
        rooms = _rooms(weights)
        ctx.stage.decode_gradient(
            latent, kept, gradient.to(torch.float32).contiguous(), d_latent, *rooms, torch.get_num_threads()
        )
        return None, None, d_latent[..., :channels], *_without_padding(rooms, weights)


class Cosines(Function):
    """The function from encoded sources to two sums of cosines over all frames, (2,) float64.

    The first sum compares the absolute latents of each pair of instruments. The second compares each latent with that of the
    item before. ``latents`` is (c + b, I, frames, N). ``mask`` (c + b, I) is float32, 0 if the source is silent, else 1. c is
    ``carried``: if it is 1, the first item is the one before the batch; if it is 0, the last item comes before the first.
    """

    @staticmethod
    def forward(ctx: Any, module: Any, isa: str, latents: Tensor, mask: Tensor, carried: int) -> Tensor:
        ctx.module, ctx.isa, ctx.carried = module, isa, carried
        ctx.save_for_backward(latents, mask)
        sums = module.cpu_cosine_sums(isa, latents, mask, carried, torch.get_num_threads())
        return torch.tensor(sums, dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        latents, mask = ctx.saved_tensors
        found = latents.new_empty(*latents.shape[:-1], _padded(latents.shape[-1]))
        on_pairs, on_neighbours = gradient.tolist()
        ctx.module.cpu_cosine_gradient(
            ctx.isa, latents, mask, ctx.carried, on_pairs, on_neighbours, found, torch.get_num_threads()
        )
        return None, None, found[..., : latents.shape[-1]], None, None


class Expand(Function):
    """The function from hidden values to the results of all generated layers, (I, outputs) each.

    A result is the layer's bias plus the layer's kernel (outputs, E) times its hidden values. ``hidden`` is (layers, E, I).
    ``parameters`` are the kernels of all layers, then their biases.
    """

    @staticmethod
    def forward(ctx: Any, module: Any, isa: str, hidden: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        kernels, biases = parameters[: len(hidden)], parameters[len(hidden) :]
        out = [hidden.new_empty(hidden.shape[2], len(kernel)) for kernel in kernels]
        module.cpu_expand(isa, hidden, kernels, biases, out, torch.get_num_threads())
        ctx.module, ctx.isa = module, isa
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, *kernels)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Gradients:
        hidden, *kernels = ctx.saved_tensors
        used = [number for number, gradient in enumerate(gradients) if gradient is not None]
        d_hidden, found = torch.zeros_like(hidden), torch.empty_like(hidden[used])
        d_kernels: list[Tensor | None] = [None] * len(kernels)
        d_biases: list[Tensor | None] = [None] * len(kernels)
        for number in used:
            d_kernels[number] = torch.empty_like(kernels[number])
            d_biases[number] = kernels[number].new_empty(len(kernels[number]))
        ctx.module.cpu_expand_gradient(
            ctx.isa,
            hidden[used],
            [kernels[number] for number in used],
            [gradients[number].contiguous() for number in used],  # type: ignore[union-attr]
            found,
            [d_kernels[number] for number in used],
            [d_biases[number] for number in used],
            torch.get_num_threads(),
        )
        d_hidden[used] = found
        return None, None, d_hidden, *d_kernels, *d_biases
