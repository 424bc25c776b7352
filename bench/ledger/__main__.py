"""Predict the time of every kernel from its machine code, without a GPU; show measured times beside the predictions.

    python -m bench.ledger [--backend triton] [--kind inference] [--gpu H100] [--only KERNEL] [--measured FILE] [--record FILE]

Launches are recorded by running the network on tensors without data. Their code is compiled for each GPU, and some
blocks of each launch are followed instruction by instruction (simulate.py): bytes, products, instructions and registers
are counted, not estimated. A model (predict.py) turns these counts into times: no number here is a measurement
unless a column says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metatasnet_fast.errors import BackendUnavailableError

from .count import Row, costs
from .launches import BACKENDS, KINDS, launches_of, served
from .predict import GPUS, Gpu, predict


@dataclass
class Line:
    """All launches of a kernel in one job on one GPU; bytes, operations, instructions and seconds are their sums.

    Attributes:
        hbm, level_2: bytes from and to memory, and bytes from the second-level cache.
        flops: operations on tensor cores.
        registers, shared, resident: registers of a thread, bytes of shared memory of a block, and how many blocks fit
            on a multiprocessor, for the equal launches that take longest together.
        roof: seconds at the full rate of memory or of the tensor cores, whichever is slower.
        parts: seconds of each part at its full rate: memory, cache, products, instructions, latency.
        bound: the part that limits the equal launches that take longest together.
        unknown: what could not be followed in the code.
    """

    backend: str
    kind: str
    gpu: str
    kernel: str
    launches: int = 0
    hbm: float = 0.0
    level_2: float = 0.0
    flops: float = 0.0
    instructions: float = 0.0
    registers: int = 0
    shared: int = 0
    resident: int = 0
    roof: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    bound: str = ""
    unknown: list[str] = field(default_factory=list)


def ledger(backend: str, kind: str, gpu: Gpu, only: Sequence[str] = ()) -> list[Line]:
    """Return a line for each kernel whose name contains one of ``only`` (default: all), the longest first."""
    found = launches_of(backend, kind, gpu, only)
    kernels: dict[str, list[Row]] = {}
    for row in costs(found, gpu):
        kernels.setdefault(row.kernel, []).append(row)
    lines = [_line(Line(backend, kind, gpu.name, kernel), rows, gpu) for kernel, rows in kernels.items()]
    return sorted(lines, key=lambda line: -line.seconds)


def _line(line: Line, rows: Sequence[Row], gpu: Gpu) -> Line:
    longest = 0.0
    for row in rows:
        cost, prediction = row.cost, predict(row.cost, gpu)
        line.launches += row.count
        line.hbm += row.count * cost.hbm
        line.level_2 += row.count * cost.level_2
        line.flops += row.count * sum(each for kind, each in cost.flops.items() if kind != "float32")
        line.instructions += row.count * cost.instructions
        line.roof += row.count * prediction.roof
        line.seconds += row.count * prediction.seconds
        for name, seconds in prediction.parts.items():
            line.parts[name] = line.parts.get(name, 0.0) + row.count * seconds
        line.unknown = sorted({*line.unknown, *cost.unknown})
        if row.count * prediction.seconds > longest:
            longest = row.count * prediction.seconds
            line.registers, line.shared, line.resident = cost.registers, cost.shared, cost.resident(gpu)
            line.bound = prediction.bound
    return line


def total(lines: Sequence[Line]) -> Line:
    """Return the sum over the kernels of one job on one GPU."""
    first = lines[0]
    found = Line(first.backend, first.kind, first.gpu, "total")
    for name in ("launches", "hbm", "level_2", "flops", "instructions", "roof", "seconds"):
        setattr(found, name, sum(getattr(line, name) for line in lines))
    found.parts = {name: sum(line.parts[name] for line in lines) for name in first.parts}
    return found


HEADER = ("kernel", "launches", "GB", "L2 GB", "TFLOP", "G instr.", "registers", "KiB", "blocks", "bound by")


def _cells(lines: Sequence[Line], measured: Mapping[tuple[str, str, str], float]) -> list[list[str]]:
    """Return the rows of a table: counts on the first GPU, predicted milliseconds on each, and measured ones."""
    gpus = list(dict.fromkeys(line.gpu for line in lines))
    by_kernel: dict[str, dict[str, Line]] = {}
    for gpu in gpus:
        of_gpu = [line for line in lines if line.gpu == gpu]
        for line in [*of_gpu, total(of_gpu)]:
            by_kernel.setdefault(line.kernel, {})[gpu] = line
    rows = [[*HEADER, *(f"{gpu} ms" for gpu in gpus), *(["measured ms"] if measured else [])]]
    for kernel in sorted(by_kernel, key=lambda k: k == "total"):
        of = by_kernel[kernel]
        line = next(of[gpu] for gpu in gpus if gpu in of)
        row = [kernel, str(line.launches), f"{line.hbm / 1e9:.2f}", f"{line.level_2 / 1e9:.1f}"]
        row += [f"{line.flops / 1e12:.2f}", f"{line.instructions / 1e9:.2f}"]
        resources = [str(line.registers), f"{line.shared / 1024:.0f}", str(line.resident), line.bound]
        row += resources if line.resident else [""] * 4
        row += [f"{of[gpu].seconds * 1e3:.2f}" if gpu in of else "" for gpu in gpus]
        if measured:
            own = {name: v for (b, k, name), v in measured.items() if (b, k) == (line.backend, line.kind)}
            found = [v for name, v in own.items() if kernel in (name, "total")]
            row.append(f"{sum(found):.2f}" if found else "")
        rows.append(row)
    return rows


def text(lines: Sequence[Line], measured: Mapping[tuple[str, str, str], float]) -> str:
    """Return a table for a terminal, with a note for each kernel of which some addresses are unknown."""
    if not lines:
        return "no kernel of that name"
    rows = _cells(lines, measured)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    body = [
        "  ".join(c.ljust(w) if k in (0, 9) else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lost = {line.kernel: line.unknown for line in lines if any("address" in what for what in line.unknown)}
    notes = [f"  not all addresses known: {kernel}: {', '.join(what)}" for kernel, what in lost.items()]
    return "\n".join([f"{lines[0].backend}, {lines[0].kind}: predicted", *body, *notes, ""])


def markdown(lines: Sequence[Line], measured: Mapping[tuple[str, str, str], float]) -> str:
    """Return the table in Markdown for the documentation, without notes."""
    rows = _cells(lines, measured)
    head = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows[1:]), ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: all")
    parser.add_argument(
        "--kind", choices=KINDS, action="append", help="a song, a single window, a training step (default: song, step)"
    )
    parser.add_argument("--gpu", choices=list(GPUS), action="append", help="default: all")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="kernels whose name contains NAME")
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="CSV with columns backend, kind, kernel, milliseconds"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--markdown", action="store_true", help="print tables for the documentation")
    args = parser.parse_args(argv)
    measured: dict[tuple[str, str, str], float] = {}
    if args.measured:
        try:
            with open(args.measured, newline="", encoding="utf-8") as file:
                table = csv.reader(file)
                columns = next(table, [])
                for values in table:
                    row = dict(zip(columns, values, strict=True))
                    measured[row["backend"], row["kind"], row["kernel"]] = float(row["milliseconds"])
            if not measured:
                raise ValueError("it has no rows")
        except (OSError, KeyError, ValueError) as error:
            parser.error(f"{args.measured} is no CSV with columns backend, kind, kernel, milliseconds: {error!r}")
    lines: list[Line] = []
    for backend in args.backend or BACKENDS:
        for kind in args.kind or ("inference", "training"):
            gpus = [GPUS[name] for name in args.gpu or GPUS if served(backend, kind, GPUS[name])]
            if not gpus:
                continue
            try:
                own = [line for gpu in gpus for line in ledger(backend, kind, gpu, args.only)]
            except BackendUnavailableError as error:
                parser.exit(2, f"{error}\n")
            print((markdown if args.markdown else text)(own, measured), flush=True)
            lines += own
    if args.record:
        rows = ",\n".join(json.dumps(line.__dict__) for line in lines)
        args.record.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
