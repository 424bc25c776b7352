"""The backend ``cpu``: training and inference in compiled, fused C++ (``csrc/cpu``), in float32 and bfloat16."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import native, reference
from ..config import StageConfig
from ..errors import BackendUnavailableError
from ..precision import Precision
from ..reference import LossWeights
from .cpu_training import Cosines, Decode, Encode, Mask, by_frames, latents, unit_channels
from .cpu_weights import MelShare, arrays, generate, sizes, weight_tensors
from .registry import Backend, Request, check_device, exactly

__all__ = ["ISA_VARIABLE", "CpuBackend", "give_back_memory"]

ISA_VARIABLE = "METATASNET_CPU_ISA"
"""Environment variable that forces an instruction set: one of ``metatasnet_fast._native.cpu_isas()``."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Prepared:
    config: StageConfig
    stage: Any
    """The compiled ``CpuStage``: weights packed for one instruction set and precision."""
    mel: MelShare | None
    """The spectrogram branch; None in a network without this branch."""
    weights: Mapping[str, Tensor] | None
    """The weights from which the stage was packed, if they need gradients; else None."""

    def tensors(self, job: str) -> dict[str, Tensor]:
        """Return the weights of a job by name. ``job`` is ``encoder``, ``mask`` or ``decoder``."""
        return {name: w for name, w in (self.weights or {}).items() if name.startswith(f"{job}.")}

    def trains(self, job: str, *inputs: Tensor | None) -> bool:
        """Return whether the job's result needs gradients."""
        if self.weights is None or not torch.is_grad_enabled():
            return False
        return any(x is not None and x.requires_grad for x in (*inputs, *self.tensors(job).values()))


