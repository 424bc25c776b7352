"""Launches of the backend ``triton`` on tensors without data, and the code that Triton makes of them for any GPU."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from metatasnet_fast import kernels
from metatasnet_fast.kernels import log_power

__all__ = ["Launch", "Recorder", "TorchCall", "buffers", "compiled", "parameters", "recorded", "source"]

OPTIONS = ("num_warps", "num_stages", "maxnreg")
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments of one launch."""

    kernel: Any
    arguments: dict[str, Any]
    programs: int

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__).removesuffix("_kernel")


@dataclass(frozen=True)
class TorchCall:
    """One of torch's own operators that computes, and the bytes of its arguments and results."""

    operator: str
    bytes: int
    name: ClassVar[str] = "torch"


def recorded(write: Callable[[Launch], None], capability: int = 0) -> contextlib.AbstractContextManager[Any]:
    """While this lasts, launchers hand their launches to ``write`` instead of starting them.

    They choose as on a GPU of that compute capability, without its point; 0 for none in particular.
    """

    def launch(kernel: Any, programs: int, device_of: Tensor, **arguments: Any) -> None:
        if programs:
            write(Launch(kernel, arguments, programs))

    def basis(n_fft: int, device: torch.device) -> Tensor:
        return torch.empty(4, n_fft // 4, log_power.row_length(n_fft), device="meta")

    replaced = {
        "launch": launch, "basis": basis, "operands_in_shared_memory": lambda device: capability // 10 == 9
    }  # fmt: skip
    stack = contextlib.ExitStack()
    for found in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"{kernels.__name__}.{found.name}")
        for name, instead in replaced.items():
            if found.name != name and hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, instead))
    return stack


class Recorder(TorchDispatchMode):
    """Writes down, in order, the launches of the library's operators on meta tensors and torch's own calls between them."""

    def __init__(self, capability: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Launch | TorchCall] = []
        self.capability = capability

    def __enter__(self) -> Recorder:
        self._patches = recorded(self.found.append, self.capability)
        self._patches.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        if namespace == "metatasnet_fast":
            kernel = torch.library.get_kernel(func, "CUDA")
            with self:
                return kernel.call_boxed(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given, got = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in ((args, kwargs), result))
        views = {x.untyped_storage()._cdata for x in given}
        made = [x for x in got if x.untyped_storage()._cdata not in views]
        changes = name.endswith("_") and not name.endswith("detach_")
        if (made or changes) and "empty" not in name:
            self.found.append(TorchCall(name, sum(map(size, given + made))))
        return result


def size(x: Tensor) -> int:
    """Bytes of a tensor, repeated ones once."""
    count = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        count *= 1 if stride == 0 and length > 1 else length
    return count * x.element_size()


def source(launch: Launch) -> tuple[ASTSource, dict[str, int]]:
    """The kernel specialised as Triton specialises it at run time: constants, ones, multiples of sixteen."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for parameter in launch.kernel.params:
        value, at = launch.arguments[parameter.name], (parameter.num,)
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[at] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name], attributes[at] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if specialised and value % 16 == 0:
                attributes[at] = [["tt.divisibility", 16]]
    options = {name: launch.arguments[name] for name in OPTIONS if name in launch.arguments}
    return ASTSource(launch.kernel, signature, constants, attributes), options


def compiled(launch: Launch, capability: int) -> CompiledKernel:
    """The kernel in the code of an NVIDIA GPU, from Triton's cache where it is there."""
    what, options = source(launch)
    return triton.compile(what, target=GPUTarget("cuda", capability, 32), options=options)


def _tensors(launch: Launch) -> Iterator[tuple[str, Tensor, int]]:
    """The launch's tensors with addresses: what begins at a place of its own has a range of its own, in the arguments' order.

    Where in its sector a small one begins is left out, so that equal launches look equal.
    """
    starts: dict[tuple[int, int], int] = {}
    for name, value in launch.arguments.items():
        if isinstance(value, Tensor):
            offset = int(value.storage_offset()) * value.element_size()
            start = starts.setdefault((value.untyped_storage()._cdata, offset), len(starts) + 1)
            yield name, value, (start << 38) + (offset % 32 if size(value) > 1 << 20 else 0)


def buffers(launch: Launch) -> dict[int, int]:
    """Bytes that a launch can touch in each range, by ``address >> 38``."""
    found: dict[int, int] = {}
    for _, value, at in _tensors(launch):
        found[at >> 38] = max(found.get(at >> 38, 0), size(value))
    return found


def parameters(launch: Launch) -> bytes:
    """The bank of parameters as the device sees it."""
    addresses = {name: at for name, _, at in _tensors(launch)}
    signature = source(launch)[0].signature
    content = b""
    for parameter in launch.kernel.params:
        kind = signature[parameter.name]
        if kind == "constexpr":
            continue
        code = "Q" if kind.startswith("*") else "q" if kind == "i64" else "i"
        content += b"\0" * (-len(content) % struct.calcsize(code))
        content += struct.pack(code, addresses.get(parameter.name, launch.arguments[parameter.name]))
    return content + b"\0" * (-len(content) % 8 + 16)  # two pointers that Triton adds
