"""Measure a case: check every implementation first, then time all of them in turns, on new inputs in every round.

Rules that make the numbers trustworthy:

- an implementation whose outputs miss float64 by more than the parity rule (below) allows is not timed;
- each round writes new values into the same input tensors, and the outputs of the timed calls themselves are compared with
  eager's of that round, so outputs kept from an earlier call are detected;
- implementations alternate within a round, and their order rotates, so other load slows all of them;
- an implementation that raises an error, even in a timed call, gets a row with the reason, and the others continue;
- an implementation that fails a check in round 20 also loses its times of the first 19 rounds.

The parity rule: the error is the relative L2 distance from the plain-PyTorch network in float64. The allowed error is a
multiple of the error that eager PyTorch has in the same precision on the same inputs: 3 times in float32 (10 times for
the gradients of a whole network, which are ill-conditioned), 1.5 times in tf32, bfloat16 and float16, and always at
least 3e-6. In float64 it is 1e-6. Eager itself, and everything else, must also stay below an upper limit that only a
broken computation reaches. In bfloat16 and float16 the gradients of a whole network are noise in any program; of them
only the norm is checked: not zero, not NaN, not ten times too large or too small.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import MetaTasNetError
from ..precision import Precision
from .cases import COMPILED, EAGER, GRADIENTS, Call, Case, Implementation, Outputs
from .machine import HostTimer, Timer, clocks, make_timer, peak_memory
from .results import Row
from .roofline import Peaks

__all__ = ["Effort", "Errors", "checked", "errors_of", "limit", "measure", "relative_error", "verdict"]

Errors: TypeAlias = dict[str, float]
"""Error of each output, by name."""

NORM = "gradient norm"

FLOOR = 3e-6
TIMES = {Precision.float32: 3.0, Precision.tf32: 1.5, Precision.bfloat16: 1.5, Precision.float16: 1.5}
UPPER = {Precision.float32: 1e-2, Precision.tf32: 0.1, Precision.bfloat16: 0.3, Precision.float16: 0.3}
"""By precision: the factor on eager's error, and the upper limit of the allowed error."""
NEARLY_ZERO = 0.9
"""A limit just below 1, the error of an output that is all zero."""


def relative_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return ``|values - expected| / |expected|`` in L2 over all tensors together; ``|values|`` if ``expected`` is 0.

    Return infinity if the numbers of tensors or their shapes differ, and for NaN. The sums are computed in float64 on
    the device of ``values``, as the outputs of a song are large.
    """
    if len(values) != len(expected) or any(a.shape != b.shape for a, b in zip(values, expected, strict=True)):
        return math.inf
    difference = size = 0.0
    for a, b in zip(values, expected, strict=True):
        a, b = a.detach().double(), b.detach().to(a.device, torch.float64)
        difference += (a - b).square().sum().item()
        size += b.square().sum().item()
    error = math.sqrt(difference / size if size else difference) if math.isfinite(difference) else math.inf
    return error if math.isfinite(error) else math.inf


def errors_of(outputs: Outputs, expected: Outputs, precision: Precision) -> Errors:
    """Return the error of each output by name; the error of a missing output is infinite."""
    errors = {}
    for name, wanted in expected.items():
        found = outputs[name] if name in outputs else ()
        if name == GRADIENTS and precision in (Precision.bfloat16, Precision.float16):
            errors[NORM] = _norm_error(found, wanted)
        else:
            errors[name] = relative_error(found, wanted)
    return errors


def _norm_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return ``1 - smaller / larger`` of the two norms: 0 if they agree, 1 if one is zero, infinity if one is not
    finite."""
    a, b = (
        math.sqrt(sum(x.detach().double().square().sum().item() for x in tensors)) for tensors in (values, expected)
    )
    if not math.isfinite(a) or not math.isfinite(b) or len(values) != len(expected):
        return math.inf
    return 1 - min(a, b) / max(a, b) if max(a, b) else 0.0


def limit(name: str, precision: Precision, eager: float, degenerate: bool = False) -> float:
    """Return the allowed error if eager's own error is ``eager``.

    A degenerate signal makes the whole network as ill-conditioned as its gradients are. So the factor is 10 in float32,
    and in lower precisions the only upper limit is the one that an output of zeros reaches.
    """
    if name == NORM:
        return NEARLY_ZERO
    if precision is Precision.float64:
        return 1e-6
    gradients = name == GRADIENTS
    times = 10.0 if (gradients or degenerate) and precision is Precision.float32 else TIMES[precision]
    upper = NEARLY_ZERO if gradients or (degenerate and precision is not Precision.float32) else UPPER[precision]
    return min(max(FLOOR, times * eager), upper)


