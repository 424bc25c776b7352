"""Everything that needs a GPU, in commands that fit ten minutes each: build, tests, parity, timings.

    python bench/gpu_suite.py --out DIR
    python bench/gpu_suite.py --out DIR --more      (a second ten minutes: compute-sanitizer, single jobs, operations, tuning)
    python bench/gpu_suite.py --out DIR --rest      (a third: beside torch.compile, a catalogue)

Each step is a process of its own with a limit on its time, and is recorded in DIR/state.json when it ends; started again, the
command goes on after the last step that passed, unless the code has changed since. What is not timed runs side by side,
since most of its time goes into compiling. DIR/all.tar.gz holds all files of DIR. A short table comes last. Needs torch,
triton, numpy and pytest; no network. Exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gpu_steps import ROOT, Step, more_steps, path, rest_steps, steps, turns  # noqa: E402

GRACE = 5.0
"""Seconds that a step has to end by itself once it was told to."""


def run(step: Step, out: Path, threads: int | None = None) -> dict[str, Any]:
    """Run a step, keep all it says in DIR/NAME.log, and return its record."""
    if step.unless:
        return {"status": "left out", "seconds": 0.0, "detail": step.unless}
    began = time.monotonic()
    environment = {**os.environ, "PATH": path(), "PYTHONUNBUFFERED": "1", **step.environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(out / f"{step.name}.log", "w", encoding="utf-8") as log:
        # A group of its own: what a step has started is ended with it.
        own_group: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
        try:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                **own_group,
            )
        except OSError as error:
            return {"status": "failed", "seconds": 0.0, "detail": f"cannot be started: {error}"}
        try:
            code: int | None = process.wait(step.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = round(time.monotonic() - began, 1)
    meanings = dict(step.fine)
    if code is None:
        return {"status": "timed out", "seconds": seconds, "detail": f"not done after {step.limit:g} s"}
    if code == 0 or code in meanings:
        return {"status": "passed", "seconds": seconds, "detail": meanings.get(code, "")}
    return {
        "status": "failed",
        "seconds": seconds,
        "detail": f"exit code {code}: {_last_line(out / f'{step.name}.log')}",
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group, first by asking; nothing is done where none is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, PermissionError):
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else "it said nothing"


def run_all(suite: Sequence[Step], out: Path, code: str) -> dict[str, Any]:
    """Run what has not passed with this ``code`` yet; the state is on disk after every step."""
    out.mkdir(parents=True, exist_ok=True)
    known, lock = out / "state.json", threading.Lock()
    state: dict[str, Any] = json.loads(known.read_text()) if known.exists() else {}
    if state.get("code") != code:
        state = {"code": code, "steps": {}}

    def one(step: Step, threads: int | None) -> None:
        print(f"== {step.name}: {' '.join(map(str, step.command))}", flush=True)
        record = run(step, out, threads)
        with lock:
            state["steps"][step.name] = record
            _write(known, state)
            _gather(out)

    for turn in turns(suite):
        due = [step for step in turn if state["steps"].get(step.name, {}).get("status") != "passed"]
        for step in turn:
            if step not in due:
                print(f"== {step.name}: passed before", flush=True)
        threads = max(1, (os.cpu_count() or 1) // len(due)) if len(due) > 1 else None
        with ThreadPoolExecutor(max(1, len(due))) as pool:
            list(pool.map(lambda step, threads=threads: one(step, threads), due))
    return state


def _gather(out: Path) -> None:
    """All files in one, for a machine from which few come back."""
    target = out / "all.tar.gz"
    partial = target.with_suffix(".part")
    with tarfile.open(partial, "w:gz") as archive:
        for file in sorted(out.iterdir()):
            if file.is_file() and file not in (target, partial):
                archive.add(file, file.name)
    partial.replace(target)


def _write(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(state, indent=2))
    partial.replace(path)


def code_version() -> str:
    """What the results belong to: a checksum of the sources, since a machine for measuring may have no git."""
    digest = hashlib.sha256()
    for folder in ("metatasnet_fast", "kernels", "csrc", "bench", "tests"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".cpp", ".h", ".cu", ".npz") and file.is_file():
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def summary(state: dict[str, Any], out: Path, suite: Sequence[Step]) -> str:
    """The timings' tables, then a line for every step."""
    parts = []
    for name in (step.name for step in suite if "bench.gpu_timings" in step.command and not step.beside):
        log = out / f"{name}.log"
        if state["steps"].get(name, {}).get("status") in ("passed", "failed") and log.exists():
            parts.append(log.read_text(encoding="utf-8", errors="replace").strip())
    lines = []
    for step in suite:
        record = state["steps"].get(step.name, {"status": "not run", "seconds": 0.0, "detail": ""})
        lines.append(f"{step.name:<20} {record['status']:<10} {record['seconds']:6.1f} s  {record['detail']}".rstrip())
    return "\n\n".join([*parts, "\n".join(lines)])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="try the program: a network of a few channels, nothing built"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--more", action="store_true", help="the second ten minutes instead")
    which.add_argument("--rest", action="store_true", help="the third")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--fresh", action="store_true", help="forget what has passed before")
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    if args.fresh:
        (out / "state.json").unlink(missing_ok=True)
    listed = (more_steps if args.more else rest_steps if args.rest else steps)(args.device, out, args.tiny)
    suite = [step for step in listed if not args.only or step.name in args.only]
    if not suite:
        parser.error(f"no such step: {' '.join(args.only)}")
    state = run_all(suite, out, f"{code_version()} {args.device} {'tiny' if args.tiny else 'full'}")
    print(summary(state, out, suite))
    return 0 if all(state["steps"][step.name]["status"] in ("passed", "left out") for step in suite) else 1


if __name__ == "__main__":
    sys.exit(main())
