"""Launches of the backend ``cuda``, written down by its emulator, and the code that nvcc made of them."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from metatasnet_fast import native
from metatasnet_fast.backends.cuda import CudaBackend
from metatasnet_fast.errors import BackendUnavailableError

from .sass import tool

__all__ = ["Launch", "RecordingBackend", "RecordingWgmmaBackend", "cubin_of", "recorded"]

_NAMESPACE = "N10metatasnet8emulated"


@dataclass(frozen=True)
class Launch:
    """One launch: ``arguments`` as the device would get them but for tensor maps, which are the emulator's; ``shared`` bytes
    asked for beside what is static; ``cluster`` blocks along x that are a cluster."""

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
        """Addresses among the arguments, in order; no small numbers beside padding that holds a part of an old address."""
        found = np.unique(self._words[_addresses(self._words)])
        real: npt.NDArray[np.bool_] = (found % np.uint64(1 << 32) >= 1 << 16) & (found % np.uint64(4) == 0)
        return found[real]

    @property
    def placeless(self) -> bytes:
        """The arguments with the lower part of addresses alone: the same wherever memory was allocated."""
        words = self._words.copy()
        words[_addresses(words)] &= np.uint64(31)
        return bytes(words.tobytes()) + self.arguments[len(words) * 8 :]


def _addresses(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (words >> np.uint64(40) > 0) & (words >> np.uint64(47) == 0)
    return found


class RecordingBackend(CudaBackend):
    """The backend's host code on tensors of the CPU that are never touched."""

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
    """The same with the products of frames by ``wgmma``."""

    products: ClassVar[str] = "wgmma"


def recorded(job: Callable[[], Any]) -> list[Launch]:
    """Launches, and clearings of memory, while ``job`` runs."""
    module = native.load()
    assert module is not None
    found = []
    for kernel, grid, threads, _, cluster, shared, arguments in module.record_emulated_launches(job):
        if kernel == "memset":
            found.append(Launch("", "memset", grid, 0, 1, shared, b""))
            continue
        if not kernel.startswith(_NAMESPACE):
            raise RuntimeError(f"The kernel {kernel} is not in the namespace of the emulated ones.")
        rest = kernel[len(_NAMESPACE) :]
        symbol = f"_ZN10metatasnet4cuda6kernelINS0_{rest}EEvNT_4ArgsE"
        found.append(Launch(symbol, _readable(rest), grid, threads, cluster, shared, arguments))
    return found


def _readable(mangled: str) -> str:
    """Names and numbers of a mangled type: ``Pointwise InBfloat16 From 0``."""
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
    """The code in the compiled module that a GPU of this compute capability (without its point) takes.

    Raises:
        BackendUnavailableError: if there is none.
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
    # Code for 8.0 runs on 8.9; none runs on another major version.
    fitting = [n for n in found if n // 10 == capability // 10 and n <= capability]
    if not fitting:
        raise BackendUnavailableError(
            f"{path} has CUDA code for {sorted(found)}, none for compute capability {capability / 10}: build it again."
        )
    return tuple(found[max(fitting)])


def cubin_of(symbol: str, capability: int) -> bytes:
    """The cubin that holds a kernel."""
    for cubin in cubins(capability):
        if symbol.encode() + b"\0" in cubin:
            return cubin
    raise RuntimeError(
        f"The compiled module has no kernel {symbol} for compute capability {capability / 10}: build it again."
    )