def verdict(errors: Errors, limits: Errors) -> str | None:
    """Return None if every error is within its limit, else a sentence with the worst one."""
    beyond = {name: error / limits[name] for name, error in errors.items() if not error <= limits[name]}
    if not beyond:
        return None
    worst = max(beyond, key=lambda name: beyond[name])
    return f"parity failed: {worst} has relative error {errors[worst]:.1e}, allowed is {limits[worst]:.1e}"


FAILURES = (MetaTasNetError, RuntimeError, NotImplementedError, OSError)
"""Types of errors of implementations that cannot be built or run here; the table shows such an error."""


@dataclass(frozen=True)
class Effort:
    """Length of a measurement: rounds until ``seconds`` have passed, at least ``least``, at most ``most``.

    After the time ``until`` (of ``time.perf_counter``) no implementation is built, and no round but the first begins.
    """

    seconds: float = 20.0
    least: int = 5
    most: int = 50
    until: float = math.inf


@dataclass
class _Entry:
    """An implementation that is being measured."""

    implementation: Implementation
    row: Row
    call: Call | None = None


def measure(
    case: Case, peaks: Peaks, effort: Effort, keep: Callable[[list[Row]], object] = lambda rows: None
) -> list[Row]:
    """Measure one row per implementation, in their order; a row without times has a reason.

    ``keep`` gets the rows as they are known so far: after each implementation's check and after each round.
    """
    device = case.inputs[0].device
    timer = HostTimer() if case.whole_process else make_timer(device)
    if any(c.name.startswith(COMPILED) for c in case.implementations):
        # Without this reset, compilations of earlier cases would count towards the recompilation limit.
        torch._dynamo.reset()
    before = clocks(device)
    entries = [_Entry(c, _row(case, c, timer)) for c in case.implementations]
    rows = [entry.row for entry in entries]
    _check(case, entries, effort, lambda: keep(rows))
    _take_turns(case, entries, timer, effort, lambda: keep(rows))
    after = clocks(device)
    for entry in entries:
        entry.row.clocks_before, entry.row.clocks_after = before, after
        entry.row.peaks = peaks.to_dict()
        _derive(entry, entries, peaks, case)
    return rows


def checked(case: Case) -> list[tuple[Row, Call | None]]:
    """Check each implementation; return its row, still without times, and the function that runs the implementation.

    If an implementation may not be timed, the function is None or the row has a reason.
    """
    timer = HostTimer()
    entries = [_Entry(c, _row(case, c, timer)) for c in case.implementations]
    _check(case, entries, Effort(), lambda: None)
    return [(entry.row, entry.call) for entry in entries]


def _row(case: Case, implementation: Implementation, timer: Timer) -> Row:
    work = case.work(implementation.precision)
    return Row(
        case=case.name,
        job=case.job,
        implementation=implementation.name,
        precision=implementation.precision.value,
        sizes=case.sizes,
        audio_seconds=case.audio_seconds,
        flops=work.flops,
        bytes=work.bytes,
        timing=timer.method,
    )


def _check(case: Case, entries: Sequence[_Entry], effort: Effort, keep: Callable[[], object]) -> None:
    """Build every implementation, check the outputs of its first call against float64, and measure its memory."""
    device = case.inputs[0].device
    try:
        expected = case.expected(case.fill(0))
    except FAILURES as error:
        for entry in entries:
            entry.row.refuse(f"not checked: the network in float64 does not run: {_sentence(error)}")
        _give_back(device)
        return
    for entry in entries:
        if time.perf_counter() > effort.until:
            entry.row.refuse("not measured: the time for it had run out")
            continue
        try:
            _first_calls(case, entry, expected)
        except FAILURES as error:
            entry.call = None
            entry.row.refuse(f"does not run: {_sentence(error)}")
        if entry.call is None:
            _give_back(device)
        keep()
    own = {e.implementation.precision: e.row.errors for e in entries if e.implementation.name == EAGER and e.call}
    for entry in entries:
        if entry.call is None:
            continue
        eager = own.get(entry.implementation.precision)
        if eager is None:
            entry.row.refuse("not checked: eager PyTorch does not run in this precision here")
            continue
        entry.row.limits = {name: limit(name, entry.implementation.precision, eager[name]) for name in eager}
        failed = verdict(entry.row.errors, entry.row.limits)
        if failed:
            entry.row.refuse(failed)


