"""How an operation is registered with PyTorch, and what every operation checks."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from ..config import GROUPS
from ..errors import ShapeError
from ..reference.statistics import wide

__all__ = [
    "NAMESPACE",
    "check_activation",
    "check_parameter",
    "interpreted",
    "kernels",
    "register",
    "tile",
    "unit_stride",
]

NAMESPACE = "metatasnet_fast"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def interpreted() -> bool:
    """True if CPU tensors are to go through the kernels in Triton's interpreter; Triton reads it when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernels(name: str, dtype: torch.dtype) -> Any:
    """A module of kernels, imported when first needed.

    Raises:
        MissingDependencyError: without Triton.
        ShapeError: for a dtype that no kernel serves.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ShapeError(
            f"The Triton kernels serve float32, bfloat16 and float16, not {dtype}; float64 runs on a CPU only."
        )
    require("triton", "This operation")
    return importlib.import_module(f"{NAMESPACE}.kernels.{name}")


def tile() -> int:
    """Frames behind one partial statistic."""
    from ..kernels.launch import TILE

    return TILE


def register(
    schema: str, kernel: Callable[..., Any], reference: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Define an operator: ``kernel`` on CUDA and in the interpreter, ``reference`` on a CPU, ``fake`` for shapes alone."""

    def on_cpu(*arguments: Any) -> Any:
        # An ambient autocast would round the reference arithmetic's products, whatever the dtype that was asked for.
        with torch.autocast("cpu", enabled=False):
            return (kernel if interpreted() else reference)(*arguments)

    LIBRARY.define(schema)
    name = schema.partition("(")[0]
    LIBRARY.impl(name, kernel, "CUDA")
    LIBRARY.impl(name, on_cpu, "CPU")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operator


def register_once_differentiable(name: str) -> None:
    """A backward operator: differentiating it again is an error, not a silent zero."""

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{name} has no second derivative; use the reference backend for it.")

    torch.library.register_autograd(f"{NAMESPACE}::{name}", refuse, lib=LIBRARY)


def unit_stride(x: Tensor) -> Tensor:
    """``x``, copied only if neighbouring channels are not neighbours in memory."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def check_activation(name: str, x: Tensor, shape: tuple[int, ...] | None = None, like: Tensor | None = None) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (n, 4, frames, channels), of ``shape``, and of ``like``'s dtype and device."""
    if x.dim() != 4 or x.shape[1] != 4 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ShapeError(f"{name} must be (n, 4, frames, channels) with at least one frame, got {tuple(x.shape)}.")
    if shape is not None and tuple(x.shape) != shape:
        raise ShapeError(f"{name} must be {shape}, got {tuple(x.shape)}.")
    if not x.is_floating_point() or (like is not None and x.dtype != like.dtype):
        raise ShapeError(f"{name} must be {'floating point' if like is None else like.dtype}, got {x.dtype}.")
    if like is not None and x.device != like.device:
        raise ShapeError(f"{name} must be on {like.device}, got {x.device}.")


def check_parameter(name: str, p: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise :class:`ShapeError` unless ``p`` is None or of ``shape``, floating point, on ``like``'s device."""
    if p is None:
        return
    if tuple(p.shape) != shape or not p.is_floating_point() or p.device != like.device:
        found = f"{p.dtype} {tuple(p.shape)} on {p.device}"
        raise ShapeError(f"{name} must be floating point {shape} on {like.device}, got {found}.")


def check_norm(norm: tuple[Tensor, Tensor, Tensor], x: Tensor) -> None:
    """Raise :class:`ShapeError` unless statistics, gamma and beta fit the activation ``x``."""
    n, _, frames, channels = x.shape
    if channels % GROUPS:
        raise ShapeError(f"Group norm needs a multiple of {GROUPS} channels, got {channels}.")
    statistics, gamma, beta = norm
    check_parameter("statistics", statistics, (n, 4, -(-frames // tile()), 2, channels), x)
    if statistics.dtype != wide(x.dtype):
        raise ShapeError(f"Statistics of {x.dtype} must be {wide(x.dtype)}, got {statistics.dtype}.")
    check_parameter("gamma", gamma, (4, channels), x)
    check_parameter("beta", beta, (4, channels), x)