class _Memory:
    """The memory of all jobs. It is kept from call to call: new pages from the system would cost a quarter of a training step.

    It is freed when no parameter is left from which weights were prepared.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._users: set[int] = set()

    def of(self, module: Any, parameter: Tensor) -> Any:
        """Return the compiled ``CpuPool``, which is kept at least as long as ``parameter`` lives."""
        if id(parameter) not in self._users:
            self._users.add(id(parameter))
            weakref.finalize(parameter, self._leave, id(parameter))
        if self._pool is None:
            self._pool = module.CpuPool()
        return self._pool

    def trim(self) -> None:
        """Give the memory that no call is using back to the system."""
        if self._pool is not None:
            self._pool.trim()

    def _leave(self, user: int) -> None:
        self._users.discard(user)
        if not self._users:
            self._pool = None


_memory = _Memory()


def give_back_memory() -> None:
    """Give the memory that no call is using back to the system; the next call asks for it again."""
    _memory.trim()


class CpuBackend(Backend):
    """The backend of compiled C++; see ``docs/cpu-backend.md``.

    One core computes the whole masking network for one instrument of one item. ``torch.get_num_threads()`` threads are used, of
    torch's own OpenMP runtime, if torch has one. Results have the same bits for every number of threads, and do not depend on
    the other items of the batch. Latents are stored as (frames, channels). For ``Precision.bfloat16`` latents are bfloat16;
    sums, statistics and the residual stream stay float32.
    """

    name = "cpu"
    summary = "compiled C++ (AMX, AVX-512, AVX2, portable); training and inference in float32 and bfloat16 on CPUs"

    def unavailable(self) -> str | None:
        module = native.load()
        if module is None:
            return native.reason()
        forced = os.environ.get(ISA_VARIABLE, "")
        if forced and forced not in module.cpu_isas():
            known = ", ".join(module.cpu_isas())
            why = module.unusable_cpu_isas().get(forced, "").rstrip(".")
            return (
                f"{ISA_VARIABLE}={forced} is not usable on this machine{f' ({why})' if why else ''}; "
                f"unset it or choose one of {known}."
            )
        return None

    def variant(self) -> str:
        return os.environ.get(ISA_VARIABLE, "")

    def supports(self, request: Request) -> str | None:
        if request.device.type != "cpu":
            return f"it computes on the CPU, not on {request.device}; move the network there or choose another backend."
        if request.precision not in (Precision.float32, Precision.bfloat16):
            return f"it knows float32 and bfloat16, not {request.precision.value}; choose one of them."
        return None

    @exactly
    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> _Prepared:
        """Generate and pack the weights of a stage; raise :class:`BackendUnavailableError` if the backend cannot run."""
        module, reason = native.load(), self.unavailable()
        if module is None or reason is not None:
            raise BackendUnavailableError(f"The backend cpu cannot run: {reason}")
        bfloat16, training = precision is Precision.bfloat16, torch.is_grad_enabled()
        weights = generate(
            config, {name: p.to(torch.float32) for name, p in parameters.items()}, module, self.variant()
        )
        tensors = weight_tensors(weights)
        pool = _memory.of(module, next(iter(parameters.values())))
        if not training:
            pool.trim()  # free the memory of the previous training step
        stage = module.CpuStage(
            self.variant(), bfloat16, sizes(config), arrays(tensors), training, pool, torch.get_num_threads()
        )
        mel = MelShare.of(weights.encoder, config, stage.latent_ld)
        return _Prepared(config, stage, mel, tensors if training else None)

    @exactly
    def encode(self, prepared: _Prepared, signal: Tensor) -> Tensor:
        config, stage = prepared.config, prepared.stage
        config.check_signal(signal.shape)
        check_device(signal, CPU)
        n, _, samples = signal.shape
        wave = signal[:, 0].to(torch.float32).contiguous()
        frames = samples // config.W
        if prepared.weights is not None and torch.is_grad_enabled():
            mel = prepared.mel(wave) if prepared.mel else None
            if prepared.trains("encoder", wave, mel):
                return _apply(Encode, stage, frames, wave, mel, *prepared.tensors("encoder").values())
        latent = latents(stage, n, frames, stage.latent_ld)
        with torch.no_grad():
            mel = prepared.mel(wave) if prepared.mel else None
            stage.encode(wave, mel, latent, None, torch.get_num_threads())
        return latent[..., : config.N].transpose(1, 2)

    @exactly
    def mask(
        self, prepared: _Prepared, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        config, stage = prepared.config, prepared.stage
        config.check_latent(latent.shape)
        config.check_partial(None if partial is None else partial.shape, latent.shape)
        for tensor in (latent, partial, dropout):
            if tensor is not None:
                check_device(tensor, CPU)
        n, _, frames = latent.shape
        x = by_frames(latent)
        own = None if dropout is None else by_frames(latent[:, None] * dropout[..., None])
        previous = None if partial is None else by_frames(partial)
        if prepared.trains("mask", x, own, previous):
            weights = prepared.tensors("mask")
            return _apply(Mask, stage, tuple(weights), x, own, previous, *weights.values())
        masked = latents(stage, n, config.instruments, frames, stage.latent_ld)
        stage.mask(x, own, previous, masked, None, torch.get_num_threads())
        return masked[..., : config.N].transpose(2, 3)

    @exactly
    def decode(self, prepared: _Prepared, latent: Tensor) -> Tensor:
        prepared.config.check_latent(latent.shape)
        check_device(latent, CPU)
        n, _, frames = latent.shape
        samples, x = frames * prepared.config.W, by_frames(latent)
        if prepared.trains("decoder", x):
            return _apply(Decode, prepared.stage, samples, x, *prepared.tensors("decoder").values())[:, None]
        signal = latent.new_empty(n, samples, dtype=torch.float32)
        prepared.stage.decode(x, signal, None, torch.get_num_threads())
        return signal[:, None]

    @exactly
    def stage_loss(
        self,
        estimate: Tensor,
        target: Tensor,
        mask: Tensor,
        latents: Tensor | None,
        mix_estimate: Tensor | None,
        mix: Tensor,
        weights: LossWeights,
        divisors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return loss and statistics of a stage. Compiled code computes the cosines, PyTorch the SI-SDR.

        PyTorch computes both if the mask needs gradients, or if the latents are float64.
        """
        needed = latents if weights.need_latents else None
        if needed is None or needed.numel() == 0 or needed.dtype == torch.float64 or mask.requires_grad:
            return reference.stage_loss(estimate, target, mask, latents, mix_estimate, mix, weights, divisors)
        instruments, carried = estimate.shape[1], len(mask) - len(estimate)
        if divisors is None:
            divisors = reference.loss_divisors(mask[carried:])
        others = LossWeights(0.0, 0.0, weights.reconstruction)
        loss, stats = reference.stage_loss(estimate, target, mask, None, mix_estimate, mix, others, divisors)
        sounds = mask[..., 0].to(torch.float32).contiguous()
        sums = _apply(Cosines, native.load(), self.variant(), unit_channels(needed), sounds, carried)
        means = sums / (divisors[instruments + 1 :] * needed.shape[2])
        active = means.new_tensor([max(weights.dissimilarity, 0.0), -max(weights.similarity, 0.0)])
        on = (active != 0).to(means)
        cosines = torch.cat([stats.new_zeros(instruments + 1), (means * on).to(stats)])
        return loss + (means * active).sum().to(loss), stats + cosines


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result
