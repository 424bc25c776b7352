"""``metatasnet-fast selftest``: are the results right on this machine, by every backend and in every precision?"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from .options import add_json_option
from .report import print_result

if TYPE_CHECKING:
    from ..benchmark.selftest import Result

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare every backend in every precision with plain PyTorch in float64, on small networks of every kind "
        "and on music, noise, silence, constants, clicks and odd lengths. Allowed is eager PyTorch's own error in that "
        "precision, measured in the same run, times 3 in float32 and 1.5 below (see docs/benchmarks.md). Exit code 1 if "
        "anything failed."
    )
    parser.add_argument("--device", default="all", help="all, cpu or cuda (default: all)")
    add_json_option(parser, "one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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
    """Return a line for each network on each backend, with the signal that is worst against its limit; and every
    failure."""
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
