"""Results of the instructions that compute indices and predicates.

Every function takes and returns arrays with one value for each thread: ``uint32`` for registers, ``bool`` for
predicates. They do what the instruction sets from sm_80 to sm_90 do, as far as compilers use them for indices. Names
of opcodes: CUDA binary utilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["COMPARISONS", "add3", "funnel", "lea", "lookup3", "multiply_add", "permute", "signed", "to64"]

Words = npt.NDArray[np.uint32]
Bits = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
    "LTU": np.less,
    "LEU": np.less_equal,
    "GTU": np.greater,
    "GEU": np.greater_equal,
    "EQU": np.equal,
    "NEU": np.not_equal,
}


def signed(x: Words) -> npt.NDArray[np.int32]:
    return x.view(np.int32) if x.flags.c_contiguous else x.astype(np.int32)


def to64(low: Words, high: Words) -> npt.NDArray[np.uint64]:
    found: npt.NDArray[np.uint64] = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return found


def low32(x: Array) -> Words:
    found: Words = (x & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return found


def high32(x: Array) -> Words:
    found: Words = (x >> np.uint64(32)).astype(np.uint32)
    return found


def add3(terms: list[tuple[Words, bool]], carries: list[Bits]) -> tuple[Words, Array]:
    """The sum of three words, some subtracted, and what is carried out of it (0 to 3)."""
    total: Array = np.zeros(1, np.uint64)
    for value, minus in terms:
        wide = value.astype(np.uint64)
        total = total + (np.uint64(1 << 32) - wide if minus else wide)
    for carry in carries:
        total = total + carry.astype(np.uint64)
    return low32(total), total >> np.uint64(32)


def multiply_add(a: Words, b: Words, c: Array, unsigned: bool) -> npt.NDArray[np.uint64]:
    """``a b + c`` in 64 bits; ``c`` has 64 bits."""
    if unsigned:
        product = a.astype(np.uint64) * b.astype(np.uint64)
    else:
        product = (a.astype(np.int32).astype(np.int64) * b.astype(np.int32).astype(np.int64)).astype(np.uint64)
    return product + c


def funnel(low: Words, shift: Words, high: Words, modifiers: frozenset[str]) -> Words:
    """SHF: 64 bits ``high:low`` shifted by ``shift``, one half of the result."""
    wide = to64(low, high)
    amount = np.minimum(shift, 63 if modifiers & {"U64", "S64"} else 32).astype(np.uint64)
    if "W" in modifiers:
        amount = (shift & (63 if modifiers & {"U64", "S64"} else 31)).astype(np.uint64)
    if "L" in modifiers:
        result = wide << np.minimum(amount, np.uint64(63))
    elif modifiers & {"S32", "S64"}:
        result = (wide.astype(np.int64) >> np.minimum(amount, np.uint64(63)).astype(np.int64)).astype(np.uint64)
    else:
        result = wide >> np.minimum(amount, np.uint64(63))
    return high32(result) if "HI" in modifiers else low32(result)


def lea(
    a: Words, b: Words, high: Words | None, shift: int, modifiers: frozenset[str], carry: Bits | None
) -> tuple[Words, Array]:
    """LEA: ``(a << shift) + b`` or, HI, the upper half of ``a``'s 64 bits so shifted, plus ``b``; and the carry."""
    if "HI" in modifiers:
        if "SX32" in modifiers:
            wide = a.astype(np.int32).astype(np.int64).astype(np.uint64)
        else:
            wide = to64(a, high if high is not None else np.zeros(1, np.uint32))
        a = high32(wide << np.uint64(shift)) if shift else high32(wide)
    else:
        a = low32(a.astype(np.uint64) << np.uint64(shift))
    return add3([(a, False), (b, False)], [] if carry is None else [carry])


def lookup3(a: Array, b: Array, c: Array, table: int) -> Array:
    """LOP3, PLOP3: bit by bit, entry ``4 a + 2 b + c`` of a table of eight bits."""
    ones = np.uint32(0xFFFFFFFF) if a.dtype == np.uint32 else np.True_
    result = np.zeros(1, a.dtype)
    for k in range(8):
        if table >> k & 1:
            x, y, z = (v if k >> at & 1 else v ^ ones for v, at in ((a, 2), (b, 1), (c, 0)))
            result = result | (x & y & z)
    return result


def permute(a: Words, selector: Words, b: Words) -> Words:
    """PRMT: each byte of the result is one of eight, or its sign."""
    wide = to64(a, b)
    result = np.zeros(1, np.uint64)
    for k in range(4):
        which = (selector >> np.uint32(4 * k)).astype(np.uint64)
        byte = wide >> (np.uint64(8) * (which & np.uint64(7))) & np.uint64(255)
        sign = np.where(byte >> np.uint64(7) == 1, np.uint64(255), np.uint64(0))
        result = result | np.where(which >> np.uint64(3) & np.uint64(1) == 1, sign, byte) << np.uint64(8 * k)
    return low32(result)
