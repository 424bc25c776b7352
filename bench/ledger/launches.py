"""Record the launches of a job without a GPU. Triton's launchers run on tensors without data; the host code of the CUDA
kernels runs in the emulator. For each launch, give the addresses and parameters that a device would see, and for the CUDA
kernels the code that nvcc compiled."""

from __future__ import annotations

import functools
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metatasnet_fast import native
from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.benchmark.workloads import engine
from metatasnet_fast.config import MetaTasNetConfig
from metatasnet_fast.errors import BackendUnavailableError
from metatasnet_fast.kernels import recording
from metatasnet_fast.model import MultiTasNet
from metatasnet_fast.model.programs import record
from metatasnet_fast.precision import Precision

from .predict import Gpu
from .sass import tool

__all__ = [
    "BACKENDS", "KINDS", "CudaLaunch", "RecordingBackend", "RecordingWgmmaBackend", "buffers", "cubin_of", "cubins",
    "launches_of", "parameters", "recorded", "served",
]  # fmt: skip

BACKENDS = ("triton", "cuda", "cuda-wgmma")
KINDS = ("inference", "window", "training")
WINDOWS = {"inference": 22, "window": 1}
SECONDS = 24
"""A stereo song of four minutes is 22 windows of 24 seconds, as `Separator` cuts it."""
ITEMS, ITEM_SECONDS = 12, 8
"""Items of a training step, and the seconds of each item."""


def served(backend: str, kind: str, gpu: Gpu) -> bool:
    """Return whether a backend does a job on a GPU."""
    return backend == "triton" or (kind != "training" and (backend == "cuda" or gpu.capability == 90))


def launches_of(backend: str, kind: str, gpu: Gpu, only: Sequence[str] = ()) -> list[Any]:
    """Return the launches of one song, one window, or one training step without the optimiser, in bfloat16, in their order.

    Args:
        only: keep only the kernels whose name contains one of these texts; default: all.

    Raises:
        ValueError: if the backend does not do this job on this GPU.
    """
    if not served(backend, kind, gpu):
        raise ValueError(f"The backend {backend} does no {kind} on {gpu.name}.")
    config, training = MetaTasNetConfig(), kind == "training"
    items, samples = (ITEMS, ITEM_SECONDS * 8000) if training else (WINDOWS[kind], SECONDS * 8000)
    if backend == "triton":
        found = record(config, Precision.bfloat16, gpu.capability, items, samples, training)
        launches = (found.preparing if training else []) + found.running  # for songs, weights are prepared only once
    else:
        recording_backend = RecordingBackend() if backend == "cuda" else RecordingWgmmaBackend()
        ready = engine(MultiTasNet(config), recording_backend, Precision.bfloat16)
        mixes = [torch.empty(items, 1, samples * 2**s) for s in range(3)]
        with torch.no_grad():
            launches = recorded(lambda: ready.separate(mixes, {2}))
    return [launch for launch in launches if not only or any(part in launch.name for part in only)]


# -- the backend `triton`


def _tensors(launch: recording.Launch) -> Iterator[tuple[str, Tensor, int]]:
    """Yield the name, value and address of each tensor argument of a launch, in order.

    Tensors that begin at different places get different ranges of addresses. For a tensor of up to 1 MiB the offset in
    the sector is left out, so that equal launches look equal.
    """
    starts: dict[tuple[int, int], int] = {}
    for name, value in launch.arguments.items():
        if isinstance(value, Tensor):
            offset = int(value.storage_offset()) * value.element_size()
            start = starts.setdefault((value.untyped_storage()._cdata, offset), len(starts) + 1)
            yield name, value, (start << 38) + (offset % 32 if recording.size(value) > 1 << 20 else 0)


def buffers(launch: recording.Launch) -> dict[int, int]:
    """Return the bytes that a launch can touch in each range of addresses, by ``address >> 38``."""
    found: dict[int, int] = {}
    for _, value, at in _tensors(launch):
        found[at >> 38] = max(found.get(at >> 38, 0), recording.size(value))
    return found


def parameters(launch: recording.Launch) -> bytes:
    """Return a launch's parameters as the device sees them in its constant bank."""
    addresses = {name: at for name, _, at in _tensors(launch)}
    signature = recording.source(launch)[0].signature
    content = b""
    for parameter in launch.kernel.params:
        kind = signature[parameter.name]
        if kind == "constexpr":
            continue
        code = "Q" if kind.startswith("*") else "q" if kind == "i64" else "i"
        content += b"\0" * (-len(content) % struct.calcsize(code))
        content += struct.pack(code, addresses.get(parameter.name, launch.arguments[parameter.name]))
    return content + b"\0" * (-len(content) % 8 + 16)  # two pointers that Triton adds


# -- the backends `cuda` and `cuda-wgmma`

NAMESPACE = "N10metatasnet8emulated"


