"""Predict the time of every kernel from its machine code, for GPUs that are not there; put what a GPU took beside it.

    python -m bench.ledger [--backend triton] [--kind inference] [--gpu H100] [--only KERNEL] [--measured FILE] [--record FILE]

Launches are written down by running the network on tensors without data. Their code is compiled for each GPU, and
some blocks of each launch are followed instruction by instruction (simulate.py): bytes, products, instructions and
registers are counted, not estimated. How they become times is a model (predict.py): no number here is a measurement
unless a column says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from metatasnet_fast.errors import BackendUnavailableError

from .jobs import BACKENDS, KINDS, served
from .predict import GPUS
from .table import Line, ledger, markdown, text


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
