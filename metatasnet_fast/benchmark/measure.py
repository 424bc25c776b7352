"""Measuring a case: every contender is checked first, then all take turns on inputs that are new in every round.

What defends the numbers:

- a contender whose outputs miss float64 by more than the parity rule allows is not timed;
- each round writes new values into the same input tensors, and the outputs of the timed calls themselves are compared with
  eager's of that round, so outputs kept from an earlier call are found out;
- contenders alternate within a round, and their order rotates, so what slows the machine slows all of them;
- a contender found out in round 20 loses the times of the first 19.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import MetaTasNetError
from .cases import EAGER, Call, Case, Contender
from .ceilings import Ceilings
from .contenders import COMPILED
from .machine import clocks
from .memory import peak_memory
from .parity import Errors, Outputs, errors_of, limit, verdict
from .rows import Row
from .timing import HostTimer, Spread, Timer, make_timer

__all__ = ["Effort", "measure"]


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds until ``seconds`` have passed, ``least`` and ``most`` of them."""

    seconds: float = 20.0
    least: int = 5
    most: int = 50


@dataclass
class _Entry:
    """A contender in the run."""

    contender: Contender
    row: Row
    call: Call | None = None


def measure(case: Case, ceilings: Ceilings, effort: Effort) -> list[Row]:
    """One row per contender, in their order; those without times say why."""
    device = case.inputs[0].device
    timer = HostTimer() if case.whole_process else make_timer(device, case.graph)
    if any(c.name == COMPILED for c in case.contenders):
        # What an earlier case compiled counts towards the limit of recompilations.
        torch._dynamo.reset()
    before = clocks(device)
    entries = [_Entry(c, _row(case, c, timer)) for c in case.contenders]
    _check(case, entries, timer)
    _take_turns(case, entries, timer, effort)
    after = clocks(device)
    for entry in entries:
        entry.row.clocks_before, entry.row.clocks_after = before, after
        entry.row.ceilings = ceilings.to_dict()
        _derive(entry, entries, ceilings, case)
    return [entry.row for entry in entries]


def _row(case: Case, contender: Contender, timer: Timer) -> Row:
    work = case.work(contender.precision)
    return Row(
        case=case.name,
        job=case.job,
        contender=contender.name,
        precision=contender.precision.value,
        sizes=case.sizes,
        audio_seconds=case.audio_seconds,
        flops=work.flops,
        bytes=work.bytes,
        timing=timer.method,
    )


def _check(case: Case, entries: Sequence[_Entry], timer: Timer) -> None:
    """Build every contender, call it once, and judge its outputs against float64; then measure its memory."""
    expected = case.expected(case.fill(0))
    for entry in entries:
        row, contender = entry.row, entry.contender
        device = case.inputs[0].device
        try:
            start = time.perf_counter()
            call = contender.make()
            _synchronize(device)
            row.make_seconds = time.perf_counter() - start
            start = time.perf_counter()
            outputs = call()
            _synchronize(device)
            row.first_call_seconds = time.perf_counter() - start
            row.errors = errors_of(outputs, expected, contender.precision)
            del outputs
            row.golden_error = case.golden(contender)
            if not case.whole_process:
                row.peak_bytes, row.peak_method = peak_memory(call, device)
        except (MetaTasNetError, RuntimeError, NotImplementedError, OSError) as error:
            # What cannot be built or run here is a result too; it is said in the table.
            row.refuse(
                f"does not run: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )
            continue
        entry.call = call
    own = {e.contender.precision: e.row.errors for e in entries if e.contender.name == EAGER and e.call}
    for entry in entries:
        if entry.call is None:
            continue
        eager = own.get(entry.contender.precision)
        if eager is None:
            entry.row.refuse("not judged: eager PyTorch does not run in this precision here")
            continue
        entry.row.limits = {name: limit(name, entry.contender.precision, eager[name]) for name in eager}
        failed = verdict(entry.row.errors, entry.row.limits)
        if failed:
            entry.row.refuse(failed)


def _take_turns(case: Case, entries: Sequence[_Entry], timer: Timer, effort: Effort) -> None:
    running = [e for e in entries if e.call is not None and e.row.reason is None]
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(1, effort.most + 1):
            if not running or (number > effort.least and time.perf_counter() - began > effort.seconds):
                break
            case.fill(number)
            _synchronize(case.inputs[0].device)
            shift = number % len(running)
            found = {id(e): _timed(e, timer) for e in running[shift:] + running[:shift]}
            _compare(running, {key: outputs for key, (_, outputs) in found.items()})
            running = [e for e in running if e.row.reason is None]
            eager = {e.contender.precision: found[id(e)][0] for e in running if e.contender.name == EAGER}
            for entry in running:
                seconds = found[id(entry)][0]
                entry.row.samples.append(seconds)
                if entry.contender.precision in eager:
                    entry.row.relative.append(seconds / eager[entry.contender.precision])
    finally:
        if collecting:
            gc.enable()


def _timed(entry: _Entry, timer: Timer) -> tuple[float, Outputs]:
    assert entry.call is not None
    seconds, outputs = timer(entry.call)
    return seconds, outputs


def _compare(running: Sequence[_Entry], outputs: dict[int, Outputs]) -> None:
    """Compare the outputs of the timed calls with eager's in the best precision that runs.

    What is allowed is as in the check, or what eager's own distance in that precision in this round makes it; to it
    comes what the judge itself may be off.
    """
    judges = [e for e in running if e.contender.name == EAGER]
    if not judges:
        for entry in running:
            entry.row.refuse("not judged: eager PyTorch does not run here")
        return
    judge = min(judges, key=lambda e: max(e.row.errors.values()))
    best = outputs[id(judge)]
    own = {e.contender.precision: errors_of(outputs[id(e)], best, e.contender.precision) for e in judges}
    for entry in running:
        precision = entry.contender.precision
        if entry is judge or precision not in own:
            continue
        distance = own[precision] if entry in judges else errors_of(outputs[id(entry)], best, precision)
        allowed: Errors = {
            name: max(known, limit(name, precision, own[precision][name])) + judge.row.limits.get(name, 0.0)
            for name, known in entry.row.limits.items()
        }
        failed = verdict(distance, allowed)
        if failed:
            entry.row.refuse(f"{failed} (in a timed call on new inputs, against eager PyTorch)")


def _derive(entry: _Entry, entries: Sequence[_Entry], ceilings: Ceilings, case: Case) -> None:
    row = entry.row
    seconds = row.seconds
    if seconds is None:
        return
    work = case.work(entry.contender.precision)
    row.of_compute = ceilings.of_compute(work, entry.contender.precision, seconds)
    row.of_memory = ceilings.of_memory(work, seconds)
    for other in entries:
        if other is entry or other.row.spread is None:
            continue
        # Both ran in the same rounds: whoever lost its times has none at all.
        row.speedup[other.row.label] = Spread.of(other.row.samples).median / seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