def _first_calls(case: Case, entry: _Entry, expected: Outputs) -> None:
    row, implementation, device = entry.row, entry.implementation, case.inputs[0].device
    start = time.perf_counter()
    entry.call = implementation.make()
    _synchronize(device)
    row.make_seconds = time.perf_counter() - start
    start = time.perf_counter()
    outputs = entry.call()
    _synchronize(device)
    row.first_call_seconds = time.perf_counter() - start
    row.errors = errors_of(outputs, expected, implementation.precision)
    del outputs
    if not case.whole_process:
        row.peak_bytes, row.peak_method = peak_memory(entry.call, device)


def _take_turns(
    case: Case, entries: Sequence[_Entry], timer: Timer, effort: Effort, keep: Callable[[], object]
) -> None:
    running = [e for e in entries if e.call is not None and e.row.reason is None]
    began = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(1, effort.most + 1):
            now = time.perf_counter()
            late = number > 1 and now > effort.until
            if not running or late or (number > effort.least and now - began > effort.seconds):
                break
            case.fill(number)
            _synchronize(case.inputs[0].device)
            shift = number % len(running)
            found = {id(e): _timed(e, timer) for e in running[shift:] + running[:shift]}
            running = [e for e in running if e.row.reason is None]
            _compare(running, {key: outputs for key, (_, outputs) in found.items()})
            running = [e for e in running if e.row.reason is None]
            eager = {e.implementation.precision: found[id(e)][0] for e in running if e.implementation.name == EAGER}
            for entry in running:
                seconds = found[id(entry)][0]
                entry.row.samples.append(seconds)
                if entry.implementation.precision in eager:
                    entry.row.relative.append(seconds / eager[entry.implementation.precision])
            keep()
    finally:
        if collecting:
            gc.enable()


def _timed(entry: _Entry, timer: Timer) -> tuple[float, Outputs]:
    """Return the seconds and the outputs of a call.

    If the call raises one of FAILURES, write the reason into the entry's row, and return infinity and no outputs.
    """
    assert entry.call is not None
    try:
        return timer(entry.call)
    except FAILURES as error:
        entry.row.refuse(f"does not run when timed: {_sentence(error)}")
        return math.inf, {}


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _compare(running: Sequence[_Entry], outputs: dict[int, Outputs]) -> None:
    """Compare the outputs of the timed calls with eager's in the best precision that runs.

    The limit is a sum of two terms. The first is the larger of the check's limit and the limit for eager's own error in
    this precision and round. The second is the limit of the baseline.
    """
    baselines = [e for e in running if e.implementation.name == EAGER]
    if not baselines:
        for entry in running:
            entry.row.refuse("not checked: eager PyTorch does not run here")
        return
    baseline = min(baselines, key=lambda e: max(e.row.errors.values()))
    best = outputs[id(baseline)]
    own = {e.implementation.precision: errors_of(outputs[id(e)], best, e.implementation.precision) for e in baselines}
    for entry in running:
        precision = entry.implementation.precision
        if entry is baseline or precision not in own:
            continue
        distance = own[precision] if entry in baselines else errors_of(outputs[id(entry)], best, precision)
        allowed: Errors = {
            name: max(known, limit(name, precision, own[precision][name])) + baseline.row.limits.get(name, 0.0)
            for name, known in entry.row.limits.items()
        }
        failed = verdict(distance, allowed)
        if failed:
            entry.row.refuse(f"{failed} (in a timed call on new inputs, against eager PyTorch)")


def _derive(entry: _Entry, entries: Sequence[_Entry], peaks: Peaks, case: Case) -> None:
    row = entry.row
    seconds = row.seconds
    if seconds is None:
        return
    work = case.work(entry.implementation.precision)
    row.of_compute = peaks.of_compute(work, entry.implementation.precision, seconds)
    row.of_memory = peaks.of_memory(work, seconds)
    # All implementations ran in the same rounds.
    others = {other.row.label: other.row.seconds for other in entries if other is not entry}
    row.speedup = {label: median / seconds for label, median in others.items() if median is not None}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back(device: torch.device) -> None:
    """Free the memory that a failure left in torch's pool, for the next implementations."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
