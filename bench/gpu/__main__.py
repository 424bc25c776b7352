"""Run the GPU script in two calls: build, tests, times, counters.

    python -m bench.gpu a --out DIR       560 seconds: all steps
    python -m bench.gpu b --out DIR       190 seconds: what failed in call a, or was cut off; then what is left to try

Each step is a process with a limit on its time; the plan of seconds is printed first. ``DIR`` always holds the same six
files, replaced after every step and while one runs, so a command that is killed loses no known result. Steps that
passed are recorded in ``--state`` (by default in the system's temporary folder); on another machine ``--after DIR``
reads the records from the files of an earlier call. Needs torch, triton, numpy, pytest with xdist and timeout, nvcc,
cmake and pybind11; no network. Exit code 1 if a step failed. ``--device cpu --tiny`` tries the script where there is no
GPU.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .steps import CALLS, ROOT, Step, obstacle, path, plan, scaled, turns

GRACE = 3.0
"""Seconds that a step gets to end by itself after it was asked to end."""
TICK, REFRESH = 0.05, 2.0
"""Seconds between two checks of the processes, and between two writes of the results."""
SETTLED = ("passed", "left out")
FILES = ("summary.txt", "results.jsonl", "kernels.csv", "junit.xml", "ncu.csv", "logs.tar.gz")
ALLOWED_SKIPS = ("there is no second GPU",)
"""Reasons for which a test may be skipped; any other skip is a failure."""
KERNEL_COLUMNS = (
    "backend", "kind", "kernel", "launches", "milliseconds", "predicted_ms", "over_predicted", "gb_per_s", "tflop_per_s",
)  # fmt: skip
PART = "unfinished.part"

State = dict[str, dict[str, Any]]


class Call:
    """A run of steps, until all of them have ended or the call's time is over.

    Args:
        state: records of steps by name, kept up to date; steps that have passed or cannot run are not started.
        seconds: time after which all running steps are ended.
    """

    def __init__(self, steps: Sequence[Step], out: Path, work: Path, state: State, device: str, seconds: float) -> None:
        self.steps, self.out, self.work, self.state, self.device = steps, out, work, state, device
        self.began = time.monotonic()
        self.end = self.began + seconds
        self.running: dict[str, tuple[Step, subprocess.Popen[bytes], float]] = {}

    def run(self) -> None:
        waiting = [step for step in self.steps if self.state.get(step.name, {}).get("status") not in SETTLED]
        written = 0.0
        while waiting or self.running:
            self._start(waiting)
            ended = [name for name in list(self.running) if self._ended(name)]
            if ended or time.monotonic() > written + REFRESH:
                self.write()
                written = time.monotonic()
            if time.monotonic() > self.end:
                for step in waiting:
                    self._record(step, "not run", 0.0, "the call's time had run out")
                waiting.clear()
            time.sleep(TICK)
        self.write()

    def write(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        unfinished = self.work / "state.part"
        unfinished.write_text(json.dumps(self.state), encoding="utf-8")
        unfinished.replace(self.work / "state.json")
        publish(self.out, self.work, summary(self.steps, self.state, self.work), self.state)

    def _start(self, waiting: list[Step]) -> None:
        """Start the steps that may run now, in their order."""
        for step in list(waiting):
            if any(step.alone for step, _, _ in self.running.values()) or (step.alone and self.running):
                return
            needed = [self.state.get(name, {}).get("status") for name in step.needs]
            if any(status in (None, "running") for status in needed):
                if any(other.alone for other in waiting[: waiting.index(step)]):
                    return
                continue
            waiting.remove(step)
            reason = obstacle(step, self.device)
            lacking = [name for name in step.needs if self.state[name]["status"] not in SETTLED]
            if reason:
                self._record(step, "left out" if step.needs_gpu and self.device == "cpu" else "failed", 0.0, reason)
            elif lacking:
                self._record(step, "failed", 0.0, f"it needs {lacking[0]}, which did not pass")
            else:
                self._spawn(step)
            if step.alone:
                return

    def _spawn(self, step: Step) -> None:
        command = [part.replace("{work}", str(self.work)) for part in step.command]
        environment = {**os.environ, "PATH": path(), "PYTHONUNBUFFERED": "1", **step.environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.work.mkdir(parents=True, exist_ok=True)
        print(f"{time.monotonic() - self.began:6.1f} s  {step.name}", flush=True)
        with open(self.work / f"{step.name}.log", "wb") as log:
            try:
                # It gets its own process group, so that its children can be ended with it.
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                self._record(step, "failed", 0.0, f"it cannot be started: {error}")
                return
        self.state[step.name] = {"status": "running", "seconds": 0.0, "detail": ""}
        self.running[step.name] = (step, process, time.monotonic())

    def _ended(self, name: str) -> bool:
        """Return whether a step has ended; end the step if its time or the call's time is over."""
        step, process, began = self.running[name]
        now = time.monotonic()
        code = process.poll()
        if code is None and now < min(began + step.limit, self.end):
            return False
        end_group(process)
        del self.running[name]
        if code is None:
            self._record(step, "timed out", now - began, f"ended after {now - began:.0f} s")
        elif step.tests and (problem := problem_of(self.work / f"{name}.xml")):
            self._record(step, "failed", now - began, problem)
        elif code:
            self._record(step, "failed", now - began, f"exit code {code}: {last_line(self.work / f'{name}.log')}")
        else:
            self._record(step, "passed", now - began, "")
        return True

    def _record(self, step: Step, status: str, seconds: float, detail: str) -> None:
        self.state[step.name] = {"status": status, "seconds": round(seconds, 1), "detail": detail}
        print(f"{time.monotonic() - self.began:6.1f} s  {step.name}: {status} {detail}".rstrip(), flush=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and all its children to end, then kill them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, PermissionError):
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else "it printed nothing"


