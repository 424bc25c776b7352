"""Count what a kernel executes and touches: follow some of its blocks through the machine code, without their data.

Integers and predicates that decide about control flow or addresses are computed for every thread of these blocks,
from the launch's parameters and the indices of threads and blocks, so trip counts of loops need no table. Data are
unknown. A branch that depends on data takes the way that is shorter to the kernel's end: past the slow path of a
division, past what the last block does for all.
"""

from __future__ import annotations

import functools
import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import arithmetic
from .sass import FLOW, MEMORY, Function, Instruction, Operand, following

__all__ = ["SECTOR", "Counts", "Place", "distinct", "simulate"]

SECTOR = 32
"""Bytes of a sector, the unit in which memory is read and written."""

WARP = 32
MOST_STEPS = 500_000
"""A kernel that executes more runs of instructions than this is reported as endless."""

SUBROUTINE = 100
"""Instructions that a subroutine is taken to have, where ways are compared."""

STACK = 1 << 20
"""Address of the end of a thread's local memory; no count depends on it."""

PARAMETERS = {8: 0x160, 9: 0x210}
"""Offset where parameters begin in constant bank 0, by the major compute capability."""

CONSTANTS = 1 << 48
"""Where constant bank 0 is taken to begin among addresses of memory: the place of tensor maps, which are parameters."""

ADDRESS_OF_PARAMETERS = 0x198
"""Compute capability 9.0: offset in constant bank 0 of the address of the parameters, which are not aligned there."""

TENSOR_MAP = np.dtype([("data", "u8"), ("sizes", "u8", 3), ("strides", "u8", 2), ("box", "u4", 2)])
"""A tensor map as the emulator has it (``csrc/cuda/wgmma_layout.h``): of bfloat16, in three dimensions."""

Array = npt.NDArray[Any]
NOTHING: Array = np.zeros(0, np.uint64)

Value = tuple[Array, "Array | None"]
"""One number for each thread, and where it is unknown."""

Load = tuple[float, float]
"""Numbers of a block's warps that wait for a load from memory, and from the second-level cache: one of them is 0."""

Action = Callable[["Array | None"], "tuple[int, Load] | None"]
"""Follows an instruction for the threads of a mask (None: all); returns a load that must be waited for."""

Results = list["Value | None"]
"""For each destination its value; None: unknown."""

Pending = frozenset[tuple[str, Load]]
"""Registers that are being loaded."""


@dataclass(frozen=True)
class Place:
    """Grid and block of a launch, the blocks that are followed, and the parameters as the device sees them.

    ``cluster`` blocks along x are a cluster.
    """

    grid: tuple[int, int, int]
    threads: int
    blocks: Sequence[tuple[int, int, int]]
    parameters: bytes
    capability: int
    cluster: int = 1


@dataclass
class Counts:
    """Instructions that each followed block executes; arrays have one entry per block.

    Attributes:
        instructions: issued by warps.
        flops: on the tensor cores (``bfloat16``, ``tf32``) and off them (``float32``, fused multiply-adds alone).
        waits: of a warp, mean over the block's: for values from memory (first column), and for those that other blocks load
            too, which the second-level cache has (second column). What the block has loaded before is not waited for.
        requested: bytes in sectors that are loaded past the first-level cache, as often as they are.
        read, written, cached: what was touched, once each, as ``block << 42 | sector``; ``cached``: read through the
            first-level cache.
        unknown: opcodes, or branches and addresses, of which something was not known, with how often.
    """

    instructions: Array
    flops: dict[str, Array]
    waits: Array
    requested: Array
    read: Array
    written: Array
    cached: Array
    unknown: dict[str, int] = field(default_factory=dict)


def simulate(function: Function, place: Place) -> Counts:
    """Follow ``place.blocks`` through ``function``."""
    return _Machine(function, place).run()


def distinct(numbers: Array) -> Array:
    """The different ones among numbers, in order; numpy's own takes several times as long."""
    found = np.sort(numbers)
    return found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found


def _bank(parts: Sequence[tuple[int, bytes]]) -> tuple[Array, Array]:
    """Bytes of a bank of constants, and which of them are known."""
    content, known = np.zeros(1 << 14, np.uint8), np.zeros(1 << 14, np.bool_)
    for at, part in parts:
        content[at : at + len(part)] = np.frombuffer(part, np.uint8)
        known[at : at + len(part)] = True
    return content, known


