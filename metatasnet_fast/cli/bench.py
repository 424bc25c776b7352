"""Measure the speed of this machine against eager PyTorch, or compare two recorded runs: ``metatasnet-fast bench``.

``selftest`` checks that the results on this machine are right, by every backend and in every precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._io import to_json
from .._terminal import say
from ..errors import BackendUnavailableError, ConfigError, MissingDependencyError
from .common import add_json_option, check_writable, from_one, print_result, tell

if TYPE_CHECKING:
    from ..benchmark import Row
    from ..benchmark.selftest import Result

__all__ = ["add_arguments"]

REGRESSION = 1
"""Exit code of a comparison with a regression, and of a run with a failed parity check."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time inference, preparation and a training step of the authors' network, by every backend "
        "and precision there is, against eager PyTorch and torch.compile in alternating rounds. "
        "An implementation whose results miss the parity rule gets no times, and the exit code is 1. "
        "`metatasnet-fast bench compare A B` compares two recorded runs: exit code 1 if B is slower beyond the noise."
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="the shortest run that says something, without torch.compile"
    )
    size.add_argument(
        "--tiny", action="store_true", help="a network of a few channels: tries the program, not the machine"
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="measure the cases whose names contain TEXT: separate"
    )
    parser.add_argument("-o", "--out", metavar="DIR", help="write DIR/bench.jsonl and DIR/bench.png")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=from_one, help="torch's threads (default: as torch chooses)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out; compiling takes minutes")
    parser.add_argument(
        "--max-autotune", action="store_true", help="torch.compile takes part a second time, in this mode"
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="ONNX Runtime and OpenVINO take part in inference on a CPU (needs the extra export, and openvino)",
    )
    add_json_option(parser, "one JSON object for each row, the lines of bench.jsonl,")
    parser.set_defaults(run=run)
    inner = parser.add_subparsers(metavar="compare A B", dest="what", required=False)
    compare = inner.add_parser(
        "compare", help="compare two recorded runs", description="Tell regressions beyond the noise."
    )
    compare.add_argument("first", metavar="A", type=Path, help="a .jsonl file, or a folder of them")
    compare.add_argument("second", metavar="B", type=Path, help="likewise: the run that may be slower")
    compare.add_argument(
        "--seconds", action="store_true", help="count eager's own seconds too; for machines that do nothing else"
    )
    add_json_option(compare, "one JSON object for each implementation on each case", nested=True)
    compare.set_defaults(run=run_compare)


def run(args: argparse.Namespace) -> int:
    import torch

    from ..benchmark import SIZES, Participants, text_table, write_rows
    from ..benchmark import run as run_suite

    folder = Path(args.out) if args.out else None
    if folder:
        check_writable(folder)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    size = SIZES["tiny" if args.tiny else "quick" if args.quick else "full"]
    participants = Participants.of(_device(args.device), size.compiled and not args.no_compile)
    participants = dataclasses.replace(participants, autotuned=args.max_autotune, peers=args.peers)
    began = time.perf_counter()
    keep = (lambda rows: write_rows(rows, folder / "bench.jsonl")) if folder else (lambda rows: None)
    rows = run_suite(size, participants, lambda line: say(f"{line} ...", sys.stderr), args.only, keep)
    if args.json:
        for row in rows:
            print(row.to_json())
    else:
        print(text_table(rows))
        print(_about(rows, time.perf_counter() - began))
    if folder:
        files = [folder / "bench.jsonl", *_draw(rows, folder / "bench.png")]
        if not args.json:
            print(*files, sep="\n")
    return REGRESSION if any(row.wrong for row in rows) else 0


def _about(rows: list[Row], seconds: float) -> str:
    machine, peaks = rows[0].machine, rows[0].peaks
    products = ", ".join(f"{rate / 1e9:.4g} GFLOP/s {name}" for name, rate in peaks["mm_flop_per_s"].items())
    return (
        f"{machine['device_name']}, {machine['threads']} threads, torch {machine['packages']['torch']}; measured in this run: "
        f"copy {peaks['copy_bytes_per_s'] / 1e9:.4g} GB/s, torch.mm {products}; {seconds:.0f} s in all\n"
        "medians of alternating rounds; x real time is for mono audio; of mm, of copy: share of those rates that the counted "
        "arithmetic and bytes make"
    )


