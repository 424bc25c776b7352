"""A fingerprint of parameter values, to notice that they changed.

Version counters are not enough: writing through ``.data`` bumps none, and that is how the authors' optimiser writes. So the
contents are read: by CRC-32 on a CPU, by a hash of the same strength on other devices, where the values stay.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["fingerprint", "hash_on_device"]

_MULTIPLIER = -0x61C8864680B583EB
"""2^64 / golden ratio, as a signed number."""


def fingerprint(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    """A checksum of the bits of all tensors, with their sizes, dtypes and devices.

    Changes that are not made on purpose to deceive go unnoticed with a probability of 2^-32; a change of one value, or of any
    32 consecutive bits, never does.
    """
    signature: list[object] = []
    checksum = 0
    elsewhere: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        data = tensor.detach().contiguous().reshape(-1)
        signature.append((data.numel(), data.dtype, data.device))
        octets = data.view(torch.uint8)
        if data.device.type == "cpu":
            checksum = zlib.crc32(octets.numpy().data, checksum)
        else:
            elsewhere.setdefault(data.device, []).append(octets)
    hashes = [hash_on_device(torch.cat(parts)) for parts in elsewhere.values()]
    return (*signature, checksum, *(int(value) for value in hashes))


def hash_on_device(octets: Tensor) -> Tensor:
    """A 64-bit hash of bytes (n,) on any device: words are mixed with their positions, mixed again and added up.

    The mixing is that of Steele, Lea and Flood 2014 (SplitMix64), which is one-to-one: one changed word changes the sum.
    """
    words = torch.nn.functional.pad(octets, (0, -octets.numel() % 8)).view(torch.int64)
    positions = torch.arange(1, words.numel() + 1, device=words.device)
    return _mix(words + _mix(positions * _MULTIPLIER)).sum()


def _mix(x: Tensor) -> Tensor:
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31)
