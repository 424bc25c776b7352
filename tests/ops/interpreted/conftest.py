"""Run the kernels in Triton's interpreter, with bfloat16 as a GPU has it and no memory that happens to be zero."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")


def _values(handle: Any) -> torch.Tensor:
    """The numbers in a handle; the interpreter holds bfloat16 as 16-bit patterns."""
    data = torch.from_numpy(handle.data.copy())
    return data.view(torch.bfloat16) if handle.dtype.scalar == tl.bfloat16 else data


@pytest.fixture(scope="session")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="session", autouse=True)
def language_patched_once(patch: pytest.MonkeyPatch) -> None:
    """The interpreter replaces the whole language at every call of a function, also from a kernel; once is enough here."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1 in the environment")
    original, known = interpreter._patch_lang, set()

    class Kept:
        def restore(self) -> None:
            """Nothing: this process only interprets."""

    def patch_once(function: Any) -> Kept:
        languages = {name for name, value in function.__globals__.items() if value is tl or value is tl.core}
        missing = frozenset(function.__globals__[name].__name__ for name in languages)
        if not missing <= known:
            original(function)
            known.update(missing)
            tl.tensor.__index__ = lambda self: self.handle.data.item()  # before 3.7 it fails with NumPy 2.4's arrays
        return Kept()

    patch.setattr(interpreter, "_patch_lang", patch_once)


@pytest.fixture(scope="session", autouse=True)
def true_products(patch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies bit patterns of bfloat16 in ``dot`` and truncates in casts; do both as the hardware does.

    Sums are float64, rounded once: OpenBLAS gives a row other bits in another place of the same product, a GPU does not.
    """
    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        added = _values(d)
        product = _values(a).double() @ _values(b).double() + added
        return interpreter.TensorHandle(product.to(added.dtype).numpy(), d.dtype.scalar)

    def cast_impl(self: Any, value: Any, to: Any) -> Any:
        if {value.dtype.scalar, to.scalar} != {tl.bfloat16, tl.float32}:
            return cast(self, value, to)
        if to.scalar == tl.float32:
            return interpreter.TensorHandle(_values(value).float().numpy(), tl.float32)
        return interpreter.TensorHandle(_values(value).bfloat16().view(torch.uint16).numpy(), tl.bfloat16)

    patch.setattr(builder, "create_dot", create_dot)
    patch.setattr(builder, "cast_impl", cast_impl)
    for name in ("create_fp_ext", "create_fp_trunc"):
        patch.setattr(builder, name, cast_impl)


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory(patch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN, so what no kernel writes is seen."""

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def new(*arguments: Any, **options: Any) -> torch.Tensor:
            made = make(*arguments, **options)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return new

    for name in ("empty", "empty_like"):
        patch.setattr(torch, name, poisoned(getattr(torch, name)))
