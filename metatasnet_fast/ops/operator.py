"""Register operations with PyTorch, and check the arguments that all operations share.

An operation has two functions: its arithmetic in plain PyTorch, and a function that launches Triton kernels. The arithmetic
serves CPU tensors. Its annotations are the operator's schema. ``torch.compile`` runs it on tensors without data, to get the
shapes of the results.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._extras import require
from ..config import GROUPS
from ..errors import ShapeError

__all__ = [
    "NAMESPACE",
    "check_activation",
    "check_norm",
    "check_parameter",
    "differentiable",
    "interpreted",
    "kernels",
    "operator",
    "optional",
    "products",
    "tile",
    "unit_stride",
    "wide",
]

NAMESPACE = "metatasnet_fast"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

Function = Callable[..., Any]


def interpreted() -> bool:
    """Return whether the kernels run on CPU tensors, in Triton's interpreter.

    The environment variable must be set before Triton is imported.
    """
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernels(name: str, dtype: torch.dtype) -> Any:
    """Import the module ``name`` of the kernels, and return it.

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


def products(tf32: bool, x: Tensor) -> str:
    """Return Triton's ``input_precision`` for float32 operands like ``x``: TF32 if ``tf32`` and the GPU supports it."""
    found: str = kernels("launch", x.dtype).products(tf32, x.device)
    return found


def tile() -> int:
    """Return the number of frames that one partial statistic covers."""
    from ..kernels.launch import TILE

    return TILE


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over values of ``dtype``: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def operator(name: str, kernel: Function) -> Callable[[Function], Function]:
    """Register the decorated arithmetic as the operator ``metatasnet_fast::name``, and return the operator.

    The arithmetic has annotations that ``torch.library.infer_schema`` understands, and returns a tensor or a tuple of tensors.
    ``kernel`` takes the same arguments, and returns contiguous tensors of the same shapes and dtypes. It serves CUDA tensors,
    and CPU tensors in Triton's interpreter.
    """

    def register(arithmetic: Function) -> Function:
        def exact(*arguments: Any) -> Any:
            # Switch off an autocast of the caller: it would round the operands of products.
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                found = arithmetic(*arguments)
            if isinstance(found, Tensor):
                return found.clone(memory_format=torch.contiguous_format)
            # Copy, so that no output shares memory with an input, and all outputs have the strides of a kernel's new tensors.
            return tuple(value.clone(memory_format=torch.contiguous_format) for value in found)

        def on_cpu(*arguments: Any) -> Any:
            return (kernel if interpreted() else exact)(*arguments)

        def without_data(*arguments: Any) -> Any:
            with _shapes_only(arguments):
                return exact(*arguments)

        LIBRARY.define(name + torch.library.infer_schema(arithmetic, mutates_args=()))
        LIBRARY.impl(name, kernel, "CUDA")
        LIBRARY.impl(name, on_cpu, "CPU")
        torch.library.register_fake(f"{NAMESPACE}::{name}", without_data, lib=LIBRARY)
        found: Function = getattr(getattr(torch.ops, NAMESPACE), name).default
        return found

    return register


def _shapes_only(arguments: tuple[Any, ...]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which PyTorch adds no guards for symbolic sizes.

    PyTorch adds a guard when it chooses how to compute a sum or a view. The shapes of the results are the same for every
    choice, and the kernels do not depend on the choice.
    """
    sizes: list[Any] = [size for tensor in arguments if isinstance(tensor, Tensor) for size in tensor.shape]
    symbol = next((size for size in sizes if isinstance(size, torch.SymInt)), None)
    return contextlib.nullcontext() if symbol is None else symbol.node.shape_env.suppress_guards()


def differentiable(forward: Any, backward: Function, setup_context: Function, backward_operator: Any) -> None:
    """Make an operator differentiable once. A second derivative raises :class:`NotImplementedError`.

    Args:
        forward: the operator, from :func:`operator`.
        backward: function that takes the context and the outputs' gradients, and returns one gradient for each input.
        setup_context: function that takes the context, the inputs and the output, and saves what backward needs.
        backward_operator: the operator that ``backward`` calls; it raises the error.
    """
    torch.library.register_autograd(forward._schema.name, backward, setup_context=setup_context, lib=LIBRARY)
    name = backward_operator._schema.name

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(f"{name} has no second derivative; use the reference backend for it.")

    torch.library.register_autograd(name, refuse, lib=LIBRARY)


def optional(value: Tensor | None, like: Tensor) -> Tensor:
    """Return ``value``, or a tensor without elements for None: operators must return tensors."""
    return like.new_empty(0, dtype=wide(like.dtype)) if value is None else value


def unit_stride(x: Tensor) -> Tensor:
    """Return ``x`` with contiguous channels; it is copied only if they are not contiguous already."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def check_activation(name: str, x: Tensor, shape: tuple[int, ...] | None = None, like: Tensor | None = None) -> None:
    """Raise :class:`ShapeError` unless ``x`` is (n, I, frames, channels), floating point.

    If given, ``shape`` is its shape, and ``like`` has its dtype and device.
    """
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ShapeError(
            f"{name} must be (n, instruments, frames, channels) with at least one of the last three, got {tuple(x.shape)}."
        )
    if shape is not None and tuple(x.shape) != shape:
        raise ShapeError(f"{name} must be {shape}, got {tuple(x.shape)}.")
    if not x.is_floating_point() or (like is not None and x.dtype != like.dtype):
        raise ShapeError(f"{name} must be {'floating point' if like is None else like.dtype}, got {x.dtype}.")
    if like is not None and x.device != like.device:
        raise ShapeError(f"{name} must be on {like.device}, got {x.device}.")


def check_parameter(name: str, p: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise :class:`ShapeError` unless ``p`` is None, or floating point, of shape ``shape``, on the device of ``like``."""
    if p is None:
        return
    if tuple(p.shape) != shape or not p.is_floating_point() or p.device != like.device:
        found = f"{p.dtype} {tuple(p.shape)} on {p.device}"
        raise ShapeError(f"{name} must be floating point {shape} on {like.device}, got {found}.")


def check_norm(norm: tuple[Tensor, Tensor, Tensor], x: Tensor) -> None:
    """Raise :class:`ShapeError` unless statistics, gamma and beta fit the activation ``x``."""
    n, instruments, frames, channels = x.shape
    if channels % GROUPS:
        raise ShapeError(f"Group norm needs a multiple of {GROUPS} channels, got {channels}.")
    statistics, gamma, beta = norm
    check_parameter("statistics", statistics, (n, instruments, -(-frames // tile()), 2, channels), x)
    if statistics.dtype != wide(x.dtype):
        raise ShapeError(f"Statistics of {x.dtype} must be {wide(x.dtype)}, got {statistics.dtype}.")
    check_parameter("gamma", gamma, (instruments, channels), x)
    check_parameter("beta", beta, (instruments, channels), x)
