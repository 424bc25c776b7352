"""Compile kernels for a GPU that is not there, with exactly the arguments their launchers would pass."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from metatasnet_fast import kernels

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes that one program may use (CUDA C++ Programming Guide, technical specifications by compute capability)."""
OPTIONS = ("num_warps", "num_stages")
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


@dataclass(frozen=True)
class Usage:
    """What one program needs: registers a thread, bytes of local memory a thread (spills), bytes of shared memory."""

    registers: int
    spills: int
    shared: int


def record_launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Make every launcher write down its launches instead of starting them."""
    found: list[Launch] = []

    def launch(kernel: Any, programs: int, device_of: Tensor, **arguments: Any) -> None:
        found.append(Launch(kernel, arguments, programs))

    for found_module in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"{kernels.__name__}.{found_module.name}")
        if found_module.name != "launch" and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", launch)
    return found


def distinct(launches: list[Launch]) -> list[Launch]:
    """Those that are not compiled to the same program."""
    found: dict[tuple[str, str], Launch] = {}
    for launch in launches:
        what, options = source(launch)
        found.setdefault((what.hash(), str(options)), launch)
    return list(found.values())


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


def compile_for(launch: Launch, capability: int) -> Usage:
    """Compile down to the device's own code and read what it needs from that code."""
    what, options = source(launch)
    compiled = triton.compile(what, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        text = subprocess.run([tool, "-res-usage", binary], check=True, capture_output=True, text=True).stdout
    found = re.search(rf"Function {compiled.metadata.name}:\s*REG:(\d+) STACK:(\d+)", text)
    assert found, f"cuobjdump does not say what {compiled.metadata.name} needs:\n{text}"
    local = int(found[2])
    return Usage(int(found[1]), local, compiled.metadata.shared)
