"""The one place where a kernel is started, and what a kernel is started with."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "TILE", "alignment", "register_limit", "channel_block", "column_tile", "exact_products", "launch", "little_shared_memory",
    "operands_in_shared_memory", "power_of_two", "products", "strides",
]  # fmt: skip

TILE = 128
"""Frames that one program handles, and over which one partial statistic is taken. Part of the contract between kernels:
the number of frames behind a partial follows from its position, so it is not stored."""

LITTLE = 99 * 1024
"""Bytes of shared memory that a program may use on GPUs of compute capability 8.6, 8.9 and 12.0."""

AMD_STAGES = 2
"""Stages of a loop of products at most: with more, operands do not fit into the 64 KiB of shared memory of most AMD GPUs."""

COMPILING = 1.0
"""Seconds from which a first launch has compiled its program, instead of reading it from Triton's cache."""

COLUMN_TILES = ((128, 32), (128, 0), (64, 0), (32, 0), (16, 0))
"""Columns of a product that one program computes, (main, tail), widest first. Blocks must be powers of two.
Four-byte values take 64 at most: with more, their products and the backward's epilogue do not fit the registers."""

ACCEPTED_WASTE = 0.04
"""Share of idle columns at which the wider tile, which reads its operand less often, is still taken."""


def power_of_two(n: int, least: int = 16) -> int:
    """The smallest power of two that is not below ``n`` and ``least``."""
    return max(least, 1 << (n - 1).bit_length())


def column_tile(columns: int, dtype: torch.dtype, tail: bool = True) -> tuple[int, int]:
    """Main and tail width for a product with so many columns: the widest that wastes little, else what wastes least.

    In two bytes, 160: one program of 128 + 32, nothing wasted. 440: 7 of 64, 1.8 %. 880: 7 of 128, 1.8 %. 1540: 10 of 128 + 32,
    3.9 %. 1760: 11 of 128 + 32, nothing. Padded to a power of two, 160 would waste 60 % and 1540 33 %.
    In four bytes, or without a tail, 160: 5 of 32, nothing wasted.
    """

    def waste(tile: tuple[int, int]) -> float:
        width = sum(tile)
        return -(-columns // width) * width / columns - 1

    tiles = [t for t in COLUMN_TILES if (tail or t[1] == 0) and (dtype.itemsize < 4 or sum(t) <= 64)]
    return next((tile for tile in tiles if waste(tile) <= ACCEPTED_WASTE), min(tiles, key=waste))


def channel_block(channels: int) -> int:
    """Channels of a memory-bound kernel's program: 32 consecutive ones fill whole sectors in every dtype."""
    return min(32, power_of_two(channels))


logger = logging.getLogger("metatasnet_fast")


class Recording(NamedTuple):
    """While launches are written down instead of started."""

    write: Callable[[Any, int, dict[str, Any]], object]
    """Gets the kernel, the number of programs and the arguments."""
    capability: int
    """Compute capability that launchers choose for, without its point; 0 for none in particular."""
    amd: str = ""
    """Architecture of AMD's that they choose for, such as gfx942, if any."""


recording: Recording | None = None
"""Set by ``recording.recorded``."""


def operands_in_shared_memory(device: torch.device) -> bool:
    """Return whether tensor cores take both operands from shared memory (``wgmma``): they then need no registers."""
    return _has_wgmma(device) if recording is None else recording.capability // 10 == 9


@functools.cache
def _has_wgmma(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9


def little_shared_memory(device: torch.device) -> bool:
    """Return whether a program may use no more than 99 KiB of shared memory, as on NVIDIA's consumer cards, or less."""
    if recording is not None:
        return recording.capability in (86, 89, 120) or recording.amd not in ("", "gfx950")
    return _shared_memory(device) <= LITTLE


@functools.cache
def _shared_memory(device: torch.device) -> int:
    if device.type != "cuda":
        return 2 * LITTLE
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0) or properties.shared_memory_per_block)


def on_amd() -> bool:
    """Return whether kernels are compiled for GPUs of AMD's."""
    return torch.version.hip is not None if recording is None else recording.amd != ""


@functools.cache
def _architecture(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]


def products(tf32: bool, device: torch.device) -> str:
    """Return how float32 operands are multiplied: plainly where TF32 is not asked for or does not exist.

    NVIDIA's GPUs have it, of AMD's gfx942 alone, and Triton refuses it for others. Operands of two bytes are not affected.
    """
    if tf32 and on_amd():
        tf32 = (_architecture(device) if recording is None else recording.amd) == "gfx942"
    return "tf32" if tf32 else "ieee"


