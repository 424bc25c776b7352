"""Count what a kernel executes and touches: follow some of its blocks through the machine code, without their data.

Integers and predicates that decide about control flow or addresses are computed for every thread of these blocks,
from the launch's parameters and the indices of threads and blocks, so trip counts of loops need no table. Data are
unknown. A branch that depends on data takes the shorter way to the kernel's end. So it skips the slow path of a
division, and the work that only the last block does.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .instructions import RESULTS, WARP, Array, Sources, Threads, as_mask, destinations, flops_of, to64
from .sass import FLOW, MEMORY, Function, Instruction, following

__all__ = ["SECTOR", "WHICH_SECTOR", "Counts", "Place", "distinct", "simulate"]

SECTOR = 32
"""Bytes of a sector, the unit in which memory is read and written."""

MOST_STEPS = 500_000
"""A kernel that executes more runs of instructions than this is reported as endless."""

SUBROUTINE = 100
"""Number of instructions that a subroutine is assumed to have when two ways to the kernel's end are compared."""

STACK = 1 << 20
"""Address of the end of a thread's local memory; no count depends on it."""

PARAMETERS = {8: 0x160, 9: 0x210}
"""Offset where parameters begin in constant bank 0, by the major compute capability."""

CONSTANTS = 1 << 48
"""Address at which constant bank 0 is assumed to begin. Tensor maps are parameters, so they lie in this bank."""

ADDRESS_OF_PARAMETERS = 0x198
"""Offset in constant bank 0 of the parameters' address, for compute capability 9.0; that address is not aligned."""

TENSOR_MAP = np.dtype([("data", "u8"), ("sizes", "u8", 3), ("strides", "u8", 2), ("box", "u4", 2)])
"""A tensor map as the emulator has it (``csrc/cuda/wgmma_layout.h``): of bfloat16, in three dimensions."""

NOTHING: Array = np.zeros(0, np.uint64)
WHICH_SECTOR = np.uint64((1 << 42) - 1)
"""The bits of a key that identify the sector; the bits above identify the block."""

Load = tuple[float, float]
"""Share of a block's warps that wait for a load from memory, and share that wait for the L2 cache; one share is 0."""

Action = Callable[["Array | None"], "tuple[int, Load] | None"]
"""Executes an instruction for the threads of a mask (None: for all). Returns None, or the instruction's address and the
load to wait for."""

Pending = frozenset[tuple[str, Load]]
"""Registers that are being loaded, each with its load."""


@dataclass(frozen=True)
class Place:
    """Grid and block size of a launch, the blocks that are followed, and the parameters as the device sees them.

    ``cluster`` blocks along x form a cluster.
    """

    grid: tuple[int, int, int]
    threads: int
    blocks: Sequence[tuple[int, int, int]]
    parameters: bytes
    capability: int
    cluster: int = 1