def summary(steps: Sequence[Step], state: Mapping[str, Mapping[str, Any]], work: Path) -> str:
    """Return a line for each step, followed by the rows that the steps have written so far."""
    lines = [f"{'step':<14}{'status':<11}{'seconds':>8}  {'limit':>5}"]
    for step in steps:
        record = state.get(step.name, {"status": "waiting", "seconds": 0.0, "detail": ""})
        lines.append(
            f"{step.name:<14}{record['status']:<11}{record['seconds']:8.1f}  {step.limit:5.0f}  {record['detail']}".rstrip()
        )
    for name in state:
        rows = [row["text"] for row in read_rows(work / f"{name}.jsonl") if "text" in row]
        lines += ["", f"{name}:", *rows] if rows else []
    return "\n".join(lines) + "\n"


def publish(out: Path, work: Path, summary: str, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the files of the results into ``out``, from the records of the steps and from the files that the steps have
    written into ``work`` so far."""
    rows = {name: read_rows(work / f"{name}.jsonl") for name in state}
    records = [{"step": name, **record} for name, record in state.items()]
    results = [*records, *({"row_of": name, **row} for name, found in rows.items() for row in found)]
    makers: dict[str, Callable[[], bytes]] = {
        "summary.txt": summary.encode,
        "results.jsonl": lambda: "".join(json.dumps(line) + "\n" for line in results).encode(),
        "kernels.csv": lambda: _csv(rows.get("kernels", [])),
        "junit.xml": lambda: _junit(work),
        "ncu.csv": lambda: (work / "ncu.csv").read_bytes() if (work / "ncu.csv").exists() else b"",
        "logs.tar.gz": lambda: _logs(work),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        content = makers[name]()
        if not (out / name).exists() or (out / name).read_bytes() != content:
            (out / PART).write_bytes(content)
            (out / PART).replace(out / name)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, without a last line that is still being written."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def problem_of(path: Path) -> str | None:
    """Return the problem that a report of pytest shows: no test ran, a test failed, or a test was skipped for a reason
    that ALLOWED_SKIPS lacks. Return None if there is no problem."""
    try:
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return "it left no report"
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [
        skip.get("message", "")
        for case in cases
        if (skip := case.find("skipped")) is not None and not any(r in skip.get("message", "") for r in ALLOWED_SKIPS)
    ]
    if failed:
        return f"{len(failed)} of {len(cases)} tests failed, first {failed[0].get('name')}"
    if skipped:
        return f"{len(skipped)} of {len(cases)} tests were skipped: {skipped[0][:100]}"
    return None if cases else "no test ran"


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, KERNEL_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in rows if "kernel" in row)
    return text.getvalue().encode()


def _junit(work: Path) -> bytes:
    """Return all test reports as one, without the reports that are still being written."""
    suites = ElementTree.Element("testsuites")
    for report in sorted(work.glob("*.xml")):
        try:
            suites.extend(ElementTree.parse(report).getroot().iter("testsuite"))
        except ElementTree.ParseError:
            continue
    return ElementTree.tostring(suites)


def _logs(work: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for file in sorted(work.glob("*.log")):
            archive.add(file, file.name)
    return content.getvalue()


def second_steps(device: str, tiny: bool, state: State, another_machine: bool) -> list[Step]:
    """Return the steps of call b: those of call a that did not pass, then its own. On another machine, ``build`` and
    ``warm`` are repeated."""
    first = plan("a", device, tiny)
    if another_machine:
        for name in ("build", "warm"):
            state.pop(name, None)
    due = [step for step in first if state.get(step.name, {}).get("status") not in SETTLED]
    for step in due:
        state.pop(step.name, None)
    return scaled([*due, *plan("b", device, tiny)], CALLS["b"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("call", choices=list(CALLS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--state", type=Path, default=Path(tempfile.gettempdir()) / "metatasnet-fast-gpu", metavar="DIR"
    )
    parser.add_argument("--after", type=Path, metavar="DIR", help="files of an earlier call on another machine")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a network of a few channels: tries the script only")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--plan", action="store_true", help="print the plan of seconds, and do nothing")
    args = parser.parse_args(arguments)
    out, work = args.out.resolve(), args.state.resolve()
    if out == work or work in out.parents or out in work.parents:
        parser.error("the state must not lie in the folder of the results, which is emptied between calls")
    state: State = {}
    if args.call == "b":
        if args.after:
            state = {row.pop("step"): row for row in read_rows(args.after / "results.jsonl") if "step" in row}
        elif (work / "state.json").exists():
            state = json.loads((work / "state.json").read_text(encoding="utf-8"))
    first, second = (plan(call, args.device, args.tiny) for call in CALLS)
    steps = first if args.call == "a" else second_steps(args.device, args.tiny, state, bool(args.after))
    if args.only:
        steps = [step for step in [*first, *second] if step.name in args.only]
        if not steps:
            parser.error(f"no such step: {' '.join(args.only)}")
        there = {"status": "passed", "seconds": 0.0, "detail": "taken to be there"}
        state |= dict.fromkeys((name for step in steps for name in step.needs), there)
        state = {name: record for name, record in state.items() if name not in args.only}
    print(
        f"at most {turns(steps):.0f} of {CALLS[args.call]:.0f} s: "
        + ", ".join(f"{s.name} {s.limit:.0f}" for s in steps)
    )
    if args.plan:
        return 0
    call = Call(steps, out, work, state, args.device, CALLS[args.call])
    call.run()
    print((out / "summary.txt").read_text(encoding="utf-8"))
    return 0 if all(state[step.name]["status"] in SETTLED for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