def exact_products() -> str:
    """Float32 accuracy on the tensor cores where they can: three TF32 products, on NVIDIA's; else plain float32."""
    return "ieee" if on_amd() else "tf32x3"


def register_limit(registers: int, x: Tensor, products: bool = True) -> dict[str, int]:
    """The option that holds a thread to so many registers: with 128, two blocks of 8 warps share a multiprocessor.

    For kernels that need no more, but take more to load earlier. Where tensor cores take operands from registers, or are not
    used, products do need more, and values would go to local memory: there it is no option. AMD's compiler does not have it.
    """
    if products and not (x.dtype == torch.bfloat16 and operands_in_shared_memory(x.device)):
        return {}
    return {} if on_amd() else {"maxnreg": registers}


def alignment(*activations: Tensor | None) -> int:
    """Elements by which all strides of the activations are divisible: 8, which allows 16-byte loads, or 1.

    Triton itself only asks for 16, which 440 is not, and would compile again for some lengths.
    """
    found = [stride for x in activations if x is not None for stride in x.stride()[:3]]
    return 8 if all(stride % 8 == 0 for stride in found) else 1


def strides(align: int, **activations: Tensor | None) -> dict[str, int]:
    """Arguments ``x_n``, ``x_i``, ``x_t`` for an activation named ``x``: its strides in units of ``align`` elements."""
    return {
        f"{name}_{axis}": 0 if x is None else x.stride(dim) // align
        for name, x in activations.items()
        for dim, axis in enumerate("nit")
    }


def launch(kernel: Any, programs: int, device_of: Tensor, **arguments: Any) -> None:
    """Start ``programs`` programs of ``kernel`` on the device of a tensor; nothing to do is no error."""
    if programs == 0:
        return
    if on_amd() and arguments.get("num_stages", 0) > AMD_STAGES:
        arguments["num_stages"] = AMD_STAGES
    if recording is not None:
        recording.write(kernel, programs, arguments)
        return
    index = device_of.device.index
    if device_of.is_cuda and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            _start(kernel, programs, index, arguments)
    else:
        _start(kernel, programs, index, arguments)


_programs: dict[Any, tuple[tuple[tuple[str, bool, bool], ...], dict[Any, Any]]] = {}
"""For each kernel's function its parameters (name, whether a constant, whether ones and multiples of 16 are compiled for), and
the programs that Triton has compiled, by all that it compiles them for."""


def _start(kernel: Any, programs: int, index: int | None, arguments: dict[str, Any]) -> None:
    """Start a kernel on the current device, whose index is ``index``.

    Triton takes 40 microseconds to find out which program the arguments need. It depends on the constants, on dtypes, on
    pointers at multiples of 16 bytes, and on integers that are 1, a multiple of 16 or do not fit 32 bits: where all of that
    was seen before, the compiled program starts at once.
    """
    if not hasattr(kernel, "params"):  # in the interpreter, which compiles nothing
        kernel[(programs,)](**arguments)
        return
    known = _programs.get(kernel.fn)
    if known is None:
        parameters = tuple((p.name, p.is_constexpr, not p.do_not_specialize) for p in kernel.params)
        known = _programs[kernel.fn] = (parameters, {})
    values: list[Any] = []
    key: list[Any] = [index, *(arguments.get(option) for option in ("num_warps", "num_stages", "maxnreg"))]
    for name, constant, specialised in known[0]:
        value = arguments[name]
        values.append(value)
        if isinstance(value, Tensor):
            key += value.dtype, value.data_ptr() & 15 == 0
        elif constant or value is None:
            key.append(value)
        else:
            key.append((specialised and value == 1, specialised and value & 15 == 0, value >> 31 == 0))
    found = known[1].get(tuple(key))
    if found is None:
        began = time.perf_counter()
        known[1][tuple(key)] = kernel[(programs,)](**arguments)
        if time.perf_counter() - began > COMPILING:
            _say_that_kernels_are_compiled()
    else:
        found[programs, 1, 1](*values)


@functools.cache
def _say_that_kernels_are_compiled() -> None:
    """Warn once in a process."""
    logger.warning(
        "Triton compiles the kernels for this GPU, which takes a while; `metatasnet-fast precompile` does it beforehand"
    )