@dataclass
class Counts:
    """Instructions, memory accesses and waits of each followed block; arrays have one entry per block.

    Attributes:
        instructions: number of instructions that the block's warps issue.
        flops: floating-point operations by the kinds of :func:`.flops_of`.
        waits: how often a warp waits for global loads, on average over the block's warps: for data from memory (column
            0), and for data that other blocks load too, which are in the L2 cache (column 1). Data that the block has
            loaded through the L1 cache before cause no wait.
        requested: bytes of the sectors requested past the L1 cache; a sector counts at every request.
        read, written, cached: the distinct sectors touched, as ``block << 42 | sector``; ``cached`` are reads through
            the L1 cache.
        unknown: how often an opcode, branch, guard or address could not be evaluated, by description.
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
    """Follow ``place.blocks`` through the code of ``function``, and return what they execute and touch."""
    return _Machine(function, place).run()


def distinct(numbers: Array) -> Array:
    """Return the distinct numbers, sorted; ``numpy.unique`` takes several times as long."""
    found = np.sort(numbers)
    return found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found


def _bank(parts: Sequence[tuple[int, bytes]]) -> tuple[Array, Array]:
    """Return the bytes of a bank of constants, and which of these bytes are known."""
    content, known = np.zeros(1 << 14, np.uint8), np.zeros(1 << 14, np.bool_)
    for at, part in parts:
        content[at : at + len(part)] = np.frombuffer(part, np.uint8)
        known[at : at + len(part)] = True
    return content, known


class _Machine:
    def __init__(self, function: Function, place: Place) -> None:
        self.function, self.place = function, place
        self.warps = -(-place.threads // WARP)
        lane, count = np.arange(len(place.blocks) * self.warps * WARP), len(place.blocks)
        thread = lane % (self.warps * WARP)
        block_of = lane // (self.warps * WARP)
        self.alive = thread < place.threads
        self.behind_call = np.zeros(len(lane), np.uint32)
        ids = np.array(place.blocks, np.uint32)[block_of]
        special = {
            "SR_TID.X": thread.astype(np.uint32),
            "SR_CTAID.X": ids[:, 0].copy(),
            "SR_CTAID.Y": ids[:, 1].copy(),
            "SR_CTAID.Z": ids[:, 2].copy(),
            "SR_LANEID": (thread % WARP).astype(np.uint32),
            "SR_CgaCtaId": ids[:, 0] % np.uint32(place.cluster),
            **dict.fromkeys(("SR_TID.Y", "SR_TID.Z", "SRZ"), np.zeros(1, np.uint32)),
        }
        start = PARAMETERS[place.capability // 10]
        self.parameters = start
        if any(i.base == "UTMALDG" for i in function.instructions):  # parameters with tensor maps are aligned
            self.parameters = len(function.constants[0]) - len(place.parameters)
        words = np.array((place.threads, 1, 1, *place.grid), np.uint32).tobytes()
        stack = np.array([STACK], np.uint32).tobytes()
        address = np.array([CONSTANTS + start], np.uint64).tobytes()
        banks = {number: _bank([(0, content)]) for number, content in function.constants.items()}
        banks[0] = _bank(
            [(0, words), (0x28, stack), (ADDRESS_OF_PARAMETERS, address), (self.parameters, place.parameters)]
        )
        self.threads = Threads(block_of, banks, special)
        self.counts = Counts(np.zeros(count), {}, np.zeros((count, 2)), np.zeros(count), NOTHING, NOTHING, NOTHING)
        self.touched: dict[str, list[Array]] = {"read": [], "written": [], "cached": []}
        self.actions, self.cost, self.wait = map(functools.cache, (self._actions, self._cost, self._wait))
        self.seen: Array = NOTHING
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
            new = frozenset(filter(None, [action(None if whole else mask) for action in self.actions(block)]))
            pending = self._account(block, mask, pending, new)
            for where, lanes in self._leave(block.stop - 1, mask):
                if where in groups:
                    groups[where] = (groups[where][0] | lanes, groups[where][1] | pending)
                else:
                    groups[where] = (lanes, pending)
            for where in [w for w in groups if w >= len(self.function.instructions)]:
                del groups[where]
            self.alive = functools.reduce(
                np.logical_or, (m for m, _ in groups.values()), np.zeros(self.threads.count, np.bool_)
            )
        self.counts.waits /= self.warps
        for name, parts in self.touched.items():
            setattr(self.counts, name, distinct(np.concatenate([NOTHING, *parts])))
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
            (back, lost) = self.threads.word(i.operands[0])
            back = np.broadcast_to(back, mask.shape)
            if lost is not None and (lost & mask).any():  # unknown register: continue after the last call
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
        """Return the threads for which the guard and the predicates hold, and those for which this is unknown."""
        if "DIV" in i.modifiers:  # taken only by warps whose threads have diverged
            return np.zeros(self.threads.count, np.bool_), np.zeros(self.threads.count, np.bool_)
        taken, unknown = np.ones(self.threads.count, np.bool_), np.zeros(self.threads.count, np.bool_)
        predicates = [o for o in i.operands if o.kind == "predicate"] if i.base == "BRA" else []
        for o in [i.guard, *predicates]:
            if o is None:
                continue
            value, lost = self.threads.flag(o)
            taken &= value
            if lost is not None:
                unknown |= lost
        return taken, unknown & mask

    @functools.cached_property
    def _distances(self) -> dict[int, int]:
        """Number of instructions on the shortest way from the beginning of each run to the kernel's end."""
        before: dict[int, list[tuple[int, int]]] = {}
        ends = []
        for block in self.function.blocks:
            last = self.function.instructions[block.stop - 1]
            if last.base == "EXIT":
                ends.append((len(block), block.start))
            if last.base == "CALL":  # a call returns to the next run
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
        """Count a run of instructions, and return the registers that are still being loaded after it."""
        instructions, flops = self.cost(block)
        warps = mask.reshape(len(self.place.blocks), self.warps, WARP).any(2).sum(1)
        self.counts.instructions += warps * instructions
        for kind, each in flops.items():
            self.counts.flops[kind] = self.counts.flops.get(kind, np.zeros(len(warps))) + warps * each
        waits, coming = self.wait(block, pending, new)
        self.counts.waits += warps[:, None] * waits
        return coming

    def _cost(self, block: range) -> tuple[int, dict[str, int]]:
        """Return the number of instructions of a run, and a warp's floating-point operations in it, by kind."""
        instructions, flops = [self.function.instructions[n] for n in block], dict[str, int]()
        for kind, each in map(flops_of, instructions):
            if each:
                flops[kind] = flops.get(kind, 0) + each
        return sum(i.base != "NOP" for i in instructions), flops

    def _wait(self, block: range, pending: Pending, new: frozenset[tuple[int, Load]]) -> tuple[Array, Pending]:
        """Return the waits in a run of instructions, for memory and for the L2 cache, and the loads under way after the
        run. ``pending`` are the loads under way before it, ``new`` those that it starts."""
        waits, coming, loads = np.zeros(2), dict(pending), dict(new)
        for n in block:
            i = self.function.instructions[n]
            if coming and not coming.keys().isdisjoint(i.reads | i.writes):
                waits += max(coming.values())  # for the slowest load; the others have arrived by then
                coming = {}
            if i.at in loads:
                coming |= dict.fromkeys(i.writes, loads[i.at])
        return waits, frozenset(coming.items())

    def _note(self, what: str) -> None:
        self.counts.unknown[what] = self.counts.unknown.get(what, 0) + 1

    # -- instructions that decide about control flow and addresses

    def _actions(self, block: range) -> list[Action]:
        """Return the actions for the instructions of a run, in order."""
        found: list[Action] = []
        stores = {"STS": self._store_shared, "STL": self._store_local}
        for n in block:
            i = self.function.instructions[n]
            if i.base in MEMORY:
                found.append(functools.partial(self._memory, i))
            if n in self.function.deciding and (i.writes or i.base in stores):
                if i.writes and not i.opaque and i.base not in RESULTS:
                    self._note(i.opcode)
                found.append(functools.partial(self._execute if i.writes else stores[i.base], i))
        return found

    def _active(self, i: Instruction, mask: Any) -> tuple[Any, Array | None]:
        """Return the threads of ``mask`` for which the guard holds, and those for which it is unknown.

        A mask of None stands for all threads, an unknown part of None for no thread.
        """
        if i.guard is None:
            return mask, None
        holds, doubt = self.threads.flag(i.guard)
        return holds if mask is None else mask & holds, doubt

    def _execute(self, i: Instruction, mask: Array | None) -> None:
        active, doubt = self._active(i, mask)
        places, compute = destinations(i), None if i.opaque else RESULTS.get(i.base)
        sources = Sources(self.threads, i, self.alive if mask is None else mask)
        results = [None] * len(places) if compute is None else compute(sources)
        for (name, flag), result in zip(places, results, strict=True):
            if result is None:
                result = np.zeros(1, np.bool_ if flag else np.uint32), np.ones(1, np.bool_)
            if name is not None:
                self.threads.put(name, result if isinstance(result, tuple) else (result, sources.lost), active, doubt)

    # -- memory

    def _memory(self, i: Instruction, mask: Array | None) -> tuple[int, Load] | None:
        """Count an access to global memory, and note its sectors. Return a load's place in the code and its waits, or
        None."""
        active = self.alive if mask is None else mask
        if i.base == "UTMALDG":
            self._copy_boxes(i, active)
            return None
        addresses = [o for o in i.operands if o.kind == "address"]
        o = next((a for a in addresses if "desc" in a.text or any(pair for _, pair in a.parts)), addresses[0])
        guards = [i.guard, *(o for o in i.operands if o.kind == "predicate" and i.base == "LDGSTS")]
        for guard in guards:
            if guard is not None:
                value, lost = self.threads.flag(guard)
                active = active & value
                if lost is not None and (lost & active).any():
                    self._note(f"guard of {i.opcode} at {i.at:#x}")
        address, lost = self.threads.address(o)
        if lost is not None and (lost & active).any():
            self._note(f"address of {i.opcode} at {i.at:#x}")
            active = active & ~lost
        if not active.any():
            return None
        lanes = np.flatnonzero(active)
        sectors = np.broadcast_to(address, active.shape)[lanes] >> np.uint64(5)
        requests = distinct((lanes // WARP).astype(np.uint64) << np.uint64(42) | sectors)
        warp = requests >> np.uint64(42)
        block = warp // np.uint64(self.warps)
        keys = block << np.uint64(42) | (requests & WHICH_SECTOR)
        waits, load = i.base in ("LDG", "LD", "ATOMG", "ATOM"), i.base in ("LDG", "LD", "LDGSTS")
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
        share = len(np.unique(warp[first][new])) / self.warps
        if not share:
            return None
        by_others = 2 * len(distinct(keys & WHICH_SECTOR)) <= len(distinct(keys))
        return i.at, (0.0, share) if by_others else (share, 0.0)

    def _copy_boxes(self, i: Instruction, mask: Array) -> None:
        """Count the sectors that TMA reads for a block; a copy that several blocks receive counts once."""
        active = self._active(i, mask)[0]
        found = [self.threads.register(name) for name in i.boxes]
        if any(lost is not None and (lost & active).any() for _, lost in found):
            self._note(f"address of {i.opcode} at {i.at:#x}")
            return
        low, high, *coordinates = (self.threads.spread(value) for value, _ in found)
        address = to64(low, high)
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
            block = int(self.threads.block_of[lane])
            self.counts.requested[block] += SECTOR * len(sectors)
            self.touched["read"].append(np.uint64(block << 42) | sectors)

    def _store_shared(self, i: Instruction, mask: Array | None) -> None:
        threads, source = self.threads, i.operands[-1]
        places, lost = threads.places_in_shared(i)
        active = self._active(i, self.alive if mask is None else mask)[0]
        lanes = np.flatnonzero(active if lost is None else active & ~lost)
        for k, place in enumerate(places):
            value, unknown = threads.register(source.name and following(source.name, k))
            at = threads.block_of[lanes], place[lanes]
            threads.shared[at] = threads.spread(value)[lanes]
            threads.shared_known[at] = threads.spread(~as_mask(unknown))[lanes]

    def _store_local(self, i: Instruction, mask: Array | None) -> None:
        active, doubt = self._active(i, mask)
        source = i.operands[-1].name
        for k, word in enumerate(self.threads.local(i)):
            self.threads.put(word, self.threads.register(source and following(source, k)), active, doubt)
