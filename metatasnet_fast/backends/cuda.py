"""The backends ``cuda`` and ``cuda-wgmma``: inference in compiled CUDA (``csrc/cuda``), in bfloat16, tf32 and float32."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import native, reference
from ..config import StageConfig
from ..errors import BackendUnavailableError
from ..precision import Precision
from .cuda_weights import pack, persistent_arrays, sizes, slopes, spectrogram_arrays
from .gpu import driver_version, no_gpu_reason
from .graphs import GraphedBackend, Graphs, switched_on
from .registry import Request, check_device, exactly

__all__ = ["KERNELS", "OLDEST", "UNVERIFIED", "CudaBackend", "WgmmaBackend"]

OLDEST = (8, 0)
"""Lowest compute capability for the kernels, which need asynchronous copies, and tensor cores for bfloat16 and tf32."""

HOPPER = (9, 0)
"""The only compute capability with the instruction ``wgmma``. Older and newer GPUs do not have it."""

KERNELS = (
    "Depthwise",
    "Fold",
    "LogPower",
    "MaskProduct",
    "Mix",
    "MixConv",
    "Norm",
    "Normalise",
    "OverlapAdd",
    "OverlapAddWgmma",
    "PersistentBlocks",
    "Pointwise",
    "PointwiseWgmma",
    "SourceMoments",
)
"""The kernels that ``csrc/cuda`` launches. The emulator runs all of these."""

UNVERIFIED = KERNELS
"""The kernels that have not run on a GPU yet. ``auto`` does not choose the backend until this tuple is empty."""

_FURTHEST = 1 << 22
"""Largest stride between frames, in elements. It is limited, as kernels count the bytes of 64 frames in 32 bits."""

logger = logging.getLogger("metatasnet_fast")


@dataclass(frozen=True)
class _Prepared:
    config: StageConfig
    stage: Any
    """The compiled ``CudaStage``, which points to ``weights``."""
    weights: Mapping[str, Tensor]
    device: torch.device
    storage: torch.dtype
    graphs: Graphs | None


class CudaBackend(GraphedBackend):
    """The backend of compiled CUDA kernels; see ``docs/cuda-backend.md``.

    The kernels run on the caller's current stream, in memory from torch's allocator. No job waits for the device, so short jobs
    can be captured in CUDA graphs. Results have the same bits in every run, and do not depend on the other items of the batch.
    Latents are stored as (frames, channels). For ``Precision.bfloat16`` latents are bfloat16; sums, statistics, the residual
    stream and the spectrogram stay float32.
    """

    name = "cuda"
    summary = "compiled CUDA with fused passes; inference in bfloat16, tf32 and float32 on NVIDIA GPUs"
    device_type: ClassVar[str] = "cuda"
    precisions: ClassVar[tuple[Precision, ...]] = (Precision.bfloat16, Precision.tf32, Precision.float32)
    products: ClassVar[str] = "mma"
    """The instruction that multiplies frames: ``mma``, or ``wgmma`` on Hopper."""

    def unavailable(self) -> str | None:
        return native.cuda_reason() or no_gpu_reason() or self._driver_too_old()

    def supports(self, request: Request) -> str | None:
        if request.device.type != self.device_type:
            return f"it computes on NVIDIA GPUs, not on {request.device}; move the network there or choose another backend."
        if request.training:
            return "it computes no gradients: train with another backend, or put inference under torch.no_grad()."
        if request.precision not in self.precisions:
            known = ", ".join(p.value for p in self.precisions)
            return f"it knows {known}, not {request.precision.value}; choose one of them."
        return self._too_old(request.device) or self._uncovered(request) or self._too_small(request)

    def _too_old(self, device: torch.device) -> str | None:
        """Return a sentence that says why a GPU cannot run the kernels, or None if it can.

        The GPU or the driver may be too old, or the kernels may have been compiled for other GPUs.
        """
        capability = torch.cuda.get_device_capability(device)
        if capability < OLDEST:
            return f"{device} has compute capability {capability[0]}.{capability[1]}; choose another backend below 8.0."
        module = native.load()
        if module is None or native.cuda_reason() is not None:
            return None
        obstacle = module.cuda_obstacle(torch.cuda.current_device() if device.index is None else device.index)
        if not obstacle:
            return None
        name = "".join(map(str, capability))
        return (
            f"its kernels, compiled for {module.cuda_build_info()['architectures']}, do not run on {device}, which is "
            f"sm_{name} ({obstacle}); update the driver, or build with METATASNET_CUDA_ARCHITECTURES={name}."
        )

    def _driver_too_old(self) -> str | None:
        """Return a sentence if the driver is too old for the kernels, else None.

        The driver is too old if its CUDA version has a smaller first number than the compiler of the kernels.
        """
        module, driver = native.load(), driver_version()
        compiler = re.search(r"nvcc (\d+)\.", module.cuda_build_info()["compiler"]) if module else None
        if driver is None or compiler is None or driver[0] >= int(compiler[1]):
            return None
        return (
            f"its kernels were compiled by CUDA {compiler[1]}, and the NVIDIA driver supports CUDA {driver[0]}.{driver[1]}; "
            f"update the driver, or build with an older nvcc."
        )

    def _uncovered(self, request: Request) -> str | None:
        module = native.load()
        if module is None or request.config is None:
            return None
        for stage in request.config.stages:
            reason = module.cuda_refusal(sizes(stage))
            if reason is not None:
                return (
                    f"its kernels do not cover stage {stage.index} of this network ({reason}); choose another backend."
                )
        return None

    def _too_small(self, request: Request) -> str | None:
        """Return a sentence if a thread block needs more shared memory than the GPU has, else None.

        GPUs for data centres have 163 KiB or more, other GPUs 99 KiB.
        """
        module = native.load()
        if module is None or request.config is None:
            return None
        there = self._shared_memory(request.device)
        needed = max(module.cuda_shared_bytes(sizes(stage)) for stage in request.config.stages)
        if needed <= there:
            return None
        return (
            f"its kernels need {needed} bytes of shared memory, {request.device} has {there}; choose another backend."
        )

    def _shared_memory(self, device: torch.device) -> int:
        properties: Any = torch.cuda.get_device_properties(device)
        return int(properties.shared_memory_per_block_optin)

    def _stage_class(self) -> Any:
        module, reason = native.load(), self.unavailable()
        if module is None or reason is not None:
            raise BackendUnavailableError(f"The backend {self.name} cannot run: {reason}")
        return module.CudaStage

    def _stream(self, device: torch.device) -> int:
        return int(torch.cuda.current_stream(device).cuda_stream)

    @exactly
    @torch.no_grad()
    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> _Prepared:
        """Generate and pack the weights of a stage; raise :class:`BackendUnavailableError` if the backend cannot run."""
        make = self._stage_class()
        weights = reference.generate(config, {name: p.to(torch.float32) for name, p in parameters.items()})
        arrays = {**pack(weights, precision), **spectrogram_arrays(weights)}
        if self.products == "wgmma":
            arrays |= persistent_arrays(weights)
        device = arrays["encoder.bank"].device
        stage = make(precision.value, sizes(config), slopes(weights), arrays, self.products)
        graphs = Graphs(config.sampling_rate) if device.type == "cuda" and switched_on() else None
        return _Prepared(config, stage, arrays, device, precision.storage, graphs)

    @exactly
    @torch.no_grad()
    def encode(self, prepared: _Prepared, signal: Tensor) -> Tensor:
        config, stage = prepared.config, prepared.stage
        config.check_signal(signal.shape)
        n, _, samples = signal.shape
        check_device(signal, prepared.device)
        wave = _aligned(signal[:, 0].to(torch.float32).contiguous())
        latent = wave.new_empty(n, samples // config.W, stage.latent_ld, dtype=prepared.storage)
        workspace = _workspace(prepared, stage.encode_bytes(n, samples))
        stage.encode(wave, latent, workspace, self._stream(prepared.device))
        return latent[..., : config.N].transpose(1, 2)

    @exactly
    @torch.no_grad()
    def mask(
        self, prepared: _Prepared, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        config, stage = prepared.config, prepared.stage
        prepared.config.check_latent(latent.shape)
        check_device(latent, prepared.device)
        n, _, frames = latent.shape
        config.check_partial(None if partial is None else partial.shape, latent.shape)
        own_copies = None if dropout is None else _by_frames(latent[:, None] * dropout[..., None], prepared)
        previous = None
        if partial is not None:
            check_device(partial, prepared.device)
            previous = _by_frames(partial, prepared)
        masked = torch.empty(
            n, config.instruments, frames, stage.latent_ld, dtype=prepared.storage, device=prepared.device
        )
        workspace = _workspace(prepared, stage.mask_bytes(n, frames, own_copies is not None))
        stage.mask(_by_frames(latent, prepared), own_copies, previous, masked, workspace, self._stream(prepared.device))
        return masked[..., : config.N].transpose(2, 3)

    @exactly
    @torch.no_grad()
    def decode(self, prepared: _Prepared, latent: Tensor) -> Tensor:
        config, stage = prepared.config, prepared.stage
        prepared.config.check_latent(latent.shape)
        check_device(latent, prepared.device)
        n, _, frames = latent.shape
        signal = torch.empty(n, frames * config.W, dtype=torch.float32, device=prepared.device)
        workspace = _workspace(prepared, stage.decode_bytes(n, frames))
        stage.decode(_by_frames(latent, prepared), signal, workspace, self._stream(prepared.device))
        return signal[:, None]


class WgmmaBackend(CudaBackend):
    """The backend ``cuda`` with kernels for Hopper; see ``docs/cuda-backend.md``.

    The instruction ``wgmma`` computes the products of frames, and TMA loads their operands. If a window fits on the chip, one
    launch runs all blocks of a masking network. Which launches are used is logged once for each length. No GPU has run these
    kernels yet. For this reason they are a separate backend, used only if the user names it.
    """

    name = "cuda-wgmma"
    summary = (
        "cuda with wgmma, TMA and persistent masking networks (windows up to 52 s); "
        "inference in bfloat16 on Hopper (compute capability 9.0); not yet run on a GPU"
    )
    precisions = (Precision.bfloat16,)
    products = "wgmma"

    def mask(
        self, prepared: _Prepared, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        frames = latent.shape[-1]
        _log_launches(frames, prepared.stage.separate_launches(frames))
        return super().mask(prepared, latent, partial, dropout)

    def unavailable(self) -> str | None:
        return super().unavailable() or self._without_hopper()

    def _without_hopper(self) -> str | None:
        module = native.load()
        if module is not None and "90a" not in module.cuda_build_info()["architectures"]:
            return "its kernels were not compiled for Hopper; build with METATASNET_CUDA_ARCHITECTURES=90a-real."
        capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        if HOPPER in capabilities:
            return None
        return "there is no GPU of compute capability 9.0 (Hopper), which alone has wgmma; choose the backend cuda."

    def _too_old(self, device: torch.device) -> str | None:
        capability = torch.cuda.get_device_capability(device)
        if capability == HOPPER:
            return super()._too_old(device)
        return (
            f"wgmma is for compute capability 9.0 (Hopper) alone, {device} has {capability[0]}.{capability[1]}; "
            f"choose the backend cuda."
        )


@functools.lru_cache(maxsize=64)
def _log_launches(frames: int, reason: str) -> None:
    """Log whether one persistent launch runs the blocks of a masking network, or the ``reason`` for separate launches."""
    logger.info(
        "cuda-wgmma, %d frames: the masking network's blocks are %s.",
        frames,
        f"separate launches, because {reason}" if reason else "one persistent launch",
    )


def _workspace(prepared: _Prepared, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=prepared.device)


def _by_frames(latent: Tensor, prepared: _Prepared) -> Tensor:
    """Return ``latent`` (..., channels, frames) as (..., frames, channels).

    The result is a view if this backend made the latent, else a copy that the kernels can read.
    """
    x = latent.transpose(-1, -2).to(prepared.storage)
    vector = 16 // x.element_size()
    rows = all(stride % vector == 0 or size == 1 for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True))
    rows = rows and x.stride(-2) <= _FURTHEST
    if x.ndim == 4 and 1 not in x.shape[:2]:  # instruments must share memory, or be evenly spaced across items
        rows = rows and x.stride(1) in (0, x.stride(0) / x.shape[1])
    return x if x.stride(-1) == 1 and rows and x.data_ptr() % 16 == 0 else _aligned(x.contiguous())


def _aligned(x: Tensor) -> Tensor:
    return x if x.data_ptr() % 16 == 0 else x.clone()
