"""Read a GPU's machine code: its instructions, what each instruction reads and writes, and which instructions decide
what is executed."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

__all__ = ["FLOW", "MEMORY", "Function", "Instruction", "Operand", "following", "function", "tool", "usage"]

FLOW = frozenset({"BRA", "BRX", "CALL", "EXIT", "JMP", "RET"})
MEMORY = frozenset({"ATOM", "ATOMG", "LD", "LDG", "LDGSTS", "RED", "REDG", "ST", "STG", "UTMALDG"})
"""Opcodes of instructions that access global memory."""
WITHOUT_RESULT = FLOW | frozenset("ST STG STS STL STSM RED REDG LDGSTS UTMALDG BAR BSSY BSYNC WARPSYNC".split())
OPAQUE = frozenset(
    "FADD FCHK FFMA FMNMX FMUL FSEL FSETP FSET F2FP SYNCS HADD2 HFMA2 HMUL2 HMMA HGMMA HSETP2 F2F IMMA "
    "LD LDG LDSM ATOM ATOMG ATOMS".split()
)
"""Instructions whose results depend on data, and so are unknown."""

_OPERAND = re.compile(r"^([-~!|]*)(UR|UP|R|P)(\d+|Z|T)\|?((?:\.\w+)*)$")
_CONSTANT = re.compile(r"^([-~|]*)c\[(0x[0-9a-f]+)\]\[(?:(U?R\d+|U?RZ)\+?)?(-?0x[0-9a-f]+)?\]\|?(?:\.\w+)*$")
_ADDRESS = re.compile(r"(?:desc\[(UR\d+)\])?\[([^\[\]]*)\]")
_PART = re.compile(r"\+?(-?0x[0-9a-f]+|U?R(?:\d+|Z))((?:\.\w+)*)")


@dataclass(frozen=True)
class Operand:
    """One operand of an instruction, as the disassembler writes it.

    Attributes:
        kind: ``register``, ``predicate``, ``number``, ``constant`` (a bank's), ``address`` or ``text``.
        name: name of the register or predicate; None for RZ, URZ, PT and UPT.
        negated: whether it has a minus, or as a predicate an exclamation mark.
        inverted: whether all its bits are inverted.
        absolute: whether its sign is dropped.
        value: value of a number; offset of a constant in its bank; offset that an address adds to its registers.
        parts: registers of an address, each with whether it is a pair of registers; index register of a constant.
        bank: number of a constant's bank.
    """

    kind: str
    name: str | None = None
    negated: bool = False
    inverted: bool = False
    absolute: bool = False
    value: int | float = 0
    parts: tuple[tuple[str, bool], ...] = ()
    bank: int = 0
    text: str = ""


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``at`` is its address in bytes."""

    at: int
    opcode: str
    operands: tuple[Operand, ...]
    guard: Operand | None
    target: int | None
    reads: frozenset[str]
    writes: frozenset[str]
    results: int
    """Number of operands that the instruction writes; they come before the others."""
    result_registers: int
    """Number of consecutive registers that the result takes."""

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @functools.cached_property
    def modifiers(self) -> frozenset[str]:
        return frozenset(self.opcode.split(".")[1:])

    @property
    def opaque(self) -> bool:
        constant = self.base == "HFMA2" and all(o.kind == "number" or not o.name for o in self.operands[1:])
        return self.base in OPAQUE and not constant

    @property
    def boxes(self) -> tuple[str, ...]:
        """Registers of a UTMALDG: the pair with the tensor map's address, then the coordinates of the box."""
        to, box = (
            o.parts[0][0] for o in self.operands[:2]
        )  # `to` and the next register hold the addresses of shared memory and of the barrier
        dimensions = next(int(m[0]) for m in self.opcode.split(".")[1:] if re.fullmatch(r"\dD", m))
        return (box, following(box, 1), *(following(to, 2 + k) for k in range(dimensions)))

    @property
    def width(self) -> int:
        """Bytes that one thread moves."""
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((widths[m] for m in self.opcode.split(".")[1:] if m in widths), 4)


@dataclass(frozen=True)
class Function:
    """A kernel with the subroutines behind it; an instruction takes 16 bytes, and addresses begin at 0."""

    name: str
    instructions: tuple[Instruction, ...]
    constants: dict[int, bytes]
    """Banks of constants; the parameters are at the end of bank 0."""

    @functools.cached_property
    def blocks(self) -> tuple[range, ...]:
        """Return the runs of instructions that can be entered only at their first and left only at their last one."""
        jumps = [i.at // 16 + 1 for i in self.instructions if i.base in FLOW]
        targets = [i.target // 16 for i in self.instructions if i.target is not None]
        bounds = sorted({0, len(self.instructions), *jumps, *targets})
        return tuple(range(a, b) for a, b in itertools.pairwise(bounds))

    def successors(self, position: int) -> list[int]:
        """Return the positions that may follow the instruction at ``position``."""
        i = self.instructions[position]
        if i.base == "RET":  # leads to the instruction after any call
            return [c.at // 16 + 1 for c in self.instructions if c.base == "CALL"]
        conditional = i.guard is not None or (i.base == "BRA" and bool(i.operands))
        after = [position + 1] if i.base not in FLOW or conditional else []
        return after + ([i.target // 16] if i.target is not None else [])

    @functools.cached_property
    def deciding(self) -> frozenset[int]:
        """Positions of the instructions whose results decide about control flow or addresses in global memory."""
        numbers = {name: 1 << n for n, name in enumerate({r for i in self.instructions for r in i.reads | i.writes})}

        def bits(names: frozenset[str]) -> int:
            return functools.reduce(operator.or_, (numbers[name] for name in names), 0)

        def reads(i: Instruction) -> frozenset[str]:
            return frozenset() if i.opaque else i.reads

        steps = [(bits(_deciding_reads(i)), bits(reads(i)), bits(i.writes), i.guard is None) for i in self.instructions]
        found = self._relevant(steps)
        if not any(self.instructions[n].base in ("LDS", "LDL") for n in found):
            return found
        # A branch or address depends on a load from shared or local memory. Any store there may have written the value.
        stores = frozenset(n for n, i in enumerate(self.instructions) if i.base in ("STS", "STL"))
        for n in stores:
            steps[n] = (bits(self.instructions[n].reads), *steps[n][1:])
        return self._relevant(steps) | stores

    def _relevant(self, steps: list[tuple[int, int, int, bool]]) -> frozenset[int]:
        """Return the positions of the instructions that write a value which a later instruction needs, directly or through
        other instructions. This is a backward data flow.

        Args:
            steps: four things for each position. The names that are needed there in any case, where the search starts;
                the names that are read, needed only if what is written there is needed; the names that are written;
                and whether the instruction always writes (a guarded one does not). A set of names is an integer with
                one bit for each name.
        """
        entry = dict.fromkeys((block.start for block in self.blocks), 0)
        found: set[int] = set()
        changed = True
        while changed:
            changed = False
            for block in reversed(self.blocks):
                needed = 0
                for s in self.successors(block.stop - 1):
                    needed |= entry.get(s, 0)
                for n in reversed(block):
                    seeds, reads, writes, always = steps[n]
                    if writes & needed:
                        found.add(n)
                        needed = (needed & ~writes if always else needed) | reads
                    needed |= seeds
                if needed != entry[block.start]:
                    entry[block.start], changed = needed, True
        return frozenset(found)


def _deciding_reads(i: Instruction) -> frozenset[str]:
    if i.base in FLOW:
        return i.reads
    if i.base not in MEMORY:
        return frozenset()
    if i.base == "UTMALDG":
        return frozenset(i.boxes) | ({i.guard.name} if i.guard is not None and i.guard.name else frozenset())
    names = {name for o in i.operands if o.kind == "address" for part in o.parts for name in _names(*part)}
    guards = [i.guard, *(o for o in i.operands if o.kind == "predicate")] if i.base == "LDGSTS" else [i.guard]
    return frozenset(names | {o.name for o in guards if o is not None and o.name})


def following(name: str, places: int) -> str:
    """Return the register ``places`` after another one."""
    return re.sub(r"\d+", lambda number: str(int(number[0]) + places), name)


def _names(name: str, pair: bool) -> list[str]:
    return [following(name, k) for k in range(2 if pair else 1)]


def tool(name: str) -> Path:
    """Return the path of an NVIDIA tool that comes with Triton."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def _say(cubin: bytes, name: str, option: str) -> str:
    """Return what an NVIDIA tool prints about a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool(name), option, file.name], check=True, capture_output=True, text=True).stdout


@functools.lru_cache(maxsize=8)
def _listing(cubin: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_say(cubin, "nvdisasm", "-json"))[1]
    return found


@functools.lru_cache(maxsize=64)
def function(cubin: bytes, name: str) -> Function:
    """Disassemble one kernel of a cubin, with the subroutines behind it.

    Raises:
        KeyError: if there is no such kernel.
    """
    own = list(itertools.dropwhile(lambda part: part["function-name"] != name, _listing(cubin)))
    if not own:
        raise KeyError(f"The code has no kernel {name}.")
    subroutines = itertools.takewhile(lambda part: part["function-name"].startswith("$"), own[1:])
    parts = [own[0], *subroutines]
    starts = {part["function-name"]: part["start"] for part in parts}
    text = [(part["start"] + 16 * k, raw) for part in parts for k, raw in enumerate(part["sass-instructions"])]
    instructions = tuple(_read(at, raw, starts) for at, raw in sorted(text, key=lambda pair: pair[0]))
    return Function(name, instructions, _constants(cubin, name))


def _constants(cubin: bytes, name: str) -> dict[int, bytes]:
    """Return the contents of a cubin's sections ``.nv.constantN.NAME`` (ELF, 64 bits), by N."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * k) for k in range(count)]
    found = {}
    for at, _, _, _, offset, length in sections:
        start = sections[names][4] + at
        title = cubin[start : cubin.index(b"\0", start)].decode()
        if match := re.fullmatch(rf"\.nv\.constant([0-9])\.{re.escape(name)}", title):
            found[int(match[1])] = cubin[offset : offset + length]
    return found


def usage(cubin: bytes, name: str) -> tuple[int, int, int]:
    """Return a thread's number of registers and bytes of local memory, and a block's bytes of static shared memory."""
    found = re.search(rf"Function {re.escape(name)}:\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", _usage(cubin))
    assert found, f"cuobjdump does not say what {name} needs"
    return int(found[1]), int(found[2]), int(found[3])


@functools.lru_cache(maxsize=64)
def _usage(cubin: bytes) -> str:
    return _say(cubin, "cuobjdump", "-res-usage")


def _read(at: int, raw: dict[str, Any], starts: dict[str, int]) -> Instruction:
    opcode, base = raw["opcode"], raw["opcode"].partition(".")[0]
    text = raw.get("operands", "").strip()
    guard = _operand(raw["predicate"].lstrip("@")) if raw.get("predicate") else None
    words = _split(text)
    target = None
    if base in FLOW and words:
        last = words.pop()
        if base == "RET":
            words.append(last) if _OPERAND.match(last) else None
        elif last in starts:
            target = starts[last]
        elif last.startswith("0x"):
            target = int(last, 16)
        else:
            words.append(last)
    operands = tuple(_operand(word) for word in words)
    results = _results(base, operands)
    reads = {guard.name} if guard is not None and guard.name else set()
    writes: set[str] = set()
    counts = [_registers(opcode, base, n, results) if o.kind == "register" else 1 for n, o in enumerate(operands)]
    for n, (o, count) in enumerate(zip(operands, counts, strict=True)):
        names = [following(o.name, k) for k in range(count)] if o.name else []
        names += [name for part in o.parts for name in _names(*part)]
        (writes if n < results else reads).update(names)
    if base == "P2R":  # it reads the predicates that the mask selects
        reads |= {f"P{k}" for k in range(7) if int(operands[-1].value) >> k & 1}
    first = next((count for o, count in zip(operands[:results], counts, strict=False) if o.kind == "register"), 1)
    return Instruction(at, opcode, operands, guard, target, frozenset(reads), frozenset(writes), results, first)


def _split(text: str) -> list[str]:
    """Split operands at commas, and between addresses that have no comma between them."""
    kept = re.sub(r"(c|desc)\[([^\]]*)\]\[([^\]]*)\]", r"\1<\2><\3>", text)  # keep both parts of an operand together
    parts = re.sub(r"(desc<[^>]*><[^>]*>|\[[^\]]*\])", r",\1,", kept).replace("<", "[").replace(">", "]")
    return [word.strip() for word in parts.split(",") if word.strip()]


def _operand(word: str) -> Operand:
    word = word.replace(".reuse", "").strip()
    if found := _OPERAND.match(word):
        signs, prefix, number, suffix = found.groups()
        kind = "predicate" if prefix in ("P", "UP") else "register"
        name = None if number in ("Z", "T") else prefix + number
        return Operand(kind, name, "-" in signs or "!" in signs, "~" in signs, "|" in signs, text=word)
    if found := _CONSTANT.match(word):
        signs, bank, index, offset = found.groups()
        parts = ((index, False),) if index and not index.endswith("Z") else ()
        at = int(offset or "0", 16)
        return Operand("constant", None, "-" in signs, "~" in signs, "|" in signs, at, parts, int(bank, 16), word)
    if found := _ADDRESS.search(word):
        value = 0
        registers: list[tuple[str, bool]] = []
        for part, suffix in _PART.findall(found[2]):
            if part.lstrip("-").startswith("0x"):
                value += int(part, 16)
            elif not part.endswith("Z"):
                registers.append((part, ".64" in suffix or (part.startswith("U") and found[1] is not None)))
        return Operand("address", value=value, parts=tuple(registers), text=word)
    if re.fullmatch(r"-?0x[0-9a-f]+", word):
        return Operand("number", value=int(word, 16), text=word)
    try:
        return Operand("number", value=float(word.replace("INF", "inf").replace("QNAN", "nan")), text=word)
    except ValueError:
        return Operand("text", text=word)


def _results(base: str, operands: tuple[Operand, ...]) -> int:
    """Return how many operands, from the first one on, an instruction writes."""
    if base in WITHOUT_RESULT or not operands:
        return 0
    base = base.lstrip("U")
    if base in ("ISETP", "FSETP", "DSETP", "HSETP2", "PLOP3", "VOTE", "SHFL", "ATOMG", "ATOM", "ATOMS"):
        return 2
    if base not in ("IADD3", "LEA", "LOP3", "IMAD"):
        return 1
    if operands[0].kind == "predicate":  # a predicate stands before the result
        return 2
    return 1 + len(list(itertools.takewhile(lambda o: o.kind == "predicate", operands[1:3])))


def _registers(opcode: str, base: str, n: int, results: int) -> int:
    """Return how many consecutive registers an operand stands for."""
    modifiers = opcode.split(".")[1:]
    last = modifiers[-1] if modifiers else ""
    if base in ("LDG", "LDS", "LDL", "LD", "STG", "STS", "STL", "ST", "LDC", "ULDC", "ATOMG"):
        return 4 if "128" in modifiers else 2 if "64" in modifiers else 1
    if base == "LDSM":
        return 4 if "4" in modifiers else 2 if "2" in modifiers else 1
    if base in ("DADD", "DMUL", "DFMA", "DSETP", "CS2R"):
        return 2 if base != "CS2R" or "32" not in modifiers else 1
    if "WIDE" in modifiers or (base in ("IMAD", "UIMAD") and "HI" in modifiers):
        return 2 if n == results + 2 or (n == 0 and "WIDE" in modifiers) else 1
    pairs = {
        ("I2F", 0): modifiers[:1] == ["F64"],
        ("F2F", 0): "F64" in modifiers[:3] and modifiers[-2:-1] == ["F64"],
        ("F2I", 0): "S64" in modifiers or "U64" in modifiers,
        **dict.fromkeys((("F2I", 1), ("I2F", 1), ("F2F", 1)), last in ("F64", "S64", "U64")),
    }
    return 2 if pairs.get((base, n)) else 1