@dataclass(frozen=True)
class CudaLaunch:
    """One launch of a kernel; with an empty ``symbol``, one clearing of ``shared`` bytes of memory.

    ``arguments`` are the bytes that the device would get, except that tensor maps have the emulator's layout.
    ``shared`` is the dynamic shared memory of a block in bytes. ``cluster`` blocks along x form a cluster.
    """

    symbol: str
    name: str
    grid: tuple[int, int, int]
    threads: int
    cluster: int
    shared: int
    arguments: bytes

    @property
    def _words(self) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self.arguments[: len(self.arguments) // 8 * 8], np.uint64)

    @property
    def pointers(self) -> npt.NDArray[np.uint64]:
        """The distinct 8-byte words among the arguments that look like addresses, sorted.

        Words whose lower half is below 65536 or not a multiple of 4 are left out: they are small 4-byte numbers, next
        to padding that still holds the upper half of an old address.
        """
        found = np.unique(self._words[_addresses(self._words)])
        real: npt.NDArray[np.bool_] = (found % np.uint64(1 << 32) >= 1 << 16) & (found % np.uint64(4) == 0)
        return found[real]

    @property
    def placeless(self) -> bytes:
        """The arguments with only the lowest 5 bits of each address, so that they do not depend on where memory was
        allocated."""
        words = self._words.copy()
        words[_addresses(words)] &= np.uint64(31)
        return bytes(words.tobytes()) + self.arguments[len(words) * 8 :]


def _addresses(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (words >> np.uint64(40) > 0) & (words >> np.uint64(47) == 0)
    return found


class RecordingBackend(CudaBackend):
    """The backend ``cuda`` with its host code run on CPU tensors, whose data are never touched."""

    device_type: ClassVar[str] = "cpu"

    def unavailable(self) -> str | None:
        return native.reason()

    def _too_old(self, device: torch.device) -> str | None:
        return None

    def _shared_memory(self, device: torch.device) -> int:
        return 227 * 1024

    def _stage_class(self) -> Any:
        module = native.load()
        assert module is not None
        return module.EmulatedCudaStage

    def _stream(self, device: torch.device) -> int:
        return 0


class RecordingWgmmaBackend(RecordingBackend):
    """A :class:`RecordingBackend` that computes the products of frames by ``wgmma``."""

    products: ClassVar[str] = "wgmma"


def recorded(job: Callable[[], Any]) -> list[CudaLaunch]:
    """Run ``job``, and return its launches and clearings of memory, in order."""
    module = native.load()
    assert module is not None
    found = []
    for kernel, grid, threads, _, cluster, shared, arguments in module.record_emulated_launches(job):
        if kernel == "memset":
            found.append(CudaLaunch("", "memset", grid, 0, 1, shared, b""))
            continue
        if not kernel.startswith(NAMESPACE):
            raise RuntimeError(f"The kernel {kernel} is not in the namespace of the emulated ones.")
        rest = kernel[len(NAMESPACE) :]
        symbol = f"_ZN10metatasnet4cuda6kernelINS0_{rest}EEvNT_4ArgsE"
        found.append(CudaLaunch(symbol, _readable(rest), grid, threads, cluster, shared, arguments))
    return found


def _readable(mangled: str) -> str:
    """Return the names and numbers of a mangled type, such as ``Pointwise InBfloat16 From 0``."""
    found, at = [], 0
    while at < len(mangled):
        if length := re.match(r"\d+", mangled[at:]):
            at += len(length[0])
            found.append(mangled[at : at + int(length[0])])
            at += int(length[0])
        elif value := re.match(r"(?:E|Li)(\d+)E", mangled[at:]):
            found.append(value[1])
            at += len(value[0])
        else:
            at += 3 if mangled[at] == "S" else 1
    return " ".join(found)


@functools.cache
def cubins(capability: int) -> tuple[bytes, ...]:
    """Return the code in the compiled module that a GPU of a compute capability (90 for 9.0) runs.

    Raises:
        BackendUnavailableError: if the module has no such code.
    """
    if reason := native.cuda_reason():
        raise BackendUnavailableError(f"There is no CUDA code to count: {reason}")
    path = str(getattr(native.load(), "__file__", ""))
    found: dict[int, list[bytes]] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([tool("cuobjdump"), "-xelf", "all", path], check=True, capture_output=True, cwd=folder)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            number = re.search(r"sm_(\d+)", cubin.name)
            found.setdefault(int(number[1]) if number else 0, []).append(cubin.read_bytes())
    # Code for 8.0 runs on 8.9; no code runs on another major version.
    fitting = [n for n in found if n // 10 == capability // 10 and n <= capability]
    if not fitting:
        raise BackendUnavailableError(
            f"{path} has CUDA code for {sorted(found)}, none for compute capability {capability / 10}: build it again."
        )
    return tuple(found[max(fitting)])


def cubin_of(symbol: str, capability: int) -> bytes:
    """Return the cubin that holds a kernel."""
    for cubin in cubins(capability):
        if symbol.encode() + b"\0" in cubin:
            return cubin
    raise RuntimeError(
        f"The compiled module has no kernel {symbol} for compute capability {capability / 10}: build it again."
    )
