"""A fingerprint of parameter values, to notice that they changed.

Version counters are not enough: writing through ``.data`` bumps none, and that is how the authors' optimiser writes. So the
contents are read, at memory bandwidth, as 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["fingerprint"]

_ROW_BYTES = 2048
_LARGE = 1 << 16
"""Bytes from which a tensor is read in place; the many small ones are copied together first."""

_ODD = -0x61C8864680B583EB
"""2^64 / golden ratio, as a signed number: its multiples are far apart modulo 2^64."""


def fingerprint(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    """Position-weighted 64-bit sums over the bits of all tensors, with their sizes, dtypes and devices.

    The bits are laid out in rows of 256 words; every row sum and every column sum enters with a weight of its own, so a single
    change is always noticed, and so is an exchange of values, rows or tensors.
    """
    signature: list[object] = []
    small: dict[torch.device, list[Tensor]] = {}
    sums: list[Tensor] = []
    for tensor in tensors:
        data = tensor.detach().contiguous().reshape(-1)
        signature.append((data.numel(), data.dtype, data.device))
        octets = data.view(torch.uint8)
        if octets.numel() >= _LARGE and octets.data_ptr() % 8 == 0 and octets.storage_offset() % 8 == 0:
            whole = octets.numel() // _ROW_BYTES * _ROW_BYTES
            sums.append(_weighted(octets[:whole]))
            octets = octets[whole:]
        small.setdefault(data.device, []).append(octets)
    for parts in small.values():
        octets = torch.cat(parts)
        sums.append(_weighted(torch.nn.functional.pad(octets, (0, -octets.numel() % _ROW_BYTES))))
    return (*signature, *(tuple(value.tolist()) for value in sums))


def _weighted(octets: Tensor) -> Tensor:
    table = octets.view(torch.int64).view(-1, _ROW_BYTES // 8)
    return torch.stack([_dot(table.sum(1)), _dot(table.sum(0))])


def _dot(sums: Tensor) -> Tensor:
    # An odd weight is a unit modulo 2^64: no single difference is lost.
    weights = (torch.arange(1, sums.numel() + 1, device=sums.device) * _ODD) | 1
    return (sums * weights).sum()