class _Machine:
    def __init__(self, function: Function, place: Place) -> None:
        self.function, self.place = function, place
        self.warps = -(-place.threads // WARP)
        self.lanes = len(place.blocks) * self.warps * WARP
        self.registers: dict[str, Array] = {}
        self.unknown: dict[str, Array] = {}
        lane = np.arange(self.lanes)
        self.block_of = lane // (self.warps * WARP)
        thread = lane % (self.warps * WARP)
        self.alive = thread < place.threads
        self.everywhere = bool(self.alive.all())
        self.behind_call = np.zeros(self.lanes, np.uint32)
        ids = np.array(place.blocks, np.uint32)[self.block_of]
        self.special = {
            "SR_TID.X": thread.astype(np.uint32),
            "SR_CTAID.X": ids[:, 0].copy(),
            "SR_CTAID.Y": ids[:, 1].copy(),
            "SR_CTAID.Z": ids[:, 2].copy(),
            "SR_LANEID": (thread % WARP).astype(np.uint32),
            "SR_TID.Y": np.zeros(1, np.uint32),
            "SR_TID.Z": np.zeros(1, np.uint32),
            "SR_CgaCtaId": ids[:, 0] % np.uint32(place.cluster),
            "SRZ": np.zeros(1, np.uint32),
        }
        self.banks = {number: _bank([(0, content)]) for number, content in function.constants.items()}
        words = np.array((place.threads, 1, 1, *place.grid), np.uint32).tobytes()
        stack = np.array([STACK], np.uint32).tobytes()
        start = PARAMETERS[place.capability // 10]
        address = np.array([CONSTANTS + start], np.uint64).tobytes()
        self.parameters = start
        if any(i.base == "UTMALDG" for i in function.instructions):  # tensor maps, and so the parameters, are aligned
            self.parameters = len(function.constants[0]) - len(place.parameters)
        self.banks[0] = _bank(
            [(0, words), (0x28, stack), (ADDRESS_OF_PARAMETERS, address), (self.parameters, place.parameters)]
        )
        self.shared = np.zeros((len(place.blocks), 1 << 16), np.uint32)
        self.shared_known = np.zeros(self.shared.shape, np.bool_)
        count = len(place.blocks)
        self.counts = Counts(np.zeros(count), {}, np.zeros((count, 2)), np.zeros(count), NOTHING, NOTHING, NOTHING)
        self.touched: dict[str, list[Array]] = {"read": [], "written": [], "cached": []}
        self.actions: dict[int, list[Action]] = {}
        self.costs: dict[int, tuple[int, dict[str, int]]] = {}
        self.known_waits: dict[Any, tuple[Array, Pending]] = {}
        self.seen: Array = np.zeros(0, np.uint64)
        self.block_at = {block.start: block for block in function.blocks}

    # -- control flow

    def run(self) -> Counts:
        groups: dict[int, tuple[Array, Pending]] = {0: (self.alive.copy(), frozenset())}
        steps = 0
        while groups:
            steps += 1
            if steps > MOST_STEPS:
                raise RuntimeError(f"{self.function.name} does not end: {steps} runs of instructions were followed.")
            position = min(groups)
            mask, pending = groups.pop(position)
            block = self.block_at[position]
            whole = not groups and bool((mask == self.alive).all())
            new = frozenset(filter(None, [action(None if whole else mask) for action in self._actions(block)]))
            pending = self._account(block, mask, pending, new)
            for where, lanes in self._leave(block.stop - 1, mask):
                if where in groups:
                    groups[where] = (groups[where][0] | lanes, groups[where][1] | pending)
                else:
                    groups[where] = (lanes, pending)
            for where in [w for w in groups if w >= len(self.function.instructions)]:
                del groups[where]
            self.alive = functools.reduce(
                np.logical_or, (m for m, _ in groups.values()), np.zeros(self.lanes, np.bool_)
            )
        self.counts.waits /= self.warps
        for name, parts in self.touched.items():
            setattr(self.counts, name, distinct(np.concatenate(parts)) if parts else np.zeros(0, np.uint64))
        return self.counts

    def _leave(self, position: int, mask: Array) -> list[tuple[int, Array]]:
        """Return where the threads go after the last instruction of a run."""
        i = self.function.instructions[position]
        if i.base not in FLOW:
            return [(position + 1, mask)]
        taken, unknown = self._condition(i, mask)
        if i.base == "EXIT":
            return [(position + 1, mask & ~taken)] if (mask & ~taken).any() else []
        if i.base == "RET":
            (back, lost) = self._get(i.operands[0])
            back = np.broadcast_to(back, mask.shape)
            if lost is not None and (lost & mask).any():  # a register that was lost on the way: to behind the last call
                back = np.where(lost, self.behind_call, back)
                if (back[mask] == 0).any():
                    raise RuntimeError(f"{self.function.name}: a subroutine returns without a call.")
            return [(int(at) // 16, mask & (back == at)) for at in np.unique(back[mask])]
        if i.target is None:
            raise RuntimeError(f"{self.function.name}: cannot follow {i.opcode} at {i.at:#x}.")
        target = i.target // 16
        if unknown.any():
            self._note(f"branch at {i.at:#x}")
            taken = np.where(unknown, self._distance(target) < self._distance(position + 1), taken)
        if i.base == "CALL":
            self.behind_call[mask & taken] = 16 * (position + 1)
        parts = [(target, mask & taken), (position + 1, mask & ~taken)]
        return [(where, lanes) for where, lanes in parts if lanes.any()]

    def _condition(self, i: Instruction, mask: Array) -> tuple[Array, Array]:
        """Return where the instruction's guard and its predicates hold, and where that is unknown."""
        if "DIV" in i.modifiers:  # for warps whose threads have parted
            return np.zeros(self.lanes, np.bool_), np.zeros(self.lanes, np.bool_)
        taken, unknown = np.ones(self.lanes, np.bool_), np.zeros(self.lanes, np.bool_)
        predicates = [o for o in i.operands if o.kind == "predicate"] if i.base == "BRA" else []
        for o in [i.guard, *predicates]:
            if o is None:
                continue
            value, lost = self._predicate(o)
            taken &= value
            if lost is not None:
                unknown |= lost
        return taken, unknown & mask

    @functools.cached_property
    def _distances(self) -> dict[int, int]:
        """Return the number of instructions from the beginning of each run to the kernel's end, by the shortest way."""
        before: dict[int, list[tuple[int, int]]] = {}
        ends = []
        for block in self.function.blocks:
            last = self.function.instructions[block.stop - 1]
            if last.base == "EXIT":
                ends.append((len(block), block.start))
            if last.base == "CALL":  # comes back
                before.setdefault(block.stop, []).append((block.start, len(block) + SUBROUTINE))
            elif last.base != "RET":
                for s in self.function.successors(block.stop - 1):
                    before.setdefault(s, []).append((block.start, len(block)))
        found: dict[int, int] = {}
        heapq.heapify(ends)
        while ends:
            distance, start = heapq.heappop(ends)
            if start in found:
                continue
            found[start] = distance
            for other, length in before.get(start, ()):
                heapq.heappush(ends, (distance + length, other))
        return found

    def _distance(self, position: int) -> int:
        return self._distances.get(position, 1 << 40)

    # -- counting

    def _account(self, block: range, mask: Array, pending: Pending, new: frozenset[tuple[int, Load]]) -> Pending:
        """Count a run; returns the registers that are still to come behind it."""
        instructions, flops = self._cost(block)
        warps = mask.reshape(len(self.place.blocks), self.warps, WARP).any(2).sum(1)
        self.counts.instructions += warps * instructions
        for kind, each in flops.items():
            self.counts.flops[kind] = self.counts.flops.get(kind, np.zeros(len(warps))) + warps * each
        waits, coming = self._wait(block, pending, new)
        self.counts.waits += warps[:, None] * waits
        return coming

    def _cost(self, block: range) -> tuple[int, dict[str, int]]:
        """Instructions of a run, and the floating-point operations of a warp in it."""
        if block.start not in self.costs:
            flops: dict[str, int] = {}
            for n in block:
                kind, each = flops_of(self.function.instructions[n])
                if each:
                    flops[kind] = flops.get(kind, 0) + each
            self.costs[block.start] = (sum(self.function.instructions[n].base != "NOP" for n in block), flops)
        return self.costs[block.start]

    def _wait(self, block: range, pending: Pending, new: frozenset[tuple[int, Load]]) -> tuple[Array, Pending]:
        """Return the waits in a run, by the memory waited for, and the loads under way after it; ``new`` are its own loads."""
        key = (block.start, pending, new)
        if key not in self.known_waits:
            waits, coming, loads = np.zeros(2), dict(pending), dict(new)
            for n in block:
                i = self.function.instructions[n]
                if coming and not coming.keys().isdisjoint(i.reads | i.writes):
                    waits += max(coming.values())  # the slowest; those asked for before have come by then
                    coming = {}
                if i.at in loads:
                    coming |= dict.fromkeys(i.writes, loads[i.at])
            self.known_waits[key] = (waits, frozenset(coming.items()))
        return self.known_waits[key]

    def _note(self, what: str) -> None:
        self.counts.unknown[what] = self.counts.unknown.get(what, 0) + 1

    # -- what decides

    def _actions(self, block: range) -> list[Action]:
        if block.start not in self.actions:
            found: list[Action] = []
            for n in block:
                i = self.function.instructions[n]
                if i.base in MEMORY:
                    found.append(functools.partial(self._memory, i))
                if n in self.function.deciding and i.writes:
                    found.append(functools.partial(self._execute, i, self._handler(i)))
                elif n in self.function.deciding and i.base == "STS":
                    found.append(functools.partial(self._store_shared, i))
                elif n in self.function.deciding and i.base == "STL":
                    found.append(functools.partial(self._store_local, i))
            self.actions[block.start] = found
        return self.actions[block.start]

    def _handler(self, i: Instruction) -> Callable[[Array], Results] | None:
        """Results of an instruction, in the order of its destinations; None: unknown."""
        found: Callable[[Instruction, Array], Results] | None = getattr(self, f"_{i.base.lower()}", None)
        if found is None and i.base.startswith("U"):
            found = getattr(self, f"_{i.base[1:].lower()}", None)
        if found is None:
            if not i.opaque:
                self._note(i.opcode)
            return None
        return functools.partial(found, i)

    def _execute(self, i: Instruction, handler: Callable[[Array], Results] | None, mask: Array | None) -> None:
        active, doubt = mask, None
        if i.guard is not None:
            value, doubt = self._predicate(i.guard)
            active = value if mask is None else mask & value
        results = [None] * len(destinations(i)) if handler is None else handler(self.alive if mask is None else mask)
        for (name, flag), result in zip(destinations(i), results, strict=True):
            if name is None:
                continue
            if result is None:
                self._put(name, np.zeros(1, np.bool_ if flag else np.uint32), np.ones(1, np.bool_), active, doubt)
            else:
                self._put(name, *result, active, doubt)

    def _put(self, name: str, value: Array, unknown: Array | None, active: Array | None, doubt: Array | None) -> None:
        if doubt is not None:  # whether the instruction was executed is unknown
            unknown = doubt if unknown is None else unknown | doubt
            active = doubt if active is None else active | doubt
        if active is None:
            self.registers[name] = np.broadcast_to(value, (self.lanes,))
            if unknown is None:
                self.unknown.pop(name, None)
            else:
                self.unknown[name] = np.broadcast_to(unknown, (self.lanes,))
            return
        old = self.registers.get(name)
        if old is None:
            old = np.zeros(1, value.dtype)
        self.registers[name] = np.where(active, value, old)
        before = self.unknown.get(name)
        if unknown is not None or before is not None:
            after = np.where(active, False if unknown is None else unknown, False if before is None else before)
            if after.any():
                self.unknown[name] = after
            else:
                self.unknown.pop(name, None)

    def _register(self, name: str | None) -> Value:
        if name is None:
            return np.zeros(1, np.uint32), None
        found = self.registers.get(name)
        if found is None:
            return np.zeros(1, np.uint32), np.ones(1, np.bool_)
        return found, self.unknown.get(name)

    def _predicate(self, o: Operand) -> Value:
        if o.name is None:
            return np.broadcast_to(np.bool_(not o.negated), (self.lanes,)), None
        found = self.registers.get(o.name)
        if found is None:
            return np.zeros(self.lanes, np.bool_), np.ones(self.lanes, np.bool_)
        return (~found if o.negated else found), self.unknown.get(o.name)

    def _get(self, o: Operand, upper: bool = False, signs: bool = True) -> Value:
        """An operand as a word; the ``upper`` one of a pair; a minus is the caller's unless ``signs``."""
        lost: Array | None = None
        if o.kind == "number":
            value: Array = np.full(1, _word(o, upper), np.uint32)
        elif o.kind == "constant":
            value, lost = self._constant(o, upper)
        elif o.kind == "predicate":
            value, lost = self._predicate(o)
        elif o.kind == "register":
            name = o.name
            if upper and name is not None:
                name = following(name, 1)
            value, lost = self._register(name)
        else:
            return np.zeros(1, np.uint32), np.ones(1, np.bool_)
        if o.inverted:
            value = ~value
        if o.absolute:
            value = np.abs(value.view(np.int32)).view(np.uint32) if value.flags.c_contiguous else value
        if o.negated and signs and o.kind != "predicate":
            value = np.uint32(0) - value
        return value, lost

    def _wide(self, o: Operand) -> Value:
        """A pair of registers as 64 bits."""
        low, lost = self._get(o, signs=False)
        high, lost_2 = self._get(o, True, signs=False)
        value = arithmetic.to64(low, high)
        return (np.uint64(0) - value if o.negated else value), _either(lost, lost_2)

    def _constant(self, o: Operand, upper: bool) -> Value:
        if o.bank not in self.banks:
            return np.zeros(1, np.uint32), np.ones(1, np.bool_)
        bank, known = self.banks[o.bank]
        at: Array = np.full(1, int(o.value) + (4 if upper else 0))
        lost = None
        for name, _ in o.parts:
            index, lost = self._register(name)
            at = at + index.astype(np.int64)
        at = np.clip(at, 0, len(bank) - 4)
        value = np.zeros(at.shape, np.uint32)
        for k in range(4):
            value |= bank[at + k].astype(np.uint32) << np.uint32(8 * k)
        return value, (lost if known[at].all() else _either(lost, ~known[at]))

    # -- memory

    def _address(self, o: Operand) -> Value:
        total: Array = np.full(1, int(o.value) & 0xFFFFFFFFFFFFFFFF, np.uint64)
        lost: Array | None = None
        for name, pair in o.parts:
            low, lost_1 = self._register(name)
            value = low.astype(np.uint64)
            if pair:
                high, lost_2 = self._register(following(name, 1))
                value, lost_1 = arithmetic.to64(low, high), _either(lost_1, lost_2)
            total, lost = total + value, _either(lost, lost_1)
        return total, lost

    def _memory(self, i: Instruction, mask: Array | None) -> tuple[int, Load] | None:
        """Count an access to global memory and note what it touches; returns a load's place and what must be waited for."""
        if i.base == "UTMALDG":
            self._copy_boxes(i, self.alive if mask is None else mask)
            return None
        addresses = [o for o in i.operands if o.kind == "address"]
        o = next((a for a in addresses if "desc" in a.text or any(pair for _, pair in a.parts)), addresses[0])
        active = self.alive if mask is None else mask
        guards = [i.guard, *(o for o in i.operands if o.kind == "predicate")] if i.base == "LDGSTS" else [i.guard]
        for guard in guards:
            if guard is not None:
                value, lost = self._predicate(guard)
                active = active & value
                if lost is not None and (lost & active).any():
                    self._note(f"guard of {i.opcode} at {i.at:#x}")
        address, lost = self._address(o)
        if lost is not None and (lost & active).any():
            self._note(f"address of {i.opcode} at {i.at:#x}")
            active = active & ~lost
        waits = i.base in ("LDG", "LD", "ATOMG", "ATOM")
        if not active.any():
            return None
        lanes = np.flatnonzero(active)
        sectors = np.broadcast_to(address, active.shape)[lanes] >> np.uint64(5)
        warp = (lanes // WARP).astype(np.uint64)
        requests = distinct(warp << np.uint64(42) | sectors)
        block = requests >> np.uint64(42)
        block //= np.uint64(self.warps)
        keys = block << np.uint64(42) | (requests & np.uint64((1 << 42) - 1))
        load = i.base in ("LDG", "LD", "LDGSTS")
        first_level = load and "BYPASS" not in i.modifiers and "STRONG" not in i.modifiers
        if (load or waits) and not first_level:
            self.counts.requested += SECTOR * np.bincount(block.astype(np.int64), minlength=len(self.place.blocks))
        kinds = ["read", "cached"] if first_level else ["read"] if load else ["written"]
        if i.base in ("ATOM", "ATOMG", "RED", "REDG"):
            kinds = ["read", "written"]
        for kind in kinds:
            self.touched[kind].append(keys)
        if not waits:
            return None
        first = block == block[0]
        new = ~np.isin(keys[first], self.seen) if first_level else np.ones(int(first.sum()), np.bool_)
        self.seen = np.union1d(self.seen, keys[first])
        share = len(np.unique((requests[first] >> np.uint64(42))[new])) / self.warps
        if not share:
            return None
        by_others = 2 * len(distinct(keys & np.uint64((1 << 42) - 1))) <= len(distinct(keys))
        return i.at, (0.0, share) if by_others else (share, 0.0)

    def _copy_boxes(self, i: Instruction, active: Array) -> None:
        """Count what TMA reads for a block, once even if it goes to several."""
        if i.guard is not None:
            active = active & self._predicate(i.guard)[0]
        found = [self._register(name) for name in i.boxes]
        if any(lost is not None and (lost & active).any() for _, lost in found):
            self._note(f"address of {i.opcode} at {i.at:#x}")
            return
        low, high, *coordinates = (np.broadcast_to(value, (self.lanes,)) for value, _ in found)
        address = arithmetic.to64(low, high)
        for warp in np.flatnonzero(active.reshape(-1, WARP).any(1)):
            lane = WARP * warp + active.reshape(-1, WARP)[warp].argmax()
            offset = int(address[lane]) - CONSTANTS - self.parameters
            (box,) = np.frombuffer(self.place.parameters, TENSOR_MAP, 1, offset)
            x, y, z = (int(at.view(np.int32)[lane]) for at in coordinates)
            columns = range(max(x, 0), min(x + int(box["box"][0]), int(box["sizes"][0])))
            rows = np.arange(max(y, 0), min(y + int(box["box"][1]), int(box["sizes"][1])), dtype=np.uint64)
            if not columns or not 0 <= z < box["sizes"][2]:
                continue
            starts = box["data"] + np.uint64(z) * box["strides"][1] + rows * box["strides"][0]
            sectors = np.arange(2 * columns[0], 2 * columns[-1] + 2, SECTOR, dtype=np.uint64)
            sectors = distinct((starts[:, None] + sectors).ravel() >> np.uint64(5))
            block = int(self.block_of[lane])
            self.counts.requested[block] += SECTOR * len(sectors)
            self.touched["read"].append(np.uint64(block << 42) | sectors)

    def _places_in_shared(self, i: Instruction) -> Value:
        address, lost = self._address(next(o for o in i.operands if o.kind == "address"))
        word = (address & np.uint64(0x3FFFF)) >> np.uint64(2)
        return np.broadcast_to(word.astype(np.int64), (self.lanes,)), lost

    def _store_shared(self, i: Instruction, mask: Array | None) -> None:
        place, lost = self._places_in_shared(i)
        active = self.alive if mask is None else mask
        if i.guard is not None:
            active = active & self._predicate(i.guard)[0]
        if lost is not None:
            active = active & ~lost
        lanes = np.flatnonzero(active)
        source = i.operands[-1]
        for k in range(max(1, i.width // 4)):
            name = None if source.name is None else following(source.name, k)
            value, unknown = self._register(name)
            self.shared[self.block_of[lanes], place[lanes] + k] = np.broadcast_to(value, (self.lanes,))[lanes]
            known = np.ones(1, np.bool_) if unknown is None else ~unknown
            self.shared_known[self.block_of[lanes], place[lanes] + k] = np.broadcast_to(known, (self.lanes,))[lanes]

    def _lds(self, i: Instruction, mask: Array) -> Results:
        place, lost = self._places_in_shared(i)
        found: Results = []
        for k in range(max(1, i.width // 4)):
            value = self.shared[self.block_of, np.minimum(place + k, self.shared.shape[1] - 1)]
            known = self.shared_known[self.block_of, np.minimum(place + k, self.shared.shape[1] - 1)]
            found.append((value, None if known.all() and lost is None else _either(lost, ~known)))
        return found

    def _local(self, i: Instruction) -> list[str]:
        """Names of the words of local memory that an instruction moves; all threads have their own at the same place."""
        address, _ = self._address(next(o for o in i.operands if o.kind == "address"))
        return [f"local {int(np.ravel(address)[0]) + 4 * k}" for k in range(max(1, i.width // 4))]

    def _store_local(self, i: Instruction, mask: Array | None) -> None:
        active, doubt, source = mask, None, i.operands[-1]
        if i.guard is not None:
            value, doubt = self._predicate(i.guard)
            active = value if mask is None else mask & value
        for k, word in enumerate(self._local(i)):
            self._put(word, *self._register(source.name and following(source.name, k)), active, doubt)

    def _ldl(self, i: Instruction, mask: Array) -> Results:
        return [self._register(word) for word in self._local(i)]

    # -- instructions; each returns a value for each destination

    def _mov(self, i: Instruction, mask: Array) -> Results:
        return [self._get(i.operands[1])]

    def _ldc(self, i: Instruction, mask: Array) -> Results:
        value, lost = self._get(i.operands[1])
        if "U8" in i.modifiers:
            return [(value & np.uint32(255), lost)]
        return [(value, lost), *([self._get(i.operands[1], True)] if "64" in i.modifiers else [])]

    _uldc = _ldc

    def _s2r(self, i: Instruction, mask: Array) -> Results:
        value = self.special.get(i.operands[1].text)
        return [None if value is None else (value, None)]

    _s2ur = _s2r

    def _cs2r(self, i: Instruction, mask: Array) -> Results:
        return self._s2r(i, mask) * len(destinations(i))

    def _r2ur(self, i: Instruction, mask: Array) -> Results:
        value, lost = self._get(i.operands[-1])
        return [(self._first(value, mask), None if lost is None else self._first(lost, mask))]

    def _first(self, value: Array, mask: Array) -> Array:
        """In every warp, the first active thread's value."""
        warps = mask.reshape(-1, WARP)
        first = warps.argmax(1)[:, None]
        return np.repeat(
            np.take_along_axis(np.broadcast_to(value, (self.lanes,)).reshape(-1, WARP), first, 1)[:, 0], WARP
        )

    def _iadd3(self, i: Instruction, mask: Array) -> Results:
        sources = i.operands[i.results :]
        terms, carries, lost = [], [], None
        for o in sources:
            if o.kind == "predicate":
                value, unknown = self._predicate(o)
                carries.append(value)
            else:
                value, unknown = self._get(o, signs=False)
                terms.append((value, o.negated))
            lost = _either(lost, unknown)
        total, carry = arithmetic.add3(terms, carries if "X" in i.modifiers else [])
        flags: Results = [((carry > k), lost) for k in range(i.results - 1)]
        return [(total, lost), *flags]

    def _viadd(self, i: Instruction, mask: Array) -> Results:
        (a, lost_a), (b, lost_b) = self._get(i.operands[1]), self._get(i.operands[2])
        return [(a + b, _either(lost_a, lost_b))]

    def _imad(self, i: Instruction, mask: Array) -> Results:
        pairs = "WIDE" in i.modifiers
        a, b, c = i.operands[i.results : i.results + 3]
        (x, lost_x), (y, lost_y) = self._get(a), self._get(b)
        wide = pairs or "HI" in i.modifiers
        if wide:
            z, lost_z = self._wide(c)
        else:
            z, lost_z = self._get(c)
            z = z.astype(np.uint64)
        lost = _either(_either(lost_x, lost_y), lost_z)
        more = i.operands[i.results + 3 :]
        if more and "X" in i.modifiers:
            carry, lost_c = self._predicate(more[0])
            z, lost = z + carry.astype(np.uint64), _either(lost, lost_c)
        result = arithmetic.multiply_add(x, y, z, "U32" in i.modifiers)
        flags: Results = [((result < z), lost) for _, flag in destinations(i) if flag]
        low, high = arithmetic.low32(result), arithmetic.high32(result)
        if pairs:
            return [(low, lost), *flags, (high, lost)]
        return [(high if "HI" in i.modifiers else low, lost), *flags]

    def _lea(self, i: Instruction, mask: Array) -> Results:
        sources = [o for o in i.operands[i.results :] if o.kind != "predicate"]
        carries = [o for o in i.operands[i.results :] if o.kind == "predicate"]
        shift = int(sources.pop().value)
        values = [self._get(o) for o in sources]
        lost = functools.reduce(_either, (v[1] for v in values), None)
        carry = None
        if carries and "X" in i.modifiers:
            carry, lost_c = self._predicate(carries[0])
            lost = _either(lost, lost_c)
        high = values[2][0] if len(values) > 2 else None
        total, over = arithmetic.lea(values[0][0], values[1][0], high, shift, i.modifiers, carry)
        return [(total, lost), *(((over > k), lost) for k in range(i.results - 1))]

    def _shf(self, i: Instruction, mask: Array) -> Results:
        (low, lost_l), (amount, lost_a), (high, lost_h) = (self._get(o) for o in i.operands[1:4])
        return [(arithmetic.funnel(low, amount, high, i.modifiers), _either(_either(lost_l, lost_a), lost_h))]

    def _lop3(self, i: Instruction, mask: Array) -> Results:
        predicate = i.operands[0].kind == "predicate"
        a, b, c, table = i.operands[2 if predicate else 1 :][:4]
        values = [self._get(o) for o in (a, b, c)]
        lost = functools.reduce(_either, (v[1] for v in values), None)
        result = arithmetic.lookup3(values[0][0], values[1][0], values[2][0], int(table.value))
        return [((result != 0), lost), (result, lost)] if predicate else [(result, lost)]

    def _plop3(self, i: Instruction, mask: Array) -> Results:
        values = [self._predicate(o) for o in i.operands[2:5]]
        lost = functools.reduce(_either, (v[1] for v in values), None)
        tables = [int(o.value) for o in i.operands[5:7]]
        return [(arithmetic.lookup3(values[0][0], values[1][0], values[2][0], table), lost) for table in tables]

    def _isetp(self, i: Instruction, mask: Array) -> Results:
        words = i.opcode.split(".")[1:]
        (a, lost_a), (b, lost_b) = self._get(i.operands[2]), self._get(i.operands[3])
        if "U32" not in words:
            a, b = a.astype(np.int32), b.astype(np.int32)
        result = arithmetic.COMPARISONS[words[0]](a, b)
        lost = _either(lost_a, lost_b)
        combined, lost_c = self._predicate(i.operands[4])
        if "EX" in words:
            below, lost_e = self._predicate(i.operands[5])
            lost = _either(lost, lost_e)
            equal = a == b
            result = (result & ~equal) | (equal & below) if words[0] != "NE" else result | below
        return [
            self._combine(words, result, lost, combined, lost_c),
            self._combine(words, ~result, lost, combined, lost_c),
        ]

    def _combine(
        self, words: list[str], result: Array, lost: Array | None, other: Array, lost_other: Array | None
    ) -> Value:
        """With the predicate at the end; what decides alone is known though the other is not."""
        if "OR" in words:
            value, settled = result | other, (result & ~_mask(lost)) | (other & ~_mask(lost_other))
        elif "XOR" in words:
            value, settled = result ^ other, np.zeros(1, np.bool_)
        else:
            value, settled = result & other, (~result & ~_mask(lost)) | (~other & ~_mask(lost_other))
        unknown = _either(lost, lost_other)
        return value, None if unknown is None else unknown & ~settled

    def _sel(self, i: Instruction, mask: Array) -> Results:
        (a, lost_a), (b, lost_b) = self._get(i.operands[1]), self._get(i.operands[2])
        choice, lost = self._predicate(i.operands[3])
        if lost_a is not None or lost_b is not None:
            lost = _either(lost, np.where(choice, _mask(lost_a), _mask(lost_b)))
        return [(np.where(choice, a, b), lost)]

    def _imnmx(self, i: Instruction, mask: Array) -> Results:
        return self._least(i, self._get(i.operands[1]), self._get(i.operands[2]), i.operands[3])

    _vimnmx = _imnmx

    def _viaddmnmx(self, i: Instruction, mask: Array) -> Results:
        return self._least(
            i, self._viadd(i, mask)[0] or (np.zeros(1, np.uint32), None), self._get(i.operands[3]), i.operands[4]
        )

    def _least(self, i: Instruction, first: Value, second: Value, smaller: Operand) -> Results:
        (a, lost_a), (b, lost_b) = first, second
        below = a < b if "U32" in i.modifiers else a.astype(np.int32) < b.astype(np.int32)
        choice, lost = self._predicate(smaller)
        return [(np.where(below == choice, a, b), _either(_either(lost_a, lost_b), lost))]

    def _prmt(self, i: Instruction, mask: Array) -> Results:
        """Half of a register that was never written may be kept beside the half that is written here: no one reads it."""
        (a, lost_a), (s, lost_s), (b, lost_b) = (self._get(o) for o in i.operands[1:4])
        lost_b = lost_b if i.operands[3].name in self.registers else None
        return [(arithmetic.permute(a, s, b), _either(_either(lost_a, lost_s), lost_b))]

    def _iabs(self, i: Instruction, mask: Array) -> Results:
        value, lost = self._get(i.operands[1])
        return [(np.abs(value.astype(np.int32)).astype(np.uint32), lost)]

    def _popc(self, i: Instruction, mask: Array) -> Results:
        value, lost = self._get(i.operands[1])
        count = np.zeros(1, np.uint32)
        for k in range(32):
            count = count + (value >> np.uint32(k) & np.uint32(1))
        return [(count, lost)]

    def _p2r(self, i: Instruction, mask: Array) -> Results:
        value, lost = np.zeros(1, np.uint32), None
        for k in range(7):
            bit, unknown = self._predicate(Operand("predicate", f"P{k}"))
            if int(i.operands[-1].value) >> k & 1:
                value, lost = value | bit.astype(np.uint32) << np.uint32(k), _either(lost, unknown)
        return [(value, lost)]

    def _sgxt(self, i: Instruction, mask: Array) -> Results:
        (value, lost), bits = self._get(i.operands[1]), np.uint32(32 - int(i.operands[2].value))
        shifted = (value << bits).astype(np.uint32)
        return [
            (
                (
                    shifted >> bits
                    if "U32" in i.modifiers
                    else (shifted.astype(np.int32) >> bits.astype(np.int32)).astype(np.uint32)
                ),
                lost,
            )
        ]

    def _vote(self, i: Instruction, mask: Array) -> Results:
        value, lost = self._predicate(i.operands[-1])
        if lost is not None and (lost & mask).any():
            return [None] * len(destinations(i))
        warps = (value & mask).reshape(-1, WARP)
        any_, all_ = np.repeat(warps.any(1), WARP), np.repeat((value | ~mask).reshape(-1, WARP).all(1), WARP)
        ballot = np.repeat((warps.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32), WARP)
        flag = all_ if "ALL" in i.modifiers else any_
        return [(flag if is_flag else ballot, None) for _, is_flag in destinations(i)]

    def _shfl(self, i: Instruction, mask: Array) -> Results:
        value, lost = self._get(i.operands[2])
        by, lost_by = self._get(i.operands[3])
        lane = np.arange(self.lanes)
        own, by = lane % WARP, np.broadcast_to(by.astype(np.int64), (self.lanes,))
        kinds = {"IDX": by, "BFLY": own ^ by, "UP": own - by, "DOWN": own + by}
        source = next(v for k, v in kinds.items() if k in i.modifiers)
        inside = (source >= 0) & (source < WARP)
        source = np.where(inside, source, own) + lane - own
        got = np.broadcast_to(value, (self.lanes,))[source]
        unknown = None if lost is None else np.broadcast_to(lost, (self.lanes,))[source]
        return [(inside, lost_by), (got, _either(unknown, lost_by))]

    def _elect(self, i: Instruction, mask: Array) -> Results:
        chosen = np.zeros((self.lanes // WARP, WARP), np.bool_)
        chosen[np.arange(len(chosen)), mask.reshape(-1, WARP).argmax(1)] = True
        return [(chosen.reshape(-1), None) if flag else None for _, flag in destinations(i)]

    # -- floating point, as far as indices go through it: divisions by a number that is not constant, positions in float64

    def _hfma2(self, i: Instruction, mask: Array) -> Results:
        low, high = (np.float16(o.value).view(np.uint16) for o in (i.operands[-1], i.operands[-2]))
        return [(np.full(1, int(low) | int(high) << 16, np.uint32), None)]

    def _mufu(self, i: Instruction, mask: Array) -> Results:
        value, lost = self._get(i.operands[1])
        with np.errstate(all="ignore"):
            if "RCP" in i.modifiers:
                return [((np.float32(1) / value.view(np.float32)).view(np.uint32), lost)]
            if "RCP64H" in i.modifiers:
                wide = (value.astype(np.uint64) << np.uint64(32)).view(np.float64)
                return [(arithmetic.high32((1 / wide).view(np.uint64)), lost)]
        return [None]

    def _i2f(self, i: Instruction, mask: Array) -> Results:
        words = i.opcode.split(".")[1:]
        source = next((w for w in words[::-1] if w in ("S64", "U64", "U32", "S32")), "S32")
        if source in ("S64", "U64"):
            value, lost = self._wide(i.operands[1])
            numbers = value.astype(np.int64) if source == "S64" else value
        else:
            value, lost = self._get(i.operands[1])
            numbers = value.astype(np.int32) if source == "S32" else value
        if "F64" in words:
            bits = numbers.astype(np.float64).view(np.uint64)
            return [(arithmetic.low32(bits), lost), (arithmetic.high32(bits), lost)]
        return [(_rounded_up(numbers, "RP" in words).view(np.uint32), lost)]

    _i2fp = _i2f

    def _f2i(self, i: Instruction, mask: Array) -> Results:
        if "F64" in i.modifiers:
            value, lost = self._wide(i.operands[1])
            numbers = value.view(np.float64)
        else:
            value, lost = self._get(i.operands[1])
            numbers = np.ascontiguousarray(value).view(np.float32).astype(np.float64)
        numbers = np.trunc(np.nan_to_num(numbers))
        wide = bool({"S64", "U64"} & i.modifiers)
        most = 2.0**64 if wide else 2.0**32
        bits = np.where(numbers < 0, (numbers % most), np.minimum(numbers, most - (2048 if wide else 1))).astype(
            np.uint64
        )
        return [(arithmetic.low32(bits), lost), *([(arithmetic.high32(bits), lost)] if wide else [])]

    def _double(self, i: Instruction, compute: Callable[..., Array]) -> Results:
        values = [self._wide64(o) for o in i.operands[1:]]
        lost = functools.reduce(_either, (v[1] for v in values), None)
        with np.errstate(all="ignore"):
            bits = np.ascontiguousarray(compute(*(v[0] for v in values))).view(np.uint64)
        return [(arithmetic.low32(bits), lost), (arithmetic.high32(bits), lost)]

    def _wide64(self, o: Operand) -> Value:
        """A pair of registers as a float64, or a number."""
        if o.kind == "number":
            return np.full(1, float(o.value)), None
        low, lost = self._get(o, signs=False)
        high, lost_2 = self._get(o, True, signs=False)
        value = arithmetic.to64(low, high).view(np.float64)
        value = np.abs(value) if o.absolute else value
        return (-value if o.negated else value), _either(lost, lost_2)

    def _dadd(self, i: Instruction, mask: Array) -> Results:
        return self._double(i, np.add)

    def _dmul(self, i: Instruction, mask: Array) -> Results:
        return self._double(i, np.multiply)

    def _dfma(self, i: Instruction, mask: Array) -> Results:
        return self._double(i, lambda a, b, c: a * b + c)

    def _dsetp(self, i: Instruction, mask: Array) -> Results:
        words = i.opcode.split(".")[1:]
        (a, lost_a), (b, lost_b) = self._wide64(i.operands[2]), self._wide64(i.operands[3])
        if words[0] not in arithmetic.COMPARISONS:
            return [None, None]
        result, lost = arithmetic.COMPARISONS[words[0]](a, b), _either(lost_a, lost_b)
        other, lost_c = self._predicate(i.operands[4])
        return [self._combine(words, result, lost, other, lost_c), self._combine(words, ~result, lost, other, lost_c)]


def destinations(i: Instruction) -> list[tuple[str | None, bool]]:
    """Return the places of an instruction's results, in order: names (None: nowhere) and whether they are predicates."""
    return _destinations(i)


@functools.cache
def _destinations(i: Instruction) -> list[tuple[str | None, bool]]:
    found: list[tuple[str | None, bool]] = []
    for o in i.operands:
        if o.kind not in ("register", "predicate") or len(found) == i.results:
            break
        found.append((o.name, o.kind == "predicate"))
    first = next((name for name, flag in found if not flag), None)
    count = i.result_registers
    if count > 1:
        found += [(None if first is None else following(first, k), False) for k in range(1, count)]
    return found


def _mask(lost: Array | None) -> Array:
    return np.zeros(1, np.bool_) if lost is None else lost


def _either(a: Array | None, b: Array | None) -> Array | None:
    if a is None:
        return b
    return a if b is None else a | b


def _word(o: Operand, upper: bool) -> int:
    if isinstance(o.value, float):
        return int(np.float32(o.value).view(np.uint32))
    return (int(o.value) >> (32 if upper else 0)) & 0xFFFFFFFF


def _rounded_up(numbers: Array, up: bool) -> Array:
    """To float32, to nearest or upwards, as a division by multiplication wants its divisor."""
    near = numbers.astype(np.float32)
    if not up:
        return near
    return np.where(near.astype(np.float64) < numbers.astype(np.float64), np.nextafter(near, np.float32(np.inf)), near)


_SHAPE = re.compile(r"^(?:HGMMA\.(\d+)x(\d+)x(\d+)|HMMA\.(\d+))")


def flops_of(i: Instruction) -> tuple[str, int]:
    """Kind and number of a warp's floating-point operations: of matrix instructions, and fused multiply-adds in float32."""
    if i.base == "FFMA":
        return "float32", 2 * WARP
    found = _SHAPE.match(i.opcode)
    if not found:
        return "", 0
    kind = "tf32" if "TF32" in i.modifiers else "bfloat16"
    if found[1]:
        return kind, 2 * int(found[1]) * int(found[2]) * int(found[3]) // 4  # by a group of four warps
    shapes = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}
    return f"mma {kind}", 2 * shapes[found[4]]