def _draw(rows: list[Row], path: Path) -> list[Path]:
    from ..benchmark.results import draw

    try:
        draw(rows, path)
    except MissingDependencyError as error:
        tell(f"no picture was drawn: {error}")
        return []
    return [path]


def run_compare(args: argparse.Namespace) -> int:
    from ..benchmark import compare, comparison_table, read_rows

    changes = compare(read_rows(args.first), read_rows(args.second), args.seconds)
    if args.json:
        for change in changes:
            case, implementation, precision = change.key
            fields = {name: getattr(change, name) for name in ("what", "ratio", "band", "problem")}
            print(to_json({"case": case, "implementation": implementation, "precision": precision, **fields}))
    else:
        print(comparison_table(changes))
    return REGRESSION if any(change.problem for change in changes) else 0


def _device(name: str) -> Any:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"Unknown device {name!r}; choose auto, cpu or cuda.")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise BackendUnavailableError("torch finds no CUDA device: install a CUDA build of torch, or measure the CPU.")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def add_selftest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare every backend in every precision with plain PyTorch in float64, on small networks of every kind "
        "and on music, noise, silence, constants, clicks and odd lengths. Allowed is eager PyTorch's own error in that "
        "precision, measured in the same run, times 3 in float32 and 1.5 below (see docs/benchmarks.md). Exit code 1 if "
        "anything failed."
    )
    parser.add_argument("--device", default="all", help="all, cpu or cuda (default: all)")
    add_json_option(parser, "one JSON object")
    parser.set_defaults(run=run_selftest)


def run_selftest(args: argparse.Namespace) -> int:
    from ..backends import available_backends
    from ..benchmark.selftest import devices, selftest
    from ..errors import BackendUnavailableError

    on = [device for device in devices() if args.device in ("all", device.type)]
    if not on:
        known = ", ".join(device.type for device in devices())
        raise BackendUnavailableError(f"There is no device {args.device!r} here; choose all, {known}.")
    began = time.perf_counter()
    results = list(selftest(on))
    passed = all(result.passed for result in results)
    absent = {name: entry.reason for name, entry in available_backends().items() if not entry.available}
    text = _text(results, absent, time.perf_counter() - began)
    print_result(args, text, passed=passed, absent=absent, results=[result.to_dict() for result in results])
    return 0 if passed else 1


def _text(results: list[Result], absent: dict[str, str | None], seconds: float) -> str:
    """Return a table, with one line for each failure below it. The table has a row for each device, backend, precision
    and network, with the signal whose error is worst relative to its limit."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault((result.device, result.backend, result.precision, result.network), []).append(result)
    heads = ("device", "backend", "precision", "network", "error", "eager's", "allowed", "verdict", "worst on")
    table = [list(heads)]
    for group, members in groups.items():
        worst = max(members, key=lambda r: r.error / r.allowed)
        failed = sum(not r.passed for r in members)
        verdict = f"{failed} of {len(members)} FAILED" if failed else f"{len(members)} passed"
        numbers = [f"{value:.1e}" for value in (worst.error, worst.eager, worst.allowed)]
        table.append([*group, *numbers, verdict, f"{worst.signal}, {worst.output}"])
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    lines += [f"not here: {name}: {reason}" for name, reason in absent.items()]
    for result in results:
        if not result.passed:
            lines.append(
                f"FAILED: {result.backend} in {result.precision} on {result.device}, network {result.network}, "
                f"{result.signal}, {result.output}: {result.error:.2e}, allowed {result.allowed:.2e}"
            )
    count = sum(not result.passed for result in results)
    lines.append(f"{len(results) - count} of {len(results)} comparisons passed in {seconds:.0f} s")
    return "\n".join(lines)
