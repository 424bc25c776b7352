"""The backend ``reference`` runs the authors' arithmetic in plain PyTorch, on every device and in every precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import reference
from ..config import StageConfig
from ..precision import Precision, tf32_products
from .registry import Backend, Request

__all__ = ["ReferenceBackend", "arithmetic"]


@dataclass(frozen=True)
class _Prepared:
    weights: reference.StageWeights
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of weights and signals: float64 for ``Precision.float64``; else float32, also under autocast."""
        return torch.float64 if self.precision is Precision.float64 else torch.float32


class ReferenceBackend(Backend):
    """The backend of plain PyTorch. Every job is differentiable in every precision. bfloat16 and float16 run under
    ``torch.autocast``."""

    name = "reference"
    summary = "plain PyTorch, the authors' arithmetic; training and inference on every device"

    def unavailable(self) -> str | None:
        return None

    def supports(self, request: Request) -> str | None:
        if request.precision is Precision.tf32 and request.device.type != "cuda":
            return f"tf32 exists on NVIDIA GPUs only, not on {request.device}; ask for float32."
        if request.precision is Precision.float64 and request.device.type == "mps":
            return "Apple GPUs have no float64; ask for float32."
        return None

    def prepare(self, config: StageConfig, parameters: Mapping[str, Tensor], precision: Precision) -> _Prepared:
        dtype = torch.float64 if precision is Precision.float64 else torch.float32
        copy = not torch.is_grad_enabled()
        cast = {name: p.to(dtype, copy=copy) for name, p in parameters.items()}
        device = next(iter(cast.values())).device
        with arithmetic(precision, device):
            return _Prepared(reference.generate(config, cast), precision)

    def encode(self, prepared: _Prepared, signal: Tensor) -> Tensor:
        with arithmetic(prepared.precision, signal.device):
            return reference.encode(prepared.weights.encoder, prepared.weights.config, signal.to(prepared.dtype))

    def mask(
        self, prepared: _Prepared, latent: Tensor, partial: Tensor | None, dropout: Tensor | None = None
    ) -> Tensor:
        with arithmetic(prepared.precision, latent.device):
            return reference.mask(prepared.weights.masking, prepared.weights.config, latent, partial, dropout)

    def decode(self, prepared: _Prepared, latent: Tensor) -> Tensor:
        with arithmetic(prepared.precision, latent.device):
            return reference.decode(prepared.weights.decoder, prepared.weights.config, latent)


@contextlib.contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """In this context, compute matrix products in ``precision``.

    In float32 and float64, a ``torch.autocast`` of the caller stays active.
    """
    if precision in (Precision.bfloat16, Precision.float16):
        with torch.autocast(device.type, precision.storage):
            yield
    elif torch.compiler.is_compiling():
        yield  # a compiled network uses torch's switches for TF32 as the caller set them
    elif precision is Precision.tf32 or (precision is Precision.float32 and device.type == "cuda"):
        with tf32_products(precision is Precision.tf32):
            yield
    else:
        yield
