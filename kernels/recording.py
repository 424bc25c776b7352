"""Record launches instead of starting kernels, and compile the recorded launches, also for GPUs that are not installed.

The operators run on meta tensors, which have shapes but no data. So all launches of the network are known in seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import ASTSource, CompiledKernel

from . import launch as launching

__all__ = [
    "Launch",
    "Recorder",
    "Target",
    "TorchCall",
    "compile_ahead",
    "compiled",
    "distinct",
    "recorded",
    "size",
    "source",
]

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
    """One launch: a kernel, its arguments, and the number of programs."""

    kernel: Any
    arguments: dict[str, Any]
    programs: int

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__).removesuffix("_kernel")


@dataclass(frozen=True)
class TorchCall:
    """A call of one of PyTorch's own operators that computes something, and the bytes of its arguments and results."""

    operator: str
    bytes: int
    name: ClassVar[str] = "torch"


@contextlib.contextmanager
def recorded(write: Callable[[Launch], object], capability: int = 0, amd: str = "") -> Iterator[None]:
    """In this context, launchers pass each launch to ``write`` instead of starting a kernel.

    The launchers choose tiles and options for ``capability``, a compute capability (90 for 9.0), or for ``amd``, an AMD
    architecture. 0 and an empty text stand for no particular GPU.
    """
    before = launching.recording
    launching.recording = launching.Recording(
        lambda kernel, programs, arguments: write(Launch(kernel, arguments, programs)), capability, amd
    )
    try:
        yield
    finally:
        launching.recording = before


class Recorder(TorchDispatchMode):
    """A context that records, in order, the launches of the library's operators and the calls of PyTorch's own operators.

    The operators run on meta tensors. The records are in ``found``.
    """

    def __init__(self, capability: int = 0, amd: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Launch | TorchCall] = []
        self.target = capability, amd

    def __enter__(self) -> Recorder:
        self._recorded = recorded(self.found.append, *self.target)
        self._recorded.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._recorded.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        if namespace == "metatasnet_fast":
            with self:
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        given, got = ([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in ((args, kwargs), result))
        views = {x.untyped_storage()._cdata for x in given}
        made = [x for x in got if x.untyped_storage()._cdata not in views]
        changes = name.endswith("_") and not name.endswith("detach_")
        if (made or changes) and "empty" not in name:
            self.found.append(TorchCall(name, sum(map(size, given + made))))
        return result


def size(x: Tensor) -> int:
    """Return the size of a tensor in bytes. Elements that a stride of 0 repeats count once."""
    count = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        count *= 1 if stride == 0 and length > 1 else length
    return count * x.element_size()


def source(launch: Launch) -> tuple[ASTSource, dict[str, int]]:
    """Return the source to compile for a launch, and its compile options.

    The arguments are specialised as by Triton at run time: constants and integers equal to 1 become constants, and integers
    divisible by 16 are marked as such. All pointers are marked as multiples of 16 bytes.
    """
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


def compiled(launch: Launch, gpu: int | GPUTarget) -> CompiledKernel:
    """Return the kernel of a launch, compiled for a GPU, or from Triton's cache if it is there.

    A number as ``gpu`` is an NVIDIA compute capability (90 for 9.0).
    """
    what, options = source(launch)
    return triton.compile(what, target=GPUTarget("cuda", gpu, 32) if isinstance(gpu, int) else gpu, options=options)


def distinct(launches: Sequence[Launch]) -> list[Launch]:
    """Return the launches, without those whose program is the same as that of an earlier launch."""
    found: dict[tuple[str, str], Launch] = {}
    for each in launches:
        what, options = source(each)
        found.setdefault((what.hash(), str(options)), each)
    return list(found.values())


class Target(DriverBase):  # type: ignore[misc]
    """A Triton driver for an NVIDIA GPU that need not be installed: it can compile for the GPU, but not launch."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return False  # Triton must not choose this driver automatically

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_benchmarker(self) -> None:
        return None


def compile_ahead(launch: Launch) -> None:
    """Compile a launch's program into Triton's cache as Triton does at run time, for the GPU of the active driver.

    In the cache, this program may have another name than that of :func:`compiled`: Triton chooses the names.
    """
    launch.kernel.warmup(grid=(1,), **launch.arguments)
