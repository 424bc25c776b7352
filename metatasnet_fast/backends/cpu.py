"""The backend ``cpu``: inference in compiled, fused C++ (``csrc/cpu``), in float32 and bfloat16."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .. import native, reference
from ..config import StageConfig
from ..errors import BackendUnavailableError, ShapeError
from ..precision import Precision
from .base import Backend, Request
from .cpu_spectrogram import MelShare
from .cpu_weights import sizes, weight_arrays

__all__ = ["ISA_VARIABLE", "CpuBackend"]

ISA_VARIABLE = "METATASNET_CPU_ISA"
"""Environment variable that forces an instruction set: one of ``metatasnet_fast._native.cpu_isas()``."""

_STORED = (torch.float32, torch.bfloat16)

Method = TypeVar("Method", bound=Callable[..., Any])


def _exactly(method: Method) -> Method:
    """Without gradients, and without autocast: what torch computes here must not be rounded besides."""

    @functools.wraps(method)
    def run(*args: Any, **named: Any) -> Any:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return method(*args, **named)

    return cast(Method, run)


@dataclass(frozen=True)
class _Prepared:
    config: StageConfig
    stage: Any
    """The compiled ``CpuStage``: weights packed for one instruction set and precision."""
    mel: MelShare
    storage: torch.dtype

    @property
    def instruments(self) -> int:
        count: int = self.stage.instruments
        return count


class CpuBackend(Backend):
    """Each (item, instrument) runs depth-first through the whole masking network on one core; see ``docs/cpu-backend.md``.

    Threads: ``torch.get_num_threads()``, started and joined by each call. Results are the same bits for every number of threads
    and do not depend on what else is in the batch. Latents are stored frames by channels: in bfloat16 for
    ``Precision.bfloat16``, whose sums, statistics and residual stream stay float32.
    """

    name = "cpu"
    summary = "compiled C++ with fused passes (AMX, AVX-512, AVX2, portable); inference in float32 and bfloat16 on CPUs"

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
        if request.training:
            return "it computes no gradients: train with the backend reference, or put inference under torch.no_grad()."
        if request.precision not in (Precision.float32, Precision.bfloat16):
            return f"it knows float32 and bfloat16, not {request.precision.value}; choose one of them."
        stage = None if request.config is None else request.config.stage(0)
        if stage is not None and (stage.instruments != 4 or stage.softmax != 4 or not stage.has_spectrogram):
            return "it serves four instruments and the spectrogram branch only; choose the backend reference."
        return None

    @_exactly
    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> _Prepared:
        """Generate and pack; raises :class:`BackendUnavailableError` where the backend cannot run."""
        module, reason = native.load(), self.unavailable()
        if module is None or reason is not None:
            raise BackendUnavailableError(f"The backend cpu cannot run: {reason}")
        bfloat16 = precision is Precision.bfloat16
        weights = reference.generate(config, {name: p.to(torch.float32) for name, p in parameters.items()})
        stage = module.CpuStage(self.variant(), bfloat16, sizes(config), weight_arrays(weights))
        mel = MelShare.of(weights.encoder, config, stage.latent_ld)
        return _Prepared(config, stage, mel, torch.bfloat16 if bfloat16 else torch.float32)

    @_exactly
    def encode(self, prepared: _Prepared, signal: Tensor) -> Tensor:
        config = prepared.config
        if signal.dim() != 3 or signal.shape[1] != 1:
            raise ShapeError(f"A signal must have shape (n, 1, samples), got {tuple(signal.shape)}.")
        n, _, samples = signal.shape
        if samples <= config.n_fft // 2 or samples < config.W:
            raise ShapeError(
                f"{samples} samples at {config.sampling_rate} Hz are too few: "
                f"pad to {config.shortest} or more (the Separator does it for you)."
            )
        wave = signal[:, 0].to(torch.float32).contiguous()
        latent = wave.new_empty(n, samples // config.W, prepared.stage.latent_ld, dtype=prepared.storage)
        prepared.stage.encode(wave, prepared.mel(wave), latent, torch.get_num_threads())
        return latent[..., : config.N].transpose(1, 2)

    @_exactly
    def mask(
        self, prepared: _Prepared, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        config = prepared.config
        _check_latent(latent, config)
        n, _, frames = latent.shape
        expected = (n, prepared.instruments, config.partial_channels, frames) if config.partial_channels else None
        found = None if partial is None else tuple(partial.shape)
        if found != expected:
            raise ShapeError(f"Stage {config.index} expects a partial latent of shape {expected}, got {found}.")
        masked = latent.new_empty(n, prepared.instruments, frames, prepared.stage.latent_ld, dtype=prepared.storage)
        own_copies = None if dropout is None else _by_frames(latent[:, None] * dropout[..., None])
        previous = None if partial is None else _by_frames(partial)
        prepared.stage.mask(_by_frames(latent), own_copies, previous, masked, torch.get_num_threads())
        return masked[..., : config.N].transpose(2, 3)

    @_exactly
    def decode(self, prepared: _Prepared, latent: Tensor) -> Tensor:
        _check_latent(latent, prepared.config)
        n, _, frames = latent.shape
        signal = latent.new_empty(n, frames * prepared.config.W, dtype=torch.float32)
        prepared.stage.decode(_by_frames(latent), signal, torch.get_num_threads())
        return signal[:, None]


def _check_latent(latent: Tensor, config: StageConfig) -> None:
    if latent.dim() != 3 or latent.shape[1] != config.N:
        raise ShapeError(f"A latent must have shape (n, {config.N}, frames), got {tuple(latent.shape)}.")


def _by_frames(latent: Tensor) -> Tensor:
    """(..., channels, frames) as (..., frames, channels) with contiguous channels: a view of our own latents, else a copy."""
    x = latent.transpose(-1, -2)
    if x.dtype not in _STORED:
        x = x.to(torch.float32)
    return x if x.stride(-1) == 1 else x.contiguous()
