"""Compute what instructions write to registers and predicates, for all threads at once.

Registers are ``uint32`` and predicates ``bool``, with one value for each thread or one for all. Instructions do what
the instruction sets from sm_80 to sm_90 do, as far as compilers use them for indices. NVIDIA's "CUDA Binary Utilities"
explains the names of opcodes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .sass import Instruction, Operand, following

__all__ = ["RESULTS", "WARP", "Array", "Sources", "Threads", "Value", "destinations", "either", "flops_of", "to64"]

WARP = 32
ALL = 0xFFFFFFFF

Array = npt.NDArray[Any]

Value = tuple[Array, "Array | None"]
"""One number for each thread, and a mask of the threads for which the number is unknown. The mask is None if all
numbers are known."""

Results = list["Array | Value | None"]
"""The value of each destination of an instruction. An array without a mask is unknown for the threads for which a
source is unknown; None is unknown for all threads."""

UNKNOWN: Value = (np.zeros(1, np.uint32), np.ones(1, np.bool_))


def to64(low: Array, high: Array) -> Array:
    return low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)


def low32(x: Array) -> Array:
    return (x & np.uint64(ALL)).astype(np.uint32)


def high32(x: Array) -> Array:
    return (x >> np.uint64(32)).astype(np.uint32)


def either(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a | b


def _add(terms: list[Array], carries: list[Array], flags: int) -> Results:
    """Return the lower 32 bits of a sum, and ``flags`` predicates: number k is true if the carry (0 to 3) is above
    k."""
    total = sum((term.astype(np.uint64) for term in [*terms, *carries]), np.zeros(1, np.uint64))
    return [low32(total), *(total >> np.uint64(32) > k for k in range(flags))]


def _look_up(a: Array, b: Array, c: Array, table: int) -> Array:
    """Return, bit by bit, entry ``4 a + 2 b + c`` of a table of eight bits."""
    ones = np.uint32(ALL) if a.dtype == np.uint32 else np.True_
    result = np.zeros(1, a.dtype)
    for k in range(8):
        if table >> k & 1:
            x, y, z = (v if k >> at & 1 else v ^ ones for v, at in ((a, 2), (b, 1), (c, 0)))
            result = result | (x & y & z)
    return result


class Threads:
    """Registers and predicates of all threads, by name, and the banks of constants.

    Attributes:
        unknown: by the name of a register or predicate, a mask of the threads for which its value is unknown.
        banks: bytes of each bank, and a mask of the known bytes.
        special: values of special registers.
        shared: words of each block's shared memory; ``shared_known``: a mask of the known words.
    """

    def __init__(self, block_of: Array, banks: Mapping[int, tuple[Array, Array]], special: Mapping[str, Array]) -> None:
        self.block_of, self.banks, self.special = block_of, banks, special
        self.count = len(block_of)
        self.registers: dict[str, Array] = {}
        self.unknown: dict[str, Array] = {}
        self.shared = np.zeros((int(block_of[-1]) + 1, 1 << 16), np.uint32)
        self.shared_known = np.zeros(self.shared.shape, np.bool_)

    def spread(self, value: Array) -> Array:
        """Return ``value``, which may be one for all threads, as an array of one value per thread."""
        return np.broadcast_to(value, (self.count,))

    def put(self, name: str, value: Value, active: Array | None, doubt: Array | None) -> None:
        """Write a register or predicate for the ``active`` threads (None: all).

        ``doubt`` is a mask of the threads for which it is unknown whether they write.
        """
        numbers, unknown = value
        if doubt is not None:
            unknown = either(unknown, doubt)
            active = either(active, doubt)
        if active is not None:
            old, before = self.registers.get(name, np.zeros(1, numbers.dtype)), self.unknown.get(name)
            numbers = np.where(active, numbers, old)
            if unknown is not None or before is not None:
                unknown = np.where(active, as_mask(unknown), as_mask(before))
                unknown = unknown if unknown.any() else None
        self.registers[name] = self.spread(numbers)
        if unknown is None:
            self.unknown.pop(name, None)
        else:
            self.unknown[name] = self.spread(unknown)

    def register(self, name: str | None) -> Value:
        if name is None:
            return np.zeros(1, np.uint32), None
        return (self.registers[name], self.unknown.get(name)) if name in self.registers else UNKNOWN

    def flag(self, o: Operand) -> Value:
        """Return the value of a predicate operand, which may be negated."""
        if o.name is None:
            return self.spread(np.bool_(not o.negated)), None
        if o.name not in self.registers:
            return np.zeros(self.count, np.bool_), np.ones(self.count, np.bool_)
        found = self.registers[o.name]
        return (~found if o.negated else found), self.unknown.get(o.name)

    def word(self, o: Operand, upper: bool = False, signs: bool = True) -> Value:
        """Return an operand as a word of 32 bits; with ``upper``, the upper word of a pair of registers or of a number.
        Without ``signs``, a minus is ignored."""
        lost: Array | None = None
        if o.kind == "number":
            number = int(np.float32(o.value).view(np.uint32)) if isinstance(o.value, float) else int(o.value)
            value: Array = np.full(1, number >> (32 if upper and isinstance(o.value, int) else 0) & ALL, np.uint32)
        elif o.kind == "constant":
            value, lost = self._constant(o, upper)
        elif o.kind == "register":
            value, lost = self.register(following(o.name, 1) if upper and o.name is not None else o.name)
        else:
            return UNKNOWN
        if o.inverted:
            value = ~value
        if o.absolute:
            value = np.abs(value.view(np.int32)).view(np.uint32) if value.flags.c_contiguous else value
        return (np.uint32(0) - value if o.negated and signs else value), lost

    def wide(self, o: Operand) -> Value:
        """Return a pair of registers as 64 bits; a minus is ignored."""
        (low, lost), (high, lost_too) = self.word(o, signs=False), self.word(o, True, signs=False)
        return to64(low, high), either(lost, lost_too)

    def _constant(self, o: Operand, upper: bool) -> Value:
        if o.bank not in self.banks:
            return UNKNOWN
        bank, known = self.banks[o.bank]
        at: Array = np.full(1, int(o.value) + (4 if upper else 0))
        lost = None
        for name, _ in o.parts:
            index, lost = self.register(name)
            at = at + index.astype(np.int64)
        at = np.clip(at, 0, len(bank) - 4)
        value = sum((bank[at + k].astype(np.uint32) << np.uint32(8 * k) for k in range(4)), np.zeros(1, np.uint32))
        return value, (lost if known[at].all() else either(lost, ~known[at]))

    def address(self, o: Operand) -> Value:
        total: Array = np.full(1, int(o.value) & 0xFFFFFFFFFFFFFFFF, np.uint64)
        lost: Array | None = None
        for name, pair in o.parts:
            value, lost_here = self.register(name)
            value = value.astype(np.uint64)
            if pair:
                high, lost_too = self.register(following(name, 1))
                value, lost_here = to64(value, high), either(lost_here, lost_too)
            total, lost = total + value, either(lost, lost_here)
        return total, lost

    def places_in_shared(self, i: Instruction) -> tuple[list[Array], Array | None]:
        """Return the indices of the shared-memory words that an instruction moves, and a mask of the unknown ones."""
        address, lost = self.address(next(o for o in i.operands if o.kind == "address"))
        first = self.spread(((address & np.uint64(0x3FFFF)) >> np.uint64(2)).astype(np.int64))
        return [first + k for k in range(max(1, i.width // 4))], lost

    def local(self, i: Instruction) -> list[str]:
        """Return the names of the words of local memory that an instruction moves; they are the same for all
        threads."""
        address, _ = self.address(next(o for o in i.operands if o.kind == "address"))
        return [f"local {int(np.ravel(address)[0]) + 4 * k}" for k in range(max(1, i.width // 4))]


def as_mask(unknown: Array | None) -> Array:
    """Return a mask of unknown values as an array, also for None (all are known)."""
    return np.zeros(1, np.bool_) if unknown is None else unknown


class Sources:
    """The operands that an instruction reads, by number from 0; in the code they follow the results.

    Attributes:
        mask: the threads that execute the instruction.
        lost: a mask of the threads for which an operand read so far is unknown.
    """

    def __init__(self, threads: Threads, i: Instruction, mask: Array) -> None:
        self.threads, self.instruction, self.mask = threads, i, mask
        self.operands, self.words = i.operands[i.results :], i.opcode.split(".")[1:]
        self.lost: Array | None = None

    def note(self, value: Value) -> Array:
        self.lost = either(self.lost, value[1])
        return value[0]

    def word(self, k: int) -> Array:
        return self.note(self.threads.word(self.operands[k]))

    def flag(self, k: int) -> Array:
        return self.note(self.threads.flag(self.operands[k]))

    def wide(self, k: int) -> Array:
        value = self.note(self.threads.wide(self.operands[k]))
        return np.uint64(0) - value if self.operands[k].negated else value

    def double(self, k: int) -> Array:
        """Return a pair of registers, or a number, as float64."""
        o = self.operands[k]
        if o.kind == "number":
            return np.full(1, float(o.value))
        value = self.note(self.threads.wide(o)).view(np.float64)
        value = np.abs(value) if o.absolute else value
        return -value if o.negated else value


# -- integers


def _constant_of(s: Sources) -> Results:
    low = s.threads.word(s.operands[0])
    if "U8" in s.words:
        return [(low[0] & np.uint32(255), low[1])]
    return [low, *([s.threads.word(s.operands[0], True)] if "64" in s.words else [])]


def _special(s: Sources) -> Results:
    value = s.threads.special.get(s.operands[0].text)
    return [value] * len(destinations(s.instruction))


def _first_thread(s: Sources) -> Results:
    """Return, in every warp, the value of the first active thread."""
    first = s.mask.reshape(-1, WARP).argmax(1)[:, None]

    def of(value: Array) -> Array:
        return np.repeat(np.take_along_axis(s.threads.spread(value).reshape(-1, WARP), first, 1)[:, 0], WARP)

    value, lost = s.threads.word(s.operands[-1])
    return [(of(value), None if lost is None else of(lost))]


def _add3(s: Sources) -> Results:
    terms, carries = [], []
    for k, o in enumerate(s.operands):
        if o.kind == "predicate":
            carries.append(s.flag(k))
        else:
            value = s.note(s.threads.word(o, signs=False)).astype(np.uint64)
            terms.append(np.uint64(1 << 32) - value if o.negated else value)
    return _add(terms, carries if "X" in s.words else [], s.instruction.results - 1)


def _multiply_add(s: Sources) -> Results:
    wide = "WIDE" in s.words
    x, y = s.word(0), s.word(1)
    z = s.wide(2) if wide or "HI" in s.words else s.word(2).astype(np.uint64)
    if "X" in s.words and len(s.operands) > 3:
        z = z + s.flag(3).astype(np.uint64)
    if "U32" not in s.words:
        x, y = x.astype(np.int32).astype(np.int64), y.astype(np.int32).astype(np.int64)
    result = x.astype(np.uint64) * y.astype(np.uint64) + z
    flags = [result < z for _, flag in destinations(s.instruction) if flag]
    if wide:
        return [low32(result), *flags, high32(result)]
    return [high32(result) if "HI" in s.words else low32(result), *flags]


def _shifted_add(s: Sources) -> Results:
    """Return ``(a << shift) + b``; with HI, the upper half of the 64 bits of ``a << shift``, plus ``b``."""
    *places, last = (k for k, o in enumerate(s.operands) if o.kind != "predicate")
    a, b, *high = (s.word(k) for k in places)
    shift = np.uint64(s.operands[last].value)
    if "SX32" in s.words:
        wide = a.astype(np.int32).astype(np.int64).astype(np.uint64)
    else:
        wide = to64(a, high[0] if high else np.zeros(1, np.uint32))
    carries = [k for k, o in enumerate(s.operands) if o.kind == "predicate"][:1] if "X" in s.words else []
    a = (high32 if "HI" in s.words else low32)(wide << shift)
    return _add([a, b], [s.flag(k) for k in carries], s.instruction.results - 1)


def _shift(s: Sources) -> Results:
    """Shift the 64 bits ``high:low``; return their lower half, with HI their upper half."""
    low, shift, high = (s.word(k) for k in range(3))
    wide, long = to64(low, high), not {"U64", "S64"}.isdisjoint(s.words)
    shift = shift & np.uint32(63 if long else 31) if "W" in s.words else np.minimum(shift, 63 if long else 32)
    amount = np.minimum(shift.astype(np.uint64), np.uint64(63))
    if "L" in s.words:
        wide = wide << amount
    elif {"S32", "S64"}.isdisjoint(s.words):
        wide = wide >> amount
    else:
        wide = (wide.astype(np.int64) >> amount.astype(np.int64)).astype(np.uint64)
    return [high32(wide) if "HI" in s.words else low32(wide)]


def _logic(s: Sources) -> Results:
    result = _look_up(s.word(0), s.word(1), s.word(2), int(s.operands[3].value))
    return [result != 0, result] if s.instruction.results == 2 else [result]


def _predicate_logic(s: Sources) -> Results:
    a, b, c = (s.flag(k) for k in range(3))
    return [_look_up(a, b, c, int(table.value)) for table in s.operands[3:5]]


COMPARISONS: Mapping[str, Callable[[Array, Array], Array]] = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}


def _compare(s: Sources) -> Results:
    a, b = s.word(0), s.word(1)
    if "U32" not in s.words:
        a, b = a.astype(np.int32), b.astype(np.int32)
    result = COMPARISONS[s.words[0]](a, b)
    if "EX" in s.words:
        below, equal = s.flag(3), a == b
        result = result | below if s.words[0] == "NE" else (result & ~equal) | (equal & below)
    return _combined(s, result)


def _compare_doubles(s: Sources) -> Results:
    name = s.words[0].removesuffix("U")
    return _combined(s, COMPARISONS[name](s.double(0), s.double(1))) if name in COMPARISONS else [None, None]


def _combined(s: Sources, result: Array) -> Results:
    """Return a comparison and its opposite, each combined with the predicate operand.

    Where the comparison or the operand alone decides a result, the result is known even if the other one is unknown.
    """
    lost = s.lost
    other, lost_other = s.threads.flag(s.operands[2])
    unknown = either(lost, lost_other)

    def combine(own: Array) -> Value:
        if "XOR" in s.words:
            return own ^ other, unknown
        decides = (lambda x: x) if "OR" in s.words else np.logical_not
        settled = (decides(own) & ~as_mask(lost)) | (decides(other) & ~as_mask(lost_other))
        return own | other if "OR" in s.words else own & other, None if unknown is None else unknown & ~settled

    return [combine(result), combine(~result)]


def _select(s: Sources) -> Results:
    (a, lost_a), (b, lost_b) = s.threads.word(s.operands[0]), s.threads.word(s.operands[1])
    choice = s.flag(2)
    if lost_a is not None or lost_b is not None:
        s.note((choice, np.where(choice, as_mask(lost_a), as_mask(lost_b))))
    return [np.where(choice, a, b)]


def _lesser(s: Sources, a: Array, b: Array, smaller: int) -> Results:
    """Return the smaller of ``a`` and ``b`` where predicate operand ``smaller`` holds, else the larger."""
    below = a < b if "U32" in s.words else a.astype(np.int32) < b.astype(np.int32)
    return [np.where(below == s.flag(smaller), a, b)]


def _permute(s: Sources) -> Results:
    """Select each byte of the result from eight bytes, or from their signs.

    The third operand may be a register that was never written. It then counts as known, because no instruction reads
    the bytes that come from it.
    """
    last = s.threads.word(s.operands[2])
    b = s.note(last) if s.operands[2].name in s.threads.registers else last[0]
    wide, selector = to64(s.word(0), b), s.word(1)
    result = np.zeros(1, np.uint64)
    for k in range(4):
        which = (selector >> np.uint32(4 * k)).astype(np.uint64)
        byte = wide >> (np.uint64(8) * (which & np.uint64(7))) & np.uint64(255)
        sign = np.where(byte >> np.uint64(7) == 1, np.uint64(255), np.uint64(0))
        result = result | np.where(which >> np.uint64(3) & np.uint64(1) == 1, sign, byte) << np.uint64(8 * k)
    return [low32(result)]


def _predicates_as_bits(s: Sources) -> Results:
    value = np.zeros(1, np.uint32)
    for k in range(7):
        if int(s.operands[-1].value) >> k & 1:
            bit = s.note(s.threads.flag(Operand("predicate", f"P{k}")))
            value = value | bit.astype(np.uint32) << np.uint32(k)
    return [value]


def _sign_extend(s: Sources) -> Results:
    bits = np.uint32(32 - int(s.operands[1].value))
    shifted = (s.word(0) << bits).astype(np.uint32)
    if "U32" in s.words:
        return [shifted >> bits]
    return [(shifted.astype(np.int32) >> bits.astype(np.int32)).astype(np.uint32)]


def _count_bits(s: Sources) -> Results:
    value = s.word(0)
    return [sum((value >> np.uint32(k) & np.uint32(1) for k in range(32)), np.zeros(1, np.uint32))]


# -- among the threads of a warp


def _vote(s: Sources) -> Results:
    value, lost = s.threads.flag(s.operands[-1])
    if lost is not None and (lost & s.mask).any():
        return [None] * len(destinations(s.instruction))
    warps = (value & s.mask).reshape(-1, WARP)
    flag = (value | ~s.mask).reshape(-1, WARP).all(1) if "ALL" in s.words else warps.any(1)
    ballot = (warps.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
    return [np.repeat(flag if is_flag else ballot, WARP) for _, is_flag in destinations(s.instruction)]


def _shuffle(s: Sources) -> Results:
    value, lost = s.threads.word(s.operands[0])
    lane = np.arange(s.threads.count)
    own, by = lane % WARP, s.threads.spread(s.word(1).astype(np.int64))
    kinds = {"IDX": by, "BFLY": own ^ by, "UP": own - by, "DOWN": own + by}
    source = next(v for k, v in kinds.items() if k in s.words)
    inside = (source >= 0) & (source < WARP)
    source = np.where(inside, source, own) + lane - own
    unknown = None if lost is None else s.threads.spread(lost)[source]
    return [inside, (s.threads.spread(value)[source], either(unknown, s.lost))]


def _elect(s: Sources) -> Results:
    chosen = np.zeros((s.threads.count // WARP, WARP), np.bool_)
    chosen[np.arange(len(chosen)), s.mask.reshape(-1, WARP).argmax(1)] = True
    return [chosen.reshape(-1) if flag else None for _, flag in destinations(s.instruction)]


def _load_shared(s: Sources) -> Results:
    places, lost = s.threads.places_in_shared(s.instruction)
    found: Results = []
    for place in places:
        at = s.threads.block_of, np.minimum(place, s.threads.shared.shape[1] - 1)
        known = s.threads.shared_known[at]
        found.append((s.threads.shared[at], None if known.all() and lost is None else either(lost, ~known)))
    return found


# -- floating point, where indices depend on it: divisions by a number that is not constant, positions in float64


def _halves(s: Sources) -> Results:
    low, high = (np.float16(o.value).view(np.uint16) for o in (s.operands[-1], s.operands[-2]))
    return [np.full(1, int(low) | int(high) << 16, np.uint32)]


def _reciprocal(s: Sources) -> Results:
    value = s.word(0)
    with np.errstate(all="ignore"):
        if "RCP" in s.words:
            return [(np.float32(1) / value.view(np.float32)).view(np.uint32)]
        if "RCP64H" in s.words:
            wide = (value.astype(np.uint64) << np.uint64(32)).view(np.float64)
            return [high32((1 / wide).view(np.uint64))]
    return [None]


def _to_float(s: Sources) -> Results:
    source = next((w for w in s.words[::-1] if w in ("S64", "U64", "U32", "S32")), "S32")
    numbers = s.wide(0) if source.endswith("64") else s.word(0)
    if source.startswith("S"):
        numbers = numbers.astype(np.int64 if source == "S64" else np.int32)
    if "F64" in s.words:
        bits = numbers.astype(np.float64).view(np.uint64)
        return [low32(bits), high32(bits)]
    found = numbers.astype(np.float32)
    if "RP" in s.words:  # rounds up, which divisions by multiplication need
        short = found.astype(np.float64) < numbers.astype(np.float64)
        found = np.where(short, np.nextafter(found, np.float32(np.inf)), found)
    return [found.view(np.uint32)]


def _to_integer(s: Sources) -> Results:
    if "F64" in s.words:
        numbers = s.wide(0).view(np.float64)
    else:
        numbers = np.ascontiguousarray(s.word(0)).view(np.float32).astype(np.float64)
    numbers = np.trunc(np.nan_to_num(numbers))
    wide = not {"S64", "U64"}.isdisjoint(s.words)
    most = 2.0**64 if wide else 2.0**32
    bits = np.where(numbers < 0, numbers % most, np.minimum(numbers, most - (2048 if wide else 1))).astype(np.uint64)
    return [low32(bits), *([high32(bits)] if wide else [])]


def _double(s: Sources, compute: Callable[..., Array]) -> Results:
    with np.errstate(all="ignore"):
        bits = np.ascontiguousarray(compute(*map(s.double, range(len(s.operands))))).view(np.uint64)
    return [low32(bits), high32(bits)]


RESULTS: dict[str, Callable[[Sources], Results]] = {
    "MOV": lambda s: [s.word(0)],
    "LDC": _constant_of,
    "S2R": _special,
    "S2UR": _special,
    "CS2R": _special,
    "R2UR": _first_thread,
    "IADD3": _add3,
    "VIADD": lambda s: [s.word(0) + s.word(1)],
    "IMAD": _multiply_add,
    "LEA": _shifted_add,
    "SHF": _shift,
    "LOP3": _logic,
    "PLOP3": _predicate_logic,
    "ISETP": _compare,
    "SEL": _select,
    "IMNMX": lambda s: _lesser(s, s.word(0), s.word(1), 2),
    "VIMNMX": lambda s: _lesser(s, s.word(0), s.word(1), 2),
    "VIADDMNMX": lambda s: _lesser(s, s.word(0) + s.word(1), s.word(2), 3),
    "PRMT": _permute,
    "IABS": lambda s: [np.abs(s.word(0).astype(np.int32)).astype(np.uint32)],
    "POPC": _count_bits,
    "P2R": _predicates_as_bits,
    "SGXT": _sign_extend,
    "VOTE": _vote,
    "SHFL": _shuffle,
    "ELECT": _elect,
    "LDS": _load_shared,
    "LDL": lambda s: [s.threads.register(word) for word in s.threads.local(s.instruction)],
    "HFMA2": _halves,
    "MUFU": _reciprocal,
    "I2F": _to_float,
    "I2FP": _to_float,
    "F2I": _to_integer,
    "DADD": lambda s: _double(s, np.add),
    "DMUL": lambda s: _double(s, np.multiply),
    "DFMA": lambda s: _double(s, lambda a, b, c: a * b + c),
    "DSETP": _compare_doubles,
}
"""Functions that compute the results of instructions, by the first part of the opcode."""
RESULTS |= {f"U{name}": compute for name, compute in RESULTS.items()}  # the same instructions, on uniform registers


@functools.cache
def destinations(i: Instruction) -> list[tuple[str | None, bool]]:
    """Return the destinations of an instruction in order, each with its name (None if the result is discarded) and
    whether it is a predicate."""
    found: list[tuple[str | None, bool]] = []
    for o in i.operands:
        if o.kind not in ("register", "predicate") or len(found) == i.results:
            break
        found.append((o.name, o.kind == "predicate"))
    first = next((name for name, flag in found if not flag), None)
    return found + [(first and following(first, k), False) for k in range(1, i.result_registers)]


_SHAPE = re.compile(r"^(?:HGMMA\.(\d+)x(\d+)x(\d+)|HMMA\.(\d+))")


def flops_of(i: Instruction) -> tuple[str, int]:
    """Return the kind and number of a warp's floating-point operations.

    Only matrix instructions (HGMMA: ``bfloat16``, ``tf32``; HMMA: ``mma bfloat16``, ``mma tf32``) and fused
    multiply-adds (``float32``) are counted.
    """
    if i.base == "FFMA":
        return "float32", 2 * WARP
    found = _SHAPE.match(i.opcode)
    if not found:
        return "", 0
    kind = "tf32" if "TF32" in i.modifiers else "bfloat16"
    if found[1]:
        return kind, 2 * int(found[1]) * int(found[2]) * int(found[3]) // 4  # four warps share the product
    shapes = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}
    return f"mma {kind}", 2 * shapes[found[4]]
