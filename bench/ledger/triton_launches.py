"""Addresses and parameters of recorded launches of the backend ``triton``, as a device would see them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from torch import Tensor

from metatasnet_fast.kernels.recording import Launch, size, source

__all__ = ["buffers", "parameters"]


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
