"""Start kernels, and choose their tiles, strides and options. All kernels are started here."""

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
"""Number of frames that one program handles, and over which one partial statistic is taken. All kernels rely on this number:
how many frames a partial covers is not stored, but follows from the partial's position."""

LITTLE = 99 * 1024
"""Bytes of shared memory that a program may use on GPUs of compute capability 8.6, 8.9 and 12.0."""

AMD_STAGES = 2
"""Largest number of stages of a loop of products on AMD GPUs, most of which have only 64 KiB of shared memory for operands."""

COMPILING = 1.0
"""Seconds. A first launch that takes longer has compiled its program; a shorter one has read it from Triton's cache."""

COLUMN_TILES = ((128, 32), (128, 0), (64, 0), (32, 0), (16, 0))
"""Columns of a product that one program computes, (main, tail), widest first. Main and tail must be powers of two.
For four-byte values main + tail is at most 64: wider products and their backward do not fit the registers."""

ACCEPTED_WASTE = 0.04
"""Largest accepted ratio of idle to used columns. Idle columns can pay off: a wider tile reads the other operand less often."""


def power_of_two(n: int, least: int = 16) -> int:
    """Return the smallest power of two that is at least ``n`` and at least ``least``. ``least`` must be a power of two."""
    return max(least, 1 << (n - 1).bit_length())


def column_tile(columns: int, dtype: torch.dtype, tail: bool = True) -> tuple[int, int]:
    """Return main and tail width of a program's tile, for a product with ``columns`` columns.

    This is the widest tile whose ratio of idle to used columns is at most ACCEPTED_WASTE. If every tile has a larger ratio, it
    is the tile with the smallest one. For two-byte dtypes, 160 columns take one program of 128 + 32 columns, of which none is
    idle; 440 take 7 programs of 64 (1.8 % idle); 880 take 7 of 128 (1.8 %); 1540 take 10 of 128 + 32 (3.9 %); 1760 take 11 of
    128 + 32 (none). Padded to a power of two, 160 columns would waste 60 %, and 1540 columns 33 %. For four-byte dtypes, or
    with ``tail=False``, 160 columns take 5 programs of 32, and no column is idle.
    """

    def waste(tile: tuple[int, int]) -> float:
        width = sum(tile)
        return -(-columns // width) * width / columns - 1

    tiles = [t for t in COLUMN_TILES if (tail or t[1] == 0) and (dtype.itemsize < 4 or sum(t) <= 64)]
    return next((tile for tile in tiles if waste(tile) <= ACCEPTED_WASTE), min(tiles, key=waste))


def channel_block(channels: int) -> int:
    """Return how many channels a program of a memory-bound kernel takes: at most 32, which fill whole sectors in any dtype."""
    return min(32, power_of_two(channels))


logger = logging.getLogger("metatasnet_fast")


class Recording(NamedTuple):
    """The state while launches are recorded instead of started."""

    write: Callable[[Any, int, dict[str, Any]], object]
    """A function; each launch calls it with the kernel, the number of programs and the arguments."""
    capability: int
    """Compute capability (90 for 9.0) for which launchers choose tiles and options; 0 for no particular GPU."""
    amd: str = ""
    """AMD architecture, such as gfx942, for which launchers choose tiles and options; empty for other GPUs."""


recording: Recording | None = None
"""The current recording, set by ``recording.recorded``; None while kernels are started."""


def operands_in_shared_memory(device: torch.device) -> bool:
    """Return whether tensor cores read both operands from shared memory (``wgmma``), so that operands need no registers."""
    return _has_wgmma(device) if recording is None else recording.capability // 10 == 9


@functools.cache
def _has_wgmma(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9


def little_shared_memory(device: torch.device) -> bool:
    """Return whether a program may use at most 99 KiB of shared memory, as on NVIDIA's consumer GPUs."""
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
    """Return whether kernels are compiled for AMD GPUs."""
    return torch.version.hip is not None if recording is None else recording.amd != ""


@functools.cache
def _architecture(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]


def products(tf32: bool, device: torch.device) -> str:
    """Return Triton's ``input_precision`` for float32 operands: ``tf32`` if it is wanted and supported, else ``ieee``.

    NVIDIA GPUs support TF32. Of AMD's architectures only gfx942 supports it; for the others Triton raises an error. The value
    has no effect on two-byte operands.
    """
    if tf32 and on_amd():
        tf32 = (_architecture(device) if recording is None else recording.amd) == "gfx942"
    return "tf32" if tf32 else "ieee"


def exact_products() -> str:
    """Return Triton's ``input_precision`` for float32 accuracy: three TF32 products on NVIDIA GPUs, plain float32 on AMD."""
    return "ieee" if on_amd() else "tf32x3"


def register_limit(registers: int, x: Tensor, products: bool = True) -> dict[str, int]:
    """Return the launch option that limits a thread to ``registers``: with 128, two blocks of 8 warps share a multiprocessor.

    The limit suits kernels that need no more registers, but would use more to load values earlier. If tensor cores take
    operands from registers, or are not used, products need more registers and would spill to local memory: then return no
    option. Return no option on AMD GPUs either: their compiler does not know this one.
    """
    if products and not (x.dtype == torch.bfloat16 and operands_in_shared_memory(x.device)):
        return {}
    return {} if on_amd() else {"maxnreg": registers}


def alignment(*activations: Tensor | None) -> int:
    """Return 8, which allows 16-byte loads, if all strides of the activations are divisible by 8 elements; else 1.

    Triton itself only checks whether a stride is divisible by 16. A stride of 440 is not divisible by 16, and for some lengths
    Triton would compile a kernel again.
    """
    found = [stride for x in activations if x is not None for stride in x.stride()[:3]]
    return 8 if all(stride % 8 == 0 for stride in found) else 1


def strides(align: int, **activations: Tensor | None) -> dict[str, int]:
    """Return three kernel arguments for each activation: for ``x`` the strides ``x_n``, ``x_i``, ``x_t``.

    Strides are in units of ``align`` elements. The strides of an activation that is None are 0.
    """
    return {
        f"{name}_{axis}": 0 if x is None else x.stride(dim) // align
        for name, x in activations.items()
        for dim, axis in enumerate("nit")
    }


def launch(kernel: Any, programs: int, device_of: Tensor, **arguments: Any) -> None:
    """Start ``programs`` programs of ``kernel`` on the device of ``device_of``. If ``programs`` is 0, do nothing."""
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
"""For each kernel's function: its parameters, and its compiled programs. A parameter is a name, whether it is a constant, and
whether Triton specialises it for 1 and for multiples of 16. The key of a program is all that the program is specialised for."""


def _start(kernel: Any, programs: int, index: int | None, arguments: dict[str, Any]) -> None:
    """Start a kernel on the current device, whose index is ``index``.

    Triton takes 40 microseconds to find the program for the arguments. The program depends on the constants, the dtypes,
    whether pointers are multiples of 16 bytes, and whether integers are 1, a multiple of 16 or too large for 32 bits. If
    this combination has occurred before, start its compiled program directly.
    """
    if not hasattr(kernel, "params"):  # Triton's interpreter does not compile
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
    """Log a warning at the first call in a process."""
    logger.warning(
        "Triton compiles the kernels for this GPU, which takes a while; `metatasnet-fast precompile` does it beforehand"
    )
